"""Split virtqueues (VIRTIO 1.2, 2.7), the device's side, with indirect descriptors and event indices.

Everything in a ring was written by the guest. What breaks the rules raises QueueError, which the transport turns into
DEVICE_NEEDS_RESET; nothing outside guest memory is ever touched. One vcpu, in whose thread all of this runs, so that
the guest does not change a ring while it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from hvd.board import saved
from hvd.board.pci.registers import QueueRegisters
from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.board.memory import GuestMemory

LARGEST: Final = 1024  # descriptors of a queue, and of a chain
MOST_BYTES: Final = 1 << 32  # of a chain (2.7.4)
MOST_AT_ONCE: Final = 1 << 20  # that are copied
DESCRIPTOR: Final = Struct("<QIHH")  # address, length, flags, next
DESCRIPTOR_BYTES: Final = 16
NEXT, WRITE, INDIRECT = 1, 2, 4
INDEX: Final = Struct("<H")
USED: Final = Struct("<II")  # head, bytes written
NO_INTERRUPT: Final = 1  # avail.flags


class QueueError(Exception):
    """The driver broke the rules of virtqueues; the text says which."""


@dataclass(slots=True)
class Chain:
    """A buffer that the driver offered: what the device reads, then what it writes; in guest memory, without copies."""

    head: int
    readable: list[memoryview] = field(default_factory=list)
    writable: list[memoryview] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)  # guest-physical address and length of each writable one

    def read(self, most: int = MOST_AT_ONCE) -> bytes:
        """What it holds for the device, up to so many bytes: a chain may name all of guest memory many times over."""
        pieces = []
        for view in self.readable:
            pieces.append(view[:most])
            most -= len(pieces[-1])
            if most <= 0:
                break
        return b"".join(pieces)

    @property
    def capacity(self) -> int:
        """Bytes that the device may write."""
        return sum(map(len, self.writable))

    def write(self, data: bytes | memoryview) -> int:
        """From the first writable byte on, as much as there is room for; returns how much."""
        written = 0
        for view in self.writable:
            piece = data[written : written + len(view)]
            view[: len(piece)] = piece
            written += len(piece)
            if written == len(data):
                break
        return written


class Queue:
    """One queue. The transport configures and enables it; a device pops chains and pushes them back."""

    def __init__(self, memory: GuestMemory, changed: Callable[[list[int]], None], most: int) -> None:
        """changed(ranges): guest memory was written; addresses and lengths in turn. most: descriptors, a power of two
        up to LARGEST."""
        self._memory, self._changed = memory, changed
        self._buffer = memory.buffer
        self.most = most
        self.registers = QueueRegisters()
        self.reset()

    def move(self, registers: QueueRegisters) -> None:
        """From now on the driver writes there."""
        self.registers = registers
        self.reset()

    def reset(self) -> None:
        registers = self.registers
        registers.most = registers.size = self.most
        registers.enabled = False
        registers.descriptors = registers.driver = registers.device = 0
        # What of that holds while it is enabled.
        self.size = self.most
        self.descriptors = self.driver = self.device = 0  # guest-physical addresses
        self.enabled = False
        self._indirect = self._events = False
        # How far it is (native/pci.h): where a cell goes on, too.
        registers.next = registers.used = registers.told = 0
        self._written: list[int] = []  # what changed() has to be told of
        self._ring_written = False  # and of the used ring

    # ---- by the transport

    def enable(self, others: list[Queue]) -> None:
        """Begin to use the rings. Raises QueueError when they cannot be: by their size, place, alignment."""
        registers = self.registers
        self.size = size = registers.size
        self.descriptors, self.driver, self.device = registers.descriptors, registers.driver, registers.device
        if not 0 < size <= self.most or size & (size - 1):
            raise QueueError(f"its size is {size}, which is no power of two from 1 to {self.most}")
        self._find_rings()
        mine = self.ranges()
        for index, (start, end) in enumerate(mine):
            for other_start, other_end in (*mine[index + 1 :], *(part for queue in others for part in queue.ranges())):
                if start < other_end and other_start < end:
                    raise QueueError(f"its rings overlap at {max(start, other_start):#x}")
        self.enabled = True
        registers.enabled = True

    def set_features(self, indirect: bool, events: bool) -> None:
        """What was negotiated (2.7.7 indirect descriptors, 2.7.10 event indices)."""
        self._indirect, self._events = indirect, events

    def ranges(self) -> list[tuple[int, int]]:
        """(start, end) of descriptor table, available ring and used ring."""
        return [
            (self.descriptors, self.descriptors + DESCRIPTOR_BYTES * self.size),
            (self.driver, self.driver + 6 + 2 * self.size),
            (self.device, self.device + 6 + 8 * self.size),
        ]

    def _find_rings(self) -> None:
        offsets = []
        for (start, end), alignment, name in zip(
            self.ranges(), (16, 2, 4), ("descriptor table", "available ring", "used ring"), strict=True
        ):
            if start % alignment:
                raise QueueError(f"its {name} at {start:#x} is not aligned to {alignment} bytes")
            try:
                offsets.append(self._memory.file_offset(start, end - start))
            except HvdError:
                raise QueueError(f"its {name} of {end - start} bytes at {start:#x} is not in memory") from None
        # Offsets in the memory's file from here on.
        self._table, self._avail, self._ring = offsets
        self._used_event = self._avail + 4 + 2 * self.size
        self._avail_event = self._ring + 4 + 8 * self.size

    @property
    def pushed(self) -> int:
        """Buffers given back so far, modulo 65536."""
        return int(self.registers.used)

    # ---- by the device

    def pop(self) -> Chain | None:
        """The next buffer that the driver offers. None: there is none, and the driver notifies when there is."""
        if not self.enabled:
            return None
        (offered,) = INDEX.unpack_from(self._buffer, self._avail + 2)
        registers = self.registers
        waiting = (offered - registers.next) & 0xFFFF
        if not waiting:
            if self._events:
                INDEX.pack_into(self._buffer, self._avail_event, registers.next)
                self._ring_written = True
            return None
        if waiting > self.size:
            raise QueueError(f"{waiting} buffers are available at once, in a ring of {self.size}")
        (head,) = INDEX.unpack_from(self._buffer, self._avail + 4 + 2 * (registers.next & self.size - 1))
        chain = self._walk(head)
        registers.next += 1
        return chain

    def unpop(self, count: int) -> None:
        """Take the last `count` pops back: the device has not enough for them, or no room, and comes again later."""
        self.registers.next -= count

    def _walk(self, head: int) -> Chain:
        buffer, table, size = self._buffer, self._table, self.size
        chain = Chain(head)
        readable, writable, ranges = chain.readable, chain.writable, chain.ranges
        memory, view, low_end = self._memory.whole, self._memory.view, self._memory.low_ram_end
        unpack = DESCRIPTOR.unpack_from
        index, steps, total, indirect = head, 0, 0, False
        while True:
            if index >= size:
                raise QueueError(f"descriptor {index} of a table of {size}")
            steps += 1
            if (steps > size and not indirect) or steps > LARGEST:
                raise QueueError(
                    f"the chain that begins at descriptor {head} is longer than {min(steps - 1, LARGEST)}: a loop?"
                )
            address, length, flags, index = unpack(buffer, table + DESCRIPTOR_BYTES * index)
            if flags & INDIRECT:
                if not self._indirect or indirect or flags & (NEXT | WRITE):
                    raise QueueError(f"an indirect descriptor with flags {flags:#x} where none is allowed")
                if not length or length % DESCRIPTOR_BYTES or length > DESCRIPTOR_BYTES * LARGEST:
                    raise QueueError(f"an indirect table of {length} bytes")
                table = self._offset(address, length)
                index, size, indirect = 0, length // DESCRIPTOR_BYTES, True
                continue
            total += length
            if total > MOST_BYTES:
                raise QueueError(f"a chain of more than {MOST_BYTES} bytes")
            end = address + length
            if end <= low_end:  # there addresses are offsets in the memory file
                part = memory[address:end]
            else:
                try:
                    part = view(address, length)
                except HvdError:
                    raise QueueError(f"a buffer of {length} bytes at {address:#x} is not in memory") from None
            if flags & WRITE:
                writable.append(part)
                ranges += (address, length)
            elif writable:
                raise QueueError("a readable buffer follows a writable one")
            else:
                readable.append(part)
            if not flags & NEXT:
                return chain

    def _offset(self, address: int, length: int) -> int:
        try:
            return self._memory.file_offset(address, length)
        except HvdError:
            raise QueueError(f"an indirect table of {length} bytes at {address:#x} is not in memory") from None

    def push(self, chain: Chain, written: int) -> None:
        """Give a buffer back: the device wrote its first `written` writable bytes. The driver hears of it by finish()."""
        if written:
            self._written += chain.ranges
        registers = self.registers
        USED.pack_into(self._buffer, self._ring + 4 + 8 * (registers.used & self.size - 1), chain.head, written)
        registers.used += 1
        INDEX.pack_into(self._buffer, self._ring + 2, registers.used)
        self._ring_written = True

    def finish(self) -> bool:
        """After pops and pushes: tell of written memory. Does the driver want an interrupt for what was pushed?"""
        if not self._ring_written:
            return False
        self._ring_written = False
        self._written += (self.device, 6 + 8 * self.size)
        written, self._written = self._written, []
        self._changed(written)
        new, old = int(self.registers.used), int(self.registers.told)
        if new == old:
            return False
        self.registers.told = new
        if not self._events:
            return not INDEX.unpack_from(self._buffer, self._avail)[0] & NO_INTERRUPT
        event: int = INDEX.unpack_from(self._buffer, self._used_event)[0]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF  # 2.7.10.1, vring_need_event

    # ---- snapshots

    def save(self) -> dict[str, Any]:
        registers = self.registers
        return {
            "size": registers.size, "descriptors": registers.descriptors, "driver": registers.driver, "device": registers.device,
            "enabled": self.enabled, "indirect": self._indirect, "events": self._events,
            "next": registers.next, "used": registers.used, "told": registers.told,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Guest memory need not be there yet. Raises ValueError, TypeError."""
        saved.only(state, frozenset(self.save()), "a queue")
        self.reset()
        registers = self.registers
        registers.size = saved.number(state, "size", 0xFFFF, self.most)
        registers.descriptors, registers.driver, registers.device = (
            saved.number(state, name, (1 << 64) - 1) for name in ("descriptors", "driver", "device")
        )
        self.set_features(saved.flag(state, "indirect"), saved.flag(state, "events"))
        if saved.flag(state, "enabled"):
            try:
                self.enable([])
            except QueueError as error:
                raise ValueError(f"a queue of the snapshot: {error}") from error
        registers.next, registers.used, registers.told = (saved.number(state, name, 0xFFFF) for name in ("next", "used", "told"))
