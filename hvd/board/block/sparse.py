"""Holes in files: making them, and copying files without filling them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
# _IOW(0x94, 9, int): the copy shares its blocks with the original until one of them changes (ioctl_ficlone(2)).
FICLONE: Final = 0x40049409
_NO_HOLES: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ZEROES: Final = bytes(1 << 20)
_COPY_BYTES: Final = 16 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, offset: int, length: int) -> None:
    """The range reads as zeroes and takes no room; on a file system without holes it is written with zeroes. Raises
    OSError."""
    if not length:
        return
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NO_HOLES:
        raise OSError(number, os.strerror(number))
    end = offset + length
    while offset < end:
        offset += os.pwrite(fd, _ZEROES[: end - offset], offset)


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of a file that are no holes. The file's position changes. Raises OSError."""
    size = os.fstat(fd).st_size
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def copy_sparse(source: int, target: int) -> None:
    """Copy a file into an empty one, holes as holes, shared blocks where the file system can. Raises OSError."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:  # another file system, or one that cannot
        for start, end in extents(source):
            while start < end:
                copied = os.copy_file_range(source, target, min(end - start, _COPY_BYTES), start, start)
                if not copied:
                    break  # it was cut meanwhile
                start += copied
        os.ftruncate(target, os.fstat(source).st_size)
