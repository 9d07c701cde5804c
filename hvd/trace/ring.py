"""A guest's trace ring (struct hv_trace_header and what follows, hvd/board/native/crossing.h), read by the daemon with
pread.

The vcpu's thread writes and never waits; each reader follows with a position of its own. One that falls behind by more
than the ring holds has lost records, and knows how many. The ring belongs to the guest's process: nothing in it is
trusted beyond its bounds.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from hvapi.record import FLAG_MORE, RECORD_BYTES

from hvd.errors import HvdError

MAGIC = 0x52545648  # "HVTR"
VERSION = 1
HEADER_BYTES = 64
_HEADER = struct.Struct("<IIIIQI")
ENABLED_OFFSET = 12
_HEAD_OFFSET = 16
_STACKS_OFFSET = 24
_SEQUENCE_OFFSET = 20  # of struct hv_record
_SEQUENCE = struct.Struct("<I")
_FLAGS_OFFSET = 18  # two bytes; FLAG_MORE is in the first
# 64 MiB of records: no ring of ours is larger, so a larger one is a lie.
MOST_RECORDS = 1 << 20


def write_enabled(path: Path, mask: int, stacks: int = 0) -> None:
    """Switch kinds on and off: bit n = kind n, stacks: of which the call stack is wanted. A ring that is not there (yet) is no error.

    Raises HvdError DISK_FULL when the ring has no room to be switched on in: it is a sparse file until then, and its
    writer, which maps it, could not be told otherwise than by SIGBUS.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # A file that was just created and has no header yet would grow to a wrong one.
        size = os.fstat(descriptor).st_size
        if size >= HEADER_BYTES:
            if mask:
                _allocate(descriptor, min(size, HEADER_BYTES + MOST_RECORDS * RECORD_BYTES), path)
            os.pwrite(descriptor, stacks.to_bytes(4, "little"), _STACKS_OFFSET)
            os.pwrite(descriptor, mask.to_bytes(4, "little"), ENABLED_OFFSET)
    finally:
        os.close(descriptor)


def create_ring(path: Path, records: int, mask: int, stacks: int = 0) -> None:
    """An empty ring for a guest that is about to start, with these kinds switched on: its writer keeps the word, so
    that nothing is missed. records: capacity, a power of two, the writer's own.

    Raises HvdError DISK_FULL, OSError; then there is no file.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, HEADER_BYTES + records * RECORD_BYTES, path)
            os.pwrite(descriptor, _HEADER.pack(MAGIC, VERSION, records, mask, 0, stacks), 0)
        finally:
            os.close(descriptor)
        os.rename(new, path)  # whoever finds it finds all of it
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _allocate(descriptor: int, size: int, path: Path) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HvdError("DISK_FULL", directory=path.parent, what="the trace ring") from error
        raise


def read_header(descriptor: int) -> tuple[int, int]:
    """Capacity and head of a ring. Raises HvdError TRACE_UNREADABLE when it is none of ours."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        raise HvdError("TRACE_UNREADABLE", problem="it has no header")
    magic, version, capacity, _, head, _ = _HEADER.unpack(header)
    if magic != MAGIC:
        raise HvdError("TRACE_UNREADABLE", problem=f"magic number {magic:#010x}, not {MAGIC:#010x}")
    if version != VERSION:
        raise HvdError("TRACE_UNREADABLE", problem=f"layout version {version}, this daemon reads {VERSION}")
    size = os.fstat(descriptor).st_size
    if not 0 < capacity <= MOST_RECORDS or capacity & (capacity - 1) or size < HEADER_BYTES + capacity * RECORD_BYTES:
        raise HvdError("TRACE_UNREADABLE", problem=f"capacity {capacity} in a file of {size} bytes")
    return int(capacity), int(head)


