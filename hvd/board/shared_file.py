"""A file that the runner shares with the daemon."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


class SharedFile:
    """A file of the guest directory, mapped for the C side.

    Its blocks are allocated as they are written: whoever switches a trace on allocates the ring's (posix_fallocate), so
    that a full disk is that reader's error and not the guest's.
    """

    def __init__(self, path: Path | None, size: int) -> None:
        self.size = 0
        self.address: int | None = None
        if path is None:
            return
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.size = size
        self._first: ctypes.c_char | None = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._first)

    def close(self) -> None:
        if self.address is not None:
            self.address, self._first = None, None
            self._map.close()
