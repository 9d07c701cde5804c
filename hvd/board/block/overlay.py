"""What one guest has written to a disk, beside the image that it began with: a copy-on-write overlay.

One sparse file, little-endian; docs/disks.md has the format for those who write a reader:

    0                 header (struct _HEADER below, in one sector), ending in its CRC-32
    durable_offset    map 1: which granules are in this file, as of the last flush
    written_offset    map 2: the same, as of the last write
    data_offset       the granules, each at data_offset + its offset on the disk; all others are the base's

A map is a row of sectors of 512 bytes: CRC-32 of the rest, number of the sector, 4032 bits (bit n of the map is bit
n % 8 of byte n / 8). A sector of zeroes is one that was never written. A sector goes to the disk whole or not at all
(the assumption of every journal), so no crash tears a map.

Crash consistency, without a journal: data lands in granules that no map names yet; map 1 is written only when the data
is on the disk. So a crash of the host loses what came after the last flush, as a disk with a write cache does, and
nothing else: granules that lost their bit are the base's, as they were. A crash of the runner alone loses nothing, since
the page cache lives: map 2 is kept current by each write. It counts while the host's boot id is the header's; after
that map 1 does. One writer per file: flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hvd.board.block.image import check_range, cut, read_all, total, write_all, zero
from hvd.board.block.raw import RawImage
from hvd.board.block.sparse import punch
from hvd.errors import HvdError

MAGIC: Final = b"hvd-disk"
VERSION: Final = 1
SECTOR: Final = 512
LEAST_GRANULE: Final = 4096
# Beyond 256 GiB granules grow, so that the map in memory does not.
MOST_GRANULES: Final = 1 << 26
# Where the data begins is a multiple of this: no block of the host's file system holds both data and map.
ALIGNMENT: Final = 1 << 16

_HEADER: Final = struct.Struct("<8sIIQQQQQ64s36sI")
_MAP_SECTOR: Final = struct.Struct("<II504s")
_BITS_BYTES: Final = 504
_SECTOR_BITS: Final = _BITS_BYTES * 8
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Layout:
    """The header of an overlay."""

    granule: int
    size_bytes: int  # of the disk
    base_bytes: int  # of the base's file, at most size_bytes
    durable_offset: int
    written_offset: int
    data_offset: int
    base: str  # identity of the base, the last part of its path (its digest); empty = none
    boot_id: str

    def pack(self) -> bytes:
        fields = (
            self.granule, self.size_bytes, self.base_bytes, self.durable_offset, self.written_offset, self.data_offset,
            self.base.encode(), self.boot_id.encode(),
        )  # fmt: skip
        body = _HEADER.pack(MAGIC, VERSION, *fields, 0)[:-4]
        return (body + zlib.crc32(body).to_bytes(4, "little")).ljust(SECTOR, b"\0")

    @property
    def granules(self) -> int:
        return -(-self.size_bytes // self.granule)

    @property
    def map_sectors(self) -> int:
        return -(-self.granules // _SECTOR_BITS)

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.granules * self.granule


def plan(size_bytes: int, base: Path | None, boot_id: str) -> Layout:
    """The layout of a new overlay. Raises OSError when the base cannot be looked at."""
    granule = LEAST_GRANULE
    while size_bytes > granule * MOST_GRANULES:
        granule *= 2
    base_bytes = min(base.stat().st_size, size_bytes) if base else 0
    layout = Layout(granule, size_bytes, base_bytes, 0, 0, 0, base.name[:64] if base else "", boot_id)
    map_bytes = _aligned(layout.map_sectors * SECTOR, LEAST_GRANULE)
    durable = LEAST_GRANULE
    written = durable + map_bytes
    return replace(
        layout,
        durable_offset=durable,
        written_offset=written,
        data_offset=_aligned(written + map_bytes, max(ALIGNMENT, granule)),
    )


def _aligned(number: int, step: int) -> int:
    return -(-number // step) * step


def host_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def create_overlay(path: Path, size_bytes: int, base: Path | None) -> None:
    """A new, empty overlay in an existing directory, on the disk when this returns; one that is there is replaced.
    Raises OSError."""
    layout = plan(size_bytes, base, host_boot_id())
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, layout.pack(), 0)
        os.ftruncate(fd, layout.file_bytes)
        os.fsync(fd)
        os.rename(new, path)
    except OSError:
        os.unlink(new)
        raise
    finally:
        os.close(fd)


def read_layout(fd: int, path: Path) -> Layout:
    """Raises HvdError DISK_DAMAGED, OSError."""
    header = os.pread(fd, SECTOR, 0)
    if len(header) < SECTOR or header[:8] != MAGIC:
        raise _damaged(path, "it does not begin like an overlay of hvd")
    *_, checksum = _HEADER.unpack_from(header)
    _, version, granule, size, base_bytes, durable, written, data, base, boot_id, _ = _HEADER.unpack_from(header)
    if version != VERSION:
        raise _damaged(path, f"it has format version {version}, this hvd knows {VERSION}")
    if checksum != zlib.crc32(header[: _HEADER.size - 4]):
        raise _damaged(path, "the checksum of its header is wrong")
    # A right checksum is no promise: the numbers are checked against what this code would have made of them.
    layout = Layout(granule, size, base_bytes, durable, written, data, _text(base), _text(boot_id))
    map_bytes = layout.map_sectors * SECTOR if granule >= LEAST_GRANULE and size > 0 else 0
    if not (
        map_bytes
        and granule & (granule - 1) == 0
        and layout.granules <= MOST_GRANULES
        and base_bytes <= size
        and SECTOR <= durable <= written - map_bytes
        and written <= data - map_bytes
        and (durable | written) % SECTOR == 0
        and data % granule == 0
        and layout.file_bytes < 1 << 63
    ):
        raise _damaged(path, "its header makes no sense")
    if (found := os.fstat(fd).st_size) < layout.file_bytes:
        raise _damaged(path, f"it ends at byte {found}, but needs {layout.file_bytes}")
    return layout


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")


def _damaged(path: Path, problem: str) -> HvdError:
    return HvdError("DISK_DAMAGED", path=path, problem=problem)


class Overlay:
    """A disk made of an overlay and, below it, a raw image that never changes (or nothing: a blank disk)."""

    read_only = False

    def __init__(self, path: Path, base: Path | None, size_bytes: int) -> None:
        """Open it for writing. Raises HvdError DISK_DAMAGED, DISK_IN_USE; OSError."""
        self.path = path
        self.size_bytes = size_bytes
        self._base: RawImage | None = None
        # Sectors of map 1 that lack bits of map 2, sectors of map 2 whose writing failed, and whether anything at all
        # was written since the last flush.
        self._behind: set[int] = set()
        self._unclear: set[int] = set()
        self._unflushed = False
        self._failed: OSError | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HvdError("DISK_IN_USE", path=path) from None
            self._layout = read_layout(self._fd, path)
            self._check_base(base)
            if base is not None:
                self._base = RawImage(base, size_bytes)
            self._map = self._load()
        except BaseException:
            self._close_files()
            raise

    def _check_base(self, base: Path | None) -> None:
        layout = self._layout
        if layout.size_bytes != self.size_bytes:
            raise _damaged(self.path, f"it is of a disk of {layout.size_bytes} bytes, this one has {self.size_bytes}")
        if layout.base != (base.name[:64] if base else ""):
            raise _damaged(self.path, f"it belongs to image {layout.base or 'none'}, not to {base and base.name}")
        if base is not None and (found := base.stat().st_size) < layout.base_bytes:
            raise _damaged(base, f"the image ends at byte {found}, it had {layout.base_bytes} before")

    # ---- the maps

    def _load(self) -> bytearray:
        layout = self._layout
        boot_id = host_boot_id()
        if layout.boot_id == boot_id:
            bits = self._read_map(layout.written_offset)
            durable = self._read_map(layout.durable_offset)
            self._behind = {
                sector for sector in range(layout.map_sectors) if _slice(bits, sector) != _slice(durable, sector)
            }
            self._unflushed = bool(self._behind)
            return bits
        bits = self._read_map(layout.durable_offset)
        for sector in range(layout.map_sectors):
            wanted = _map_sector(bits, sector)
            if os.pread(self._fd, SECTOR, layout.written_offset + sector * SECTOR) != wanted:
                write_all(self._fd, layout.written_offset + sector * SECTOR, [memoryview(wanted)])
        self._sync()
        self._layout = replace(layout, boot_id=boot_id)
        write_all(self._fd, 0, [memoryview(self._layout.pack())])
        self._sync()
        return bits

    def _read_map(self, offset: int) -> bytearray:
        sectors = self._layout.map_sectors
        stored = memoryview(bytearray(sectors * SECTOR))
        read_all(self._fd, offset, [stored])
        bits = bytearray(sectors * _BITS_BYTES)
        nothing = bytes(SECTOR)
        for sector in range(sectors):
            piece = stored[sector * SECTOR : (sector + 1) * SECTOR]
            if piece == nothing:
                continue
            checksum, number, part = _MAP_SECTOR.unpack(piece)
            if checksum != zlib.crc32(piece[4:]) or number != sector:
                raise _damaged(self.path, f"sector {sector} of the map at {offset} has a wrong checksum")
            bits[sector * _BITS_BYTES : (sector + 1) * _BITS_BYTES] = part
        return bits

    def _present(self, first: int, count: int) -> int:
        """Bit n is set: granule first + n is in this file."""
        last = first + count - 1
        bits = int.from_bytes(self._map[first >> 3 : (last >> 3) + 1], "little")
        return bits >> (first & 7) & ((1 << count) - 1)

    def _add(self, first: int, count: int) -> None:
        """Granules are in this file from now on. Raises OSError; those whose sector could not be written are not."""
        while count:
            sector, start = divmod(first, _SECTOR_BITS)
            part = min(count, _SECTOR_BITS - start)
            old = bytes(_slice(self._map, sector))
            bits = int.from_bytes(old, "little") | ((1 << part) - 1) << start
            self._map[sector * _BITS_BYTES : (sector + 1) * _BITS_BYTES] = bits.to_bytes(_BITS_BYTES, "little")
            try:
                self._write_sector(self._layout.written_offset, sector)
            except OSError:
                self._map[sector * _BITS_BYTES : (sector + 1) * _BITS_BYTES] = old
                self._unclear.add(sector)
                raise
            self._behind.add(sector)
            first += part
            count -= part

    def _write_sector(self, map_offset: int, sector: int) -> None:
        write_all(self._fd, map_offset + sector * SECTOR, [memoryview(_map_sector(self._map, sector))])

    # ---- BlockImage

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        length = total(buffers)
        check_range(offset, length, self.size_bytes)
        if not length:
            return
        granule = self._layout.granule
        first = offset // granule
        count = (offset + length - 1) // granule - first + 1
        present = self._present(first, count)
        if present == (1 << count) - 1:
            read_all(self._fd, self._layout.data_offset + offset, buffers)
        elif not present:
            self._read_base(offset, buffers)
        else:
            for is_here, run, granules in _runs(present, count):
                start = max((first + run) * granule - offset, 0)
                stop = min((first + run + granules) * granule - offset, length)
                part = cut(buffers, start, stop - start)
                if is_here:
                    read_all(self._fd, self._layout.data_offset + offset + start, part)
                else:
                    self._read_base(offset + start, part)

    def _read_base(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self._base is None:
            zero(buffers)
        else:
            self._base.read(offset, buffers)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        length = total(buffers)
        check_range(offset, length, self.size_bytes)
        if not length:
            return
        granule = self._layout.granule
        end = offset + length
        first = offset // granule
        count = (end - 1) // granule - first + 1
        present = self._present(first, count)
        self._unflushed = True
        if present == (1 << count) - 1:
            write_all(self._fd, self._layout.data_offset + offset, buffers)
            return
        # Granules that come into the file come whole: what the write does not cover of them is the base's.
        start = offset if present & 1 else first * granule
        stop = end if present >> (count - 1) & 1 else min((first + count) * granule, self.size_bytes)
        head, tail = self._copy(start, offset), self._copy(end, stop)
        write_all(self._fd, self._layout.data_offset + start, [*head, *buffers, *tail])
        self._add(first, count)

    def _copy(self, start: int, stop: int) -> list[memoryview]:
        """What the base has there."""
        if start == stop:
            return []
        copy = memoryview(bytearray(stop - start))
        self._read_base(start, [copy])
        return [copy]

    def flush(self) -> None:
        if self._failed is not None:
            raise OSError(self._failed.errno, f"an earlier flush of the disk failed: {self._failed.strerror}")
        if not self._unflushed:
            return
        for sector in sorted(self._unclear):
            self._write_sector(self._layout.written_offset, sector)
            self._unclear.discard(sector)
        self._sync()
        if self._behind:
            for sector in sorted(self._behind):
                self._write_sector(self._layout.durable_offset, sector)
            self._sync()
            self._behind.clear()
        self._unflushed = False

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # The kernel has dropped what it could not write and reports it once: from here on no flush would be true.
            if error.errno not in _FULL:
                self._failed = error
            raise

    def discard(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size_bytes)
        granule = self._layout.granule
        end = offset + length
        start = min(_aligned(offset, granule), end)
        # The last granule may be shorter than the others.
        stop = end if end == self.size_bytes else max(start, end // granule * granule)
        for edge, size in ((offset, start - offset), (stop, end - stop)):
            if size:
                self.write(edge, [memoryview(bytes(size))])
        if start >= stop:
            return
        self._unflushed = True
        punch(self._fd, self._layout.data_offset + start, _aligned(stop, granule) - start)
        # Of a blank disk the holes say it; a base would shine through.
        if self._base is not None:
            self._add(start // granule, -(-(stop - start) // granule))

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            self.flush()
        finally:
            self._close_files()

    def _close_files(self) -> None:
        os.close(self._fd)
        self._fd = -1
        if self._base is not None:
            self._base.close()


def _slice(bits: bytearray, sector: int) -> bytearray:
    return bits[sector * _BITS_BYTES : (sector + 1) * _BITS_BYTES]


def _map_sector(bits: bytearray, sector: int) -> bytes:
    """As it is on the disk; one without bits is like one that was never written."""
    part = bytes(_slice(bits, sector))
    if not any(part):
        return bytes(SECTOR)
    body = _MAP_SECTOR.pack(0, sector, part)[4:]
    return zlib.crc32(body).to_bytes(4, "little") + body


def _runs(present: int, count: int) -> Iterator[tuple[bool, int, int]]:
    """(present or not, first, how many) of granules that are alike, one run after the other."""
    position = 0
    while position < count:
        is_here = bool(present & 1)
        alike = ~present if is_here else present
        run = min((alike & -alike).bit_length() - 1 if alike else count, count - position)
        yield is_here, position, run
        present >>= run
        position += run
