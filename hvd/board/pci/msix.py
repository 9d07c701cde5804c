"""MSI-X (PCI 3.0, 6.8.2): a table of messages and the bits of those that wait, in a BAR of the function."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from hvd.board import saved
from hvd.board.bus import floating
from hvd.board.pci.function import COMMAND, Bar, PciFunction

CAPABILITY: Final = 0x11
ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14
ENTRY: Final = struct.Struct("<QII")  # address, data, vector control
ENTRY_BYTES: Final = 16
CONTROL_OFFSET: Final = 12
ENTRY_MASKED: Final = 1
PENDING_BITS: Final = 0x800  # offset in the BAR
BAR_BYTES: Final = 4096
MOST_VECTORS: Final = PENDING_BITS // ENTRY_BYTES


class Msix:
    """The capability of one function, and what its BAR reads and writes."""

    def __init__(self, function: PciFunction, bar: Bar, vectors: int, send: Callable[[int, int], None]) -> None:
        """send(address, data): the message, as a write of four bytes."""
        if not 0 < vectors <= MOST_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors")
        self._function, self._send = function, send
        self.vectors = vectors
        body = struct.pack("<HII", vectors - 1, bar.index, PENDING_BITS | bar.index)
        writable = struct.pack("<H", ENABLE | FUNCTION_MASK)
        # Offset of its message control in the function's configuration.
        self.control = function.config.add_capability(CAPABILITY, body, writable) + 2
        self._table = bytearray(ENTRY_BYTES * vectors)
        self.reset()

    def reset(self) -> None:
        """All vectors are masked."""
        self._table[:] = ENTRY.pack(0, 0, ENTRY_MASKED) * self.vectors
        self._wait(0)

    def _wait(self, pending: int) -> None:
        """These vectors wait: what can let them go is told of."""
        self._pending = pending
        for offset in (COMMAND, self.control):
            self._function.config.tell(range(offset, offset + 2), bool(pending))

    @property
    def enabled(self) -> bool:
        return bool(self._function.config.data[self.control + 1] & ENABLE >> 8)

    @property
    def _may_send(self) -> bool:
        """As far as the whole function is concerned."""
        control = self._function.config.data[self.control + 1] << 8
        return control & (ENABLE | FUNCTION_MASK) == ENABLE and self._function.may_master

    def fire(self, vector: int) -> None:
        """Send a vector's message, or remember it while it is masked. A vector that does not exist is lost."""
        if not 0 <= vector < self.vectors:
            return
        if self._may_send:
            address, data, masked = ENTRY.unpack_from(self._table, ENTRY_BYTES * vector)
            if not masked & ENTRY_MASKED:
                self._send(address, data)
                return
        self._wait(self._pending | 1 << vector)

    def deliver(self) -> None:
        """Send what waits and is not masked any more: after everything that can unmask."""
        if not self._pending or not self._may_send:
            return
        for vector in range(self.vectors):
            if self._pending >> vector & 1:
                address, data, masked = ENTRY.unpack_from(self._table, ENTRY_BYTES * vector)
                if not masked & ENTRY_MASKED:
                    self._wait(self._pending & ~(1 << vector))
                    self._send(address, data)

    def read(self, offset: int, size: int) -> int:
        """Of the BAR. The specification allows aligned accesses of four and eight bytes; others are answered, too."""
        if offset + size <= len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= PENDING_BITS:
            return self._pending >> 8 * (offset - PENDING_BITS) & floating(size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        self.deliver()

    def save(self) -> dict[str, Any]:
        return {"table": self._table.hex(), "pending": self._pending}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, TypeError."""
        saved.only(state, frozenset(self.save()), "MSI-X")
        self._table[:] = saved.data(state, "table", bytes(self._table))
        self._wait(saved.number(state, "pending", (1 << self.vectors) - 1))