def read_enabled(path: Path) -> int:
    """The kinds that are switched on; 0 when there is no ring."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return int.from_bytes(os.pread(descriptor, 4, ENABLED_OFFSET), "little")
    finally:
        os.close(descriptor)


class RingReader:
    """One reader's way through a ring, from the newest record on.

    Raises HvdError TRACE_UNREADABLE when the file is not there or is no ring of ours.
    """

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HvdError("TRACE_UNREADABLE", problem=os.strerror(error.errno or 0)) from error
        try:
            self.capacity, _ = read_header(self._descriptor)
        except BaseException:
            self.close()
            raise
        self.position = 0 if from_start else self._head()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _head(self) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, _HEAD_OFFSET), "little")

    def unread(self) -> int:
        """How many records are still to come, lost ones included."""
        return max(0, self._head() - self.position)

    def read(self, most: int) -> tuple[bytes, int]:
        """Up to `most` records from the position on, as raw bytes, and how many were lost before the first of them."""
        head = self._head()
        if head == self.position:
            return b"", 0
        if head < self.position:
            # No writer goes back: the ring was cleared or scribbled over. Go on from where it is.
            self.position = head
            return b"", 0
        lost = 0
        oldest = head - self.capacity
        if self.position < oldest:
            # Leave some room, or the writer overtakes again while this is read.
            skip_to = min(head, oldest + self.capacity // 8)
            lost += skip_to - self.position
            self.position = skip_to
        count = min(most, head - self.position)
        first = self.position
        block = self._records(first, count)
        # What was overwritten meanwhile; slot `head` may be being written right now.
        overwritten = max(0, self._head() - self.capacity + 1 - first)
        if overwritten > 0 and (overwritten := min(overwritten, count)):
            block = block[overwritten * RECORD_BYTES :]
            lost += overwritten
        if first + count < head and self._is_more(first + count):
            # Cut before a record, not before what continues it.
            kept = len(block) // RECORD_BYTES
            while kept and block[(kept - 1) * RECORD_BYTES + _FLAGS_OFFSET] & FLAG_MORE:
                kept -= 1
            if kept > 1:
                count -= len(block) // RECORD_BYTES - (kept - 1)
                block = block[: (kept - 1) * RECORD_BYTES]
        self.position = first + count
        if block and not self._is_sequence(block, first + overwritten):
            # The numbers do not fit: a torn record, counted as lost rather than shown as something that never happened.
            block, torn = self._whole(block, first + overwritten)
            lost += torn
        return block, lost

    def _records(self, first: int, count: int) -> bytes:
        slot = first & (self.capacity - 1)
        until_end = min(count, self.capacity - slot)
        block = os.pread(self._descriptor, until_end * RECORD_BYTES, HEADER_BYTES + slot * RECORD_BYTES)
        if until_end < count:
            block += os.pread(self._descriptor, (count - until_end) * RECORD_BYTES, HEADER_BYTES)
        if len(block) != count * RECORD_BYTES:
            raise HvdError("TRACE_UNREADABLE", problem="the file was cut short")
        return block

    def _is_more(self, number: int) -> bool:
        """Does this record continue the one before it?"""
        place = HEADER_BYTES + (number & (self.capacity - 1)) * RECORD_BYTES + _FLAGS_OFFSET
        return bool(int.from_bytes(os.pread(self._descriptor, 1, place), "little") & FLAG_MORE)

    @staticmethod
    def _is_sequence(block: bytes, first: int) -> bool:
        last = first + len(block) // RECORD_BYTES - 1
        found = [_SEQUENCE.unpack_from(block, start + _SEQUENCE_OFFSET)[0] for start in (0, len(block) - RECORD_BYTES)]
        return found == [first & 0xFFFFFFFF, last & 0xFFFFFFFF]

    @staticmethod
    def _whole(block: bytes, first: int) -> tuple[bytes, int]:
        kept = []
        count = len(block) // RECORD_BYTES
        for index in range(count):
            start = index * RECORD_BYTES
            if _SEQUENCE.unpack_from(block, start + _SEQUENCE_OFFSET)[0] == (first + index) & 0xFFFFFFFF:
                kept.append(block[start : start + RECORD_BYTES])
        return b"".join(kept), count - len(kept)
