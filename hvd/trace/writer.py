"""A ring and a counters page that the daemon fills itself, for guests whose process does not (containers): the same files in the
same form, so that whoever reads them need not know who wrote them.

A crossing that does not fit into one record goes on in the next ones, which have the flag FLAG_MORE and the same point and kind
(client/hvapi/record.py). A record of kind LOST tells how many records were lost before they came here.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from hvapi.record import FLAG_MORE, FLAG_TEXT, FLAG_UNTIMED, PAYLOAD_BYTES, PIECE, RECORD, RECORD_BYTES

from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.trace.counters import (
    BUCKET_NS,
    BUCKETS,
    EXTENDED_BASE,
    EXTENDED_OFFSET,
    HEADER,
    HEADER_FIELDS,
    HISTOGRAM_OFFSET,
    MAGIC,
    PAGE_BYTES,
    POINT_WORDS,
    POINTS,
    POINTS_OFFSET,
    VERSION,
)
from hvd.trace.points import BY_NAME, BackendId, Kind
from hvd.trace.ring import HEADER_BYTES, create_ring, read_header

_LOST = BY_NAME["lost"]
_RECORDS_OFFSET = 8 + 8 * HEADER_FIELDS.index("records")
_WORDS = struct.Struct("<5Q")
_HEAD_OFFSET = 16
_MOST_NS = 0xFFFFFFFF


class RecordWriter:
    """Of one guest's run. Must be closed. Not thread-safe."""

    def __init__(self, directory: Path, backend: BackendId, mask: int) -> None:
        """mask: kinds that are on, for a ring that does not exist yet. What an earlier writer left is gone on with.
        Raises HvdError DISK_FULL, TRACE_UNREADABLE, OSError."""
        path = directory / names.TRACE
        if not path.exists():
            create_ring(path, names.TRACE_RECORDS, mask)
        self._backend = int(backend)
        self._counters = _Page(directory / names.COUNTERS)
        try:
            self._ring = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._counters.close()
            raise
        try:
            self._capacity, self._head = read_header(self._ring)
        except BaseException:
            self.close()
            raise
        self._pending: list[bytes] = []

    def add(
        self, point: int, kind: Kind, time_ns: int, duration_ns: int | None, rip: int, words: Sequence[int], texts: dict[int, bytes]
    ) -> None:
        """One crossing, seen with the next flush(). words: its arguments in the point's order, at least 4; texts: position of an
        argument -> what it points to."""
        self._counters.count(point, duration_ns)
        duration, flags = (0, FLAG_UNTIMED) if duration_ns is None else (min(duration_ns, _MOST_NS), 0)
        pending, head, backend = self._pending, self._head, self._backend
        pending.append(
            RECORD.pack(time_ns, duration, point, kind, backend, 0, flags, (head + len(pending)) & _MOST_NS, rip, *words[:4])
        )
        for at in range(4, len(words), 5):
            payload = _WORDS.pack(*words[at : at + 5], *[0] * (at + 5 - len(words)))
            number = (head + len(pending)) & _MOST_NS
            pending.append(PIECE.pack(time_ns, PAYLOAD_BYTES, point, kind, backend, 0, FLAG_MORE, number, payload))
        for position, text in texts.items():
            for at in range(0, max(1, len(text)), PAYLOAD_BYTES):
                piece = text[at : at + PAYLOAD_BYTES]
                number = (head + len(pending)) & _MOST_NS
                flags = FLAG_MORE | FLAG_TEXT
                pending.append(PIECE.pack(time_ns, len(piece), point, kind, backend, position, flags, number, piece))

    def count(self, point: int, count: int, total_ns: int, max_ns: int, histogram: Sequence[int]) -> None:
        """Crossings of which there are no records, for the counters page."""
        self._counters.add(point, count, total_ns, max_ns, histogram)

    def lose(self, count: int, uncounted: int = 0) -> None:
        """So many records (of 64 bytes) did not come here. uncounted: crossings that nobody told count() of."""
        if uncounted:
            self._counters.add(_LOST.id, uncounted, 0, 0, ())
        number = (self._head + len(self._pending)) & _MOST_NS
        self._pending.append(
            RECORD.pack(time.monotonic_ns(), 0, _LOST.id, _LOST.kind, self._backend, 0, FLAG_UNTIMED, number, 0, count, 0, 0, 0)
        )

    @property
    def pending(self) -> int:
        """Records that wait for flush(); keep it well below the ring's capacity."""
        return len(self._pending)

    def flush(self) -> None:
        """Raises OSError."""
        if not self._pending:
            return
        slot = self._head & (self._capacity - 1)
        until_end = self._capacity - slot
        os.pwrite(self._ring, b"".join(self._pending[:until_end]), HEADER_BYTES + slot * RECORD_BYTES)
        if len(self._pending) > until_end:
            os.pwrite(self._ring, b"".join(self._pending[until_end:]), HEADER_BYTES)
        self._head += len(self._pending)
        self._pending.clear()
        os.pwrite(self._ring, self._head.to_bytes(8, "little"), _HEAD_OFFSET)
        self._counters.set_records(self._head)

    def close(self) -> None:
        os.close(self._ring)
        self._counters.close()


class _Page:
    """A counters page, mapped: all of it is allocated first, so that a full disk is an error and no SIGBUS."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fresh = os.fstat(descriptor).st_size < HEADER.size
            try:
                os.posix_fallocate(descriptor, 0, PAGE_BYTES)
            except OSError as error:
                raise HvdError("DISK_FULL", directory=path.parent, what="the counters of a trace") from error
            self._map = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)
        if fresh:
            HEADER.pack_into(self._map, 0, MAGIC, VERSION, time.monotonic_ns(), *[0] * (len(HEADER_FIELDS) - 1))
        self._words = memoryview(self._map).cast("Q")

    @staticmethod
    def _places(point: int) -> tuple[int, int]:
        if point < POINTS:
            return POINTS_OFFSET // 8 + point * POINT_WORDS, HISTOGRAM_OFFSET // 8 + point * BUCKETS
        at = EXTENDED_OFFSET // 8 + (point - EXTENDED_BASE) * (POINT_WORDS + BUCKETS)
        return at, at + POINT_WORDS

    def add(self, point: int, count: int, total_ns: int, max_ns: int, histogram: Sequence[int]) -> None:
        words = self._words
        at, buckets = self._places(point)
        words[at] += count
        words[at + 1] += total_ns
        words[at + 2] = max(words[at + 2], max_ns)
        for index, more in enumerate(histogram):
            words[buckets + index] += more

    def count(self, point: int, duration_ns: int | None) -> None:
        words = self._words
        at, histogram = self._places(point)
        words[at] += 1
        if duration_ns is not None:
            words[at + 1] += duration_ns
            if duration_ns > words[at + 2]:
                words[at + 2] = duration_ns
            words[histogram + bisect_left(BUCKET_NS, duration_ns)] += 1

    def set_records(self, number: int) -> None:
        self._words[_RECORDS_OFFSET // 8] = number

    def close(self) -> None:
        self._words.release()
        self._map.close()
