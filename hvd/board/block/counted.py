"""Counting what goes through an image, in the guest's counters page."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from hvd.board.block.image import BlockImage, total
from hvd.trace.counters import DISK_FIELDS

_WORD: Final = {name: number for number, name in enumerate(DISK_FIELDS)}
_READ_BYTES, _WRITTEN_BYTES = _WORD["read_bytes"], _WORD["written_bytes"]
_READS, _WRITES, _FLUSHES, _DISCARDS = (_WORD[name] for name in ("reads", "writes", "flushes", "discards"))
_ERRORS, _BUSY_NS = _WORD["errors"], _WORD["busy_ns"]


class CountedImage:
    """An image whose operations are counted when they are done; one that fails is an error and no operation."""

    def __init__(self, image: BlockImage, counters: ctypes.Array[ctypes.c_uint64]) -> None:
        """counters: HotBoard.disk_counters()."""
        self.size_bytes = image.size_bytes
        self.read_only = image.read_only
        self.uncounted = image
        self._counters = counters

    @contextmanager
    def _operation(self, word: int) -> Iterator[None]:
        counters = self._counters
        start = time.monotonic_ns()
        try:
            yield
        except OSError:
            counters[_ERRORS] += 1
            raise
        finally:
            counters[_BUSY_NS] += time.monotonic_ns() - start
        counters[word] += 1

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._operation(_READS):
            self.uncounted.read(offset, buffers)
        self._counters[_READ_BYTES] += total(buffers)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        with self._operation(_WRITES):
            self.uncounted.write(offset, buffers)
        self._counters[_WRITTEN_BYTES] += total(buffers)

    def flush(self) -> None:
        with self._operation(_FLUSHES):
            self.uncounted.flush()

    def discard(self, offset: int, length: int) -> None:
        with self._operation(_DISCARDS):
            self.uncounted.discard(offset, length)

    def close(self) -> None:
        self.uncounted.close()
