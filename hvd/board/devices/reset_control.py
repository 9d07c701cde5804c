"""The reset control register of Intel's south bridges, port 0xCF9 (82371FB/82371SB PIIX data sheet, "RC - Reset Control
Register"; the ICHs have it, too). Linux resets the machine with it under `reboot=p`.

The register is a byte wide and lies within PCI's 32-bit configuration address at 0xCF8. The bridge tells them apart by
the access's width, and so does this board: the device claims accesses of one byte at 0xCF9, all others there are PCI's
(hvd.board.pci.bus).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hvd.board import saved

if TYPE_CHECKING:
    from hvd.board.machine import Machine

PORT = 0xCF9
# Bit 1 chooses what bit 2 does when it rises; bit 3 of the ICHs adds a power cycle to a hard reset.
SYSTEM_RESET, RESET_CPU, FULL_RESET = 0x02, 0x04, 0x08


class ResetControl:
    """A rising bit 2 pulls the reset line: with bit 1 a hard reset; without, a soft one, which restarts the CPU in its
    firmware. No firmware lives here, so that both are the machine's reset.
    """

    name: ClassVar[str] = "reset-control"
    widest: ClassVar[int] = 1
    ports: Sequence[range] = ()
    accesses = ((PORT, 1),)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._value = 0

    def read_port(self, port: int, size: int) -> int:
        return self._value

    def write_port(self, port: int, size: int, value: int) -> None:
        rises = value & ~self._value & RESET_CPU
        self._value = value & (SYSTEM_RESET | RESET_CPU | FULL_RESET)
        if rises:
            kind = "hard" if value & SYSTEM_RESET else "soft"
            self._machine.reset_line(f"{kind} reset, port {PORT:#x}")

    def reset(self) -> None:
        self._value = 0

    def save(self) -> dict[str, Any]:
        return {"value": self._value}

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset({"value"}), self.name)
        self._value = saved.number(state, "value", 0xFF) & (SYSTEM_RESET | RESET_CPU | FULL_RESET)
