"""virtio-console (VIRTIO 1.2, 5.3) with one port: the guest's hvc0, a second way to the console that COM1 has.

Output of both goes to the same log and the same viewers, in the order in which it was written. What is typed goes to
the one that wrote last: COM1 until the guest uses this one. An access to COM1 is an exit for each byte, here one
notification carries a buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.board.pci.registers import Purpose
from hvd.board.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from hvd.board.machine import Machine

RECEIVE, TRANSMIT = 0, 1
SIZE_FEATURE, EMERGENCY_WRITE_FEATURE = 1 << 0, 1 << 2
EMERGENCY_WRITE: Final = 8  # offset in the configuration
MOST_AT_ONCE: Final = 4096


class Console(VirtioDevice):
    name: ClassVar[str] = "virtio-console"
    device_id: ClassVar[int] = 3
    class_code: ClassVar[int] = 0x07_80_00
    queue_sizes = (16, 64)
    purposes: ClassVar[Mapping[int, Purpose]] = {RECEIVE: Purpose.TYPED}
    features = SIZE_FEATURE | EMERGENCY_WRITE_FEATURE

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._size = machine.console_size
        machine.on_kick(self._kicked)

    def _kicked(self) -> None:
        """Somebody typed, or a viewer's terminal has another size now."""
        if self._size != self._machine.console_size:
            self._size = self._machine.console_size
            self.config_changed()
        self.run_queue(RECEIVE)

    @property
    def config(self) -> bytes:
        rows, columns = self._machine.console_size
        return struct.pack("<HHII", columns, rows, 1, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """emerg_wr: a character without queues, for a guest that is in trouble."""
        if offset == EMERGENCY_WRITE:
            self._machine.console_write(data[:1])

    def handle_queue(self, index: int) -> None:
        queue = self.queues[index]
        if index == TRANSMIT:
            while (chain := queue.pop()) is not None:
                for view in chain.readable:
                    for at in range(0, len(view), MOST_AT_ONCE):
                        self._machine.console_write(bytes(view[at : at + MOST_AT_ONCE]))
                queue.push(chain, 0)
            return
        board = self._machine.board
        while board.console_waiting() and (chain := queue.pop()) is not None:
            queue.push(chain, chain.write(board.console_read(min(chain.capacity, MOST_AT_ONCE))))

    def save(self) -> dict[str, Any]:
        return {"typed": self._machine.board.typed_to_virtio}

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(self.save()), self.name)
        self._machine.board.typed_to_virtio = saved.flag(state, "typed")
