"""Files with holes (disk overlays, blobs) as two sections: NAME has the pieces that are there, NAME.index where they belong.

The index is pairs of 64-bit little-endian numbers: first the file's size and the number of pieces, then the offset and
length of each, ascending. What is not there reads as zeroes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hvd.errors import HvdError
from hvd.snapshot.container import COPY_BYTES, FULL, Reader, Writer
from hvd.snapshot.pages import crc32c, extents

PAIR: Final = struct.Struct("<QQ")
MOST_INDEX_BYTES: Final = 256 << 20


def index_name(name: str) -> str:
    return f"{name}.index"


def pieces_of(fd: int) -> tuple[int, list[tuple[int, int]]]:
    """The file's size, and (offset, length) of what is in it."""
    size = os.fstat(fd).st_size
    return size, [(start, stop - start) for start, stop in extents(fd, 0, size)]


def pack_index(size: int, pieces: list[tuple[int, int]]) -> bytes:
    return b"".join((PAIR.pack(size, len(pieces)), *(PAIR.pack(*piece) for piece in pieces)))


def write_file(writer: Writer, name: str, path: Path) -> None:
    """Both sections. Nobody may write to the file meanwhile. Raises as Writer."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, pieces = pieces_of(fd)
        with writer.section(name) as section:
            for offset, length in pieces:
                section.copy(fd, offset, length)
        writer.add(index_name(name), pack_index(size, pieces))
    finally:
        os.close(fd)


def read_pieces(reader: Reader, name: str) -> tuple[int, list[tuple[int, int]]]:
    """The file's size and its pieces, checked. Raises HvdError SNAPSHOT_DAMAGED."""
    index = reader.read(index_name(name), MOST_INDEX_BYTES)
    if not index or len(index) % PAIR.size:
        raise reader.damaged(f"the index of {name} is torn")
    (size, count), *pieces = PAIR.iter_unpack(index)
    end = total = 0
    for offset, length in pieces:
        if offset < end or not length:
            raise reader.damaged(f"the index of {name} makes no sense")
        end = offset + length
        total += length
    if count != len(pieces) or end > size or size > 1 << 62 or total != reader.section(name).bytes:
        raise reader.damaged(f"the index of {name} does not fit it")
    return size, pieces


def read_file(reader: Reader, name: str, path: Path) -> None:
    """Make the file, on the disk when this returns; one that is there is replaced, in one step. Raises HvdError
    SNAPSHOT_DAMAGED, DISK_FULL (the old one is there then); OSError."""
    size, pieces = read_pieces(reader, name)
    new = path.with_name(f"{path.name}.new")
    try:
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            _fill(reader, name, fd, pieces)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise HvdError("DISK_FULL", directory=path.parent, what=name) from error
        raise


def _fill(reader: Reader, name: str, fd: int, pieces: list[tuple[int, int]]) -> None:
    section = reader.section(name)
    at, crc, buffer = section.offset, 0, bytearray(COPY_BYTES)
    for offset, length in pieces:
        for start in range(0, length, COPY_BYTES):
            view = memoryview(buffer)[: min(COPY_BYTES, length - start)]
            if os.preadv(reader.fd, [view], at) != len(view):
                raise reader.damaged(f"it ends within {name}")
            crc = crc32c(view, crc)
            at += len(view)
            done = 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + start + done)
    if crc != section.crc:
        raise reader.damaged(f"section {name} has a wrong checksum")


def stream_file(fd: int) -> Iterator[bytes]:
    """The bytes of section NAME, piece by piece."""
    for offset, length in pieces_of(fd)[1]:
        for start in range(0, length, COPY_BYTES):
            yield os.pread(fd, min(COPY_BYTES, length - start), offset + start)
