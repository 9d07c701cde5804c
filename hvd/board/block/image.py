"""The contract between a disk's image and the device in front of it, and the helpers that images share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

# Buffers of one preadv or pwritev (IOV_MAX of Linux).
MOST_BUFFERS: Final = 1024


class BlockImage(Protocol):
    """Bytes by offset, for one thread at a time.

    The device checks what its guest asks for: offset and length lie within the image (ValueError otherwise, a bug of
    the device); sectors are the device's business, any offset and length will do. Every OSError is what a guest sees
    as an I/O error; the image is consistent afterwards and goes on working as far as its files do.
    """

    @property
    def size_bytes(self) -> int:
        """A multiple of 512, of a CD-ROM of 2048; more than 0. Does not change."""

    @property
    def read_only(self) -> bool:
        """write() and discard() raise OSError EROFS then."""

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, one after the other, with what lies at offset. Raises OSError; what the buffers hold then
        is anything."""

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """As a disk with a volatile write cache: it survives the host's crash after the next flush(). Raises OSError;
        each byte of the range is then the old or the new one."""

    def flush(self) -> None:
        """What was written before is on the host's disk when this returns. Raises OSError."""

    def discard(self, offset: int, length: int) -> None:
        """The range reads as zeroes from now on, its room on the host's disk is given back. Serves WRITE_ZEROES, too.
        Raises OSError."""

    def close(self) -> None:
        """Flush, and let go of the files; no error when it is closed. Raises OSError when the flush failed."""


def total(buffers: Sequence[memoryview]) -> int:
    """Bytes of all buffers."""
    return sum(buffer.nbytes for buffer in buffers)


def check_range(offset: int, length: int, size: int) -> None:
    """Raises ValueError."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{length} bytes at {offset} are not within the {size} of the image")


def cut(buffers: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """The part [start, start + length) of the buffers taken as one."""
    part: list[memoryview] = []
    for buffer in buffers:
        size = buffer.nbytes
        if start < size and length:
            piece = buffer[start : start + length]
            part.append(piece)
            length -= piece.nbytes
        start = max(0, start - size)
        if not length:
            break
    return part


def groups(buffers: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    """The buffers in portions that one system call takes."""
    for first in range(0, len(buffers), MOST_BUFFERS):
        yield buffers[first : first + MOST_BUFFERS]


def read_all(fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """preadv to the last byte. Raises OSError; EIO where the file ends too early."""
    for group in groups(buffers):
        wanted = total(group)
        done = os.preadv(fd, group, offset)
        while done < wanted:
            rest = cut(group, done, wanted - done)
            more = os.preadv(fd, rest, offset + done)
            if not more:
                raise OSError(errno.EIO, f"the file ends at {offset + done}, before its image does")
            done += more
        offset += wanted


def write_all(fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """pwritev to the last byte. Raises OSError."""
    for group in groups(buffers):
        wanted = total(group)
        done = os.pwritev(fd, group, offset)
        while done < wanted:
            # A full disk takes part of a write; the next one says why.
            done += os.pwritev(fd, cut(group, done, wanted - done), offset + done)
        offset += wanted


def zero(buffers: Sequence[memoryview]) -> None:
    for buffer in buffers:
        buffer[:] = bytes(buffer.nbytes)
