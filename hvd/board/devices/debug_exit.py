"""The debug exit: one port at which a test kernel ends its machine. The value written is the guest's exit code as it
stands (QEMU's isa-debug-exit answers 2n + 1 instead, which costs half of the codes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hvd.board import saved
from hvd.board.bus import floating

if TYPE_CHECKING:
    from hvd.board.machine import Machine

PORT = 0xF4


class DebugExit:
    """Port 0xF4, 1 to 4 bytes wide: OUT ends the guest as EXITED, IN floats."""

    name: ClassVar[str] = "debug-exit"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def ports(self) -> Sequence[range]:
        # Four, so that a 32-bit OUT arrives whole.
        return (range(PORT, PORT + 4),)

    def read_port(self, port: int, size: int) -> int:
        return floating(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == PORT:
            self._machine.exit(value)

    def reset(self) -> None:
        """It has no state."""

    def save(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(), self.name)
