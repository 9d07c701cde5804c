"""A file that the runner shares with the daemon."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


class SharedFile:
    """A file of the guest directory, mapped for the C side.

    Its blocks are allocated as they are written: whoever switches a trace on allocates the ring's (posix_fallocate), so
    that a full disk is that reader's error and not the guest's. But those that are written at once are allocated at once: better to find a full
    disk now than by SIGBUS later.
    """

    def __init__(self, path: Path | None, size: int, written: int) -> None:
        """size: bytes of it; written: of its beginning, at once. Raises OSError."""
        self.size = 0
        self.address: int | None = None
        if path is None:
            return
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A new one is written: a page that only has room takes ext4 0.25 ms when its first byte is written.
            if os.fstat(fd).st_size or os.pwrite(fd, bytes(written), 0) < written:
                os.posix_fallocate(fd, 0, written)
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
