"""What kernels look for on the bus of a PC: Intel's 440FX host bridge and the PIIX3's ISA bridge (82441FX, 82371SB data sheets)."""

from __future__ import annotations

from typing import Final

from hvd.board.pci.function import Identity, PciFunction

# PIRQRC: which interrupt each of the four lines goes to. Fixed and read-only: what a firmware writes must not
# differ from what the ACPI and MP tables say.
PIRQ_ROUTES: Final = 0x60


class HostBridge(PciFunction):
    """00.0. Linux believes in configuration mechanism 1 when it finds such a function. The registers of the memory
    controller (0x59-0x5F: which of the ROM area is RAM) can be written and do nothing: all of it is RAM."""

    def __init__(self) -> None:
        super().__init__("host-bridge", Identity(0x8086, 0x1237, 0x06_00_00, revision=2))
        for offset in range(0x50, 0x80):
            self.config.define(offset, 1, 0, 0xFF)


class IsaBridge(PciFunction):
    """01.0, function 0 of the chip that the PC's old devices are part of."""

    def __init__(self, routes: tuple[int, int, int, int]) -> None:
        """routes: the IRQ of PIRQA-PIRQD."""
        super().__init__("isa-bridge", Identity(0x8086, 0x7000, 0x06_01_00))
        self.config.define(0x0E, 1, 0x80)  # header type: there are more functions
        for index, irq in enumerate(routes):
            self.config.define(PIRQ_ROUTES + index, 1, irq)
