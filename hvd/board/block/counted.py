"""Counting what goes through an image, in the guest's counters page."""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from hvd.board.block.image import BlockImage, total
from hvd.trace.counters import DISK_FIELDS
from hvd.trace.points import BY_NAME

_MASK: Final = (1 << 64) - 1
_WORD: Final = {name: number for number, name in enumerate(DISK_FIELDS)}
_READ_BYTES, _WRITTEN_BYTES = _WORD["read_bytes"], _WORD["written_bytes"]
_READS, _WRITES, _FLUSHES, _DISCARDS = (_WORD[name] for name in ("reads", "writes", "flushes", "discards"))
_POINTS: Final = {_WORD[f"{what}s"]: BY_NAME[f"disk-{what}"].id for what in ("read", "write")} | {
    _FLUSHES: BY_NAME["disk-flush"].id, _DISCARDS: BY_NAME["disk-discard"].id,
}  # fmt: skip
_ERRORS, _BUSY_NS = _WORD["errors"], _WORD["busy_ns"]


class CountedImage:
    """An image whose operations are counted when they are done; one that fails is an error and no operation."""

    def __init__(
        self, image: BlockImage, counters: ctypes.Array[ctypes.c_uint64], note: Callable[[int, int, int, int, int], None] = lambda *_: None
    ) -> None:
        """counters: HotBoard.disk_counters(). note: told the trace point of each operation, when it began (CLOCK_MONOTONIC, ns), offset,
        length, and 0 or minus the errno as 64 bits."""
        self.size_bytes = image.size_bytes
        self.read_only = image.read_only
        self.uncounted = image
        self._counters = counters
        self._note = note

    @contextmanager
    def _operation(self, word: int, offset: int = 0, length: int = 0) -> Iterator[None]:
        counters = self._counters
        start, result = time.monotonic_ns(), 0
        try:
            yield
        except OSError as error:
            counters[_ERRORS] += 1
            result = -(error.errno or errno.EIO) & _MASK
            raise
        finally:
            counters[_BUSY_NS] += time.monotonic_ns() - start
            self._note(_POINTS[word], start, offset, length, result)
        counters[word] += 1

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._operation(_READS, offset, total(buffers)):
            self.uncounted.read(offset, buffers)
        self._counters[_READ_BYTES] += total(buffers)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._operation(_WRITES, offset, total(buffers)):
            self.uncounted.write(offset, buffers)
        self._counters[_WRITTEN_BYTES] += total(buffers)

    def flush(self) -> None:
        with self._operation(_FLUSHES):
            self.uncounted.flush()

    def discard(self, offset: int, length: int) -> None:
        with self._operation(_DISCARDS, offset, length):
            self.uncounted.discard(offset, length)

    def close(self) -> None:
        self.uncounted.close()
