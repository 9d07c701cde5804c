"""Guest memory at the speed of memory: which pages are in use, and checksums (native/pages.c)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from errno import ENXIO

from hvd.board.libhv import slow_library
from hvd.board.memory import GuestMemory

PAGE = 4096


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-32C of what has `crc` so far and of this."""
    view = memoryview(data)
    if not view.nbytes:
        return crc
    if isinstance(data, bytes):
        return int(slow_library().hv_crc32c(crc, data, len(data)))
    if view.readonly:
        return crc32c(bytes(view), crc)
    anchor = ctypes.c_char.from_buffer(view)
    try:
        return int(slow_library().hv_crc32c(crc, ctypes.addressof(anchor), view.nbytes))
    finally:
        del anchor


def used_runs(memory: GuestMemory) -> Iterator[tuple[int, int]]:
    """The pages of RAM that are not all zero, as (guest-physical address, length), ascending. Reads no page that was
    never written, which would allocate it."""
    find = slow_library().hv_nonzero_run
    end = ctypes.c_size_t()
    for address, length, offset in memory.ram_spans():
        for start, stop in extents(memory.fd, offset, offset + length):
            base, size, at = memory.host_address + start, stop - start, 0
            while (at := find(base, size, at, ctypes.byref(end))) < size:
                yield address + start - offset + at, end.value - at
                at = end.value


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file has pages, within these offsets, on page boundaries."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == ENXIO:  # there is no data behind it
                return
            raise
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        if start < stop:
            yield start // PAGE * PAGE, stop
        start = stop
