"""A raw image, read-only: the file's bytes are the disk's."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from hvd.board.block.image import check_range, cut, read_all, total, zero


class RawImage:
    """A file that does not change. What the disk has beyond the file's end reads as zeroes; what the file had when it
    was opened and has no longer, because somebody cut it, is an I/O error (pread, no mapping: no SIGBUS)."""

    read_only = True

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Raises OSError."""
        self.size_bytes = size_bytes
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.file_bytes = min(os.fstat(self._fd).st_size, size_bytes)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        length = total(buffers)
        check_range(offset, length, self.size_bytes)
        stored = max(0, min(length, self.file_bytes - offset))
        if stored == length:
            read_all(self._fd, offset, buffers)
            return
        read_all(self._fd, offset, cut(buffers, 0, stored))
        zero(cut(buffers, stored, length - stored))

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        raise OSError(errno.EROFS, "the disk is read-only")

    def flush(self) -> None:
        """Nothing was written."""

    def discard(self, offset: int, length: int) -> None:
        raise OSError(errno.EROFS, "the disk is read-only")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
