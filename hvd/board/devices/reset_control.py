"""The reset control register of Intel's south bridges, port 0xCF9 (82371FB/82371SB PIIX data sheet, "RC - Reset Control
Register"; the ICHs have it, too). Linux resets the machine with it under `reboot=p`.

The register is bytes wide and lies within PCI's 32-bit configuration address at 0xCF8. The bridge tells them apart by
the access's width: so this device claims all four ports, which brings wider accesses here whole, and lets those float.
Otherwise the bus would split them, and a scan of PCI would reset the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from hvd.board.bus import floating

if TYPE_CHECKING:
    from hvd.board.machine import Machine

FIRST, PORT, LAST = 0xCF8, 0xCF9, 0xCFB
# Bit 1 chooses what bit 2 does when it rises; bit 3 of the ICHs adds a power cycle to a hard reset.
SYSTEM_RESET, RESET_CPU, FULL_RESET = 0x02, 0x04, 0x08


class ResetControl:
    """A rising bit 2 pulls the reset line: with bit 1 a hard reset; without, a soft one, which restarts the CPU in its
    firmware. No firmware lives here, so that both are the machine's reset.
    """

    name: ClassVar[str] = "reset-control"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._value = 0

    @property
    def ports(self) -> Sequence[range]:
        return (range(FIRST, LAST + 1),)

    def read_port(self, port: int, size: int) -> int:
        return self._value if (port, size) == (PORT, 1) else floating(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        if (port, size) != (PORT, 1):
            return
        rises = value & ~self._value & RESET_CPU
        self._value = value & (SYSTEM_RESET | RESET_CPU | FULL_RESET)
        if rises:
            kind = "hard" if value & SYSTEM_RESET else "soft"
            self._machine.reset_line(f"{kind} reset, port {PORT:#x}")

    def reset(self) -> None:
        self._value = 0
