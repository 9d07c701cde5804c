"""What kernels look for on the bus of a PC: Intel's 440FX host bridge, the PIIX3's ISA bridge and IDE function (82441FX, 82371SB data
sheets)."""

from __future__ import annotations

from typing import Final

from hvd.board.pci.function import Identity, PciFunction

# PIRQRC: which interrupt each of the four lines goes to. Fixed and read-only: what a firmware writes must not
# differ from what the ACPI and MP tables say.
PIRQ_ROUTES: Final = 0x60
# IDETIM of the two channels: bit 15 says that the ports are decoded. Drivers look at it, and may switch it off in vain.
IDE_TIMING: Final = 0x40
IDE_DECODES: Final = 0x8000


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


class IdeFunction(PciFunction):
    """01.1, what finds drivers for the controller at its legacy ports (hvd.board.ide). Its programming interface says: both
    channels in compatibility mode and fixed so, no bus mastering (PCI IDE Controller Specification 1.0, section 2)."""

    def __init__(self) -> None:
        super().__init__("ide", Identity(0x8086, 0x7010, 0x01_01_00))
        for channel in (IDE_TIMING, IDE_TIMING + 2):
            self.config.define(channel, 2, IDE_DECODES, IDE_DECODES)
