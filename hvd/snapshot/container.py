"""The file of a snapshot: named sections, each with its checksum, a table of them at the end, and a trailer.

    offset 0     header: magic "HVDSNAP\\n", version, CRC-32C of both; zeros to 4096
    ...          sections, each from a multiple of 4096 on; zeros up to the next
    table        JSON: [{"name", "offset", "bytes", "crc32c"}, ...] in the order of the file
    last 48      trailer: where the table is and its CRC-32C, version, magic

All numbers little-endian. A file that was not written to its end has no trailer, so that it is recognised at once; the
table at the end lets a section be appended by writing a new table (an export carries blobs that way). Every byte of the
file is under a checksum or must be zero.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from hvd.errors import HvdError
from hvd.jail.inputs import open_input
from hvd.snapshot.pages import PAGE, crc32c

VERSION: Final = 1
MAGIC: Final = b"HVDSNAP\n"
END_MAGIC: Final = b"HVDSNEND"
HEADER: Final = struct.Struct("<8sII")  # magic, version, checksum of the twelve bytes before
TRAILER: Final = struct.Struct("<QQIII12x8s")  # table's offset, bytes, checksum; version; checksum of the bytes before; magic
_TRAILER_CHECKED: Final = struct.Struct("<QQII")
COPY_BYTES: Final = 1 << 20
MOST_TABLE_BYTES: Final = 1 << 20
MOST_JSON_BYTES: Final = 64 << 20
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Section(NamedTuple):
    """A piece of the file. crc: CRC-32C of its bytes; None while it is not known yet."""

    name: str
    offset: int
    bytes: int
    crc: int | None

    @property
    def end(self) -> int:
        return self.offset + self.bytes


def header() -> bytes:
    """The first page of a file."""
    start = struct.pack("<8sI", MAGIC, VERSION)
    return (start + struct.pack("<I", crc32c(start))).ljust(PAGE, b"\0")


def ending(sections: Sequence[Section], offset: int) -> bytes:
    """Table and trailer, to be written at offset, a multiple of 4096."""
    rows = [
        {"name": section.name, "offset": section.offset, "bytes": section.bytes, "crc32c": section.crc}
        for section in sections
    ]
    table = json.dumps(rows).encode()
    checked = _TRAILER_CHECKED.pack(offset, len(table), crc32c(table), VERSION)
    return table + TRAILER.pack(offset, len(table), crc32c(table), VERSION, crc32c(checked), END_MAGIC)


def round_up(offset: int) -> int:
    """To the next place at which a section may begin."""
    return -(-offset // PAGE) * PAGE


def unfinished(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f"{path.name}.new")


class Writer:
    """A new file, under its own name only once it is whole: `with Writer(path) as writer: ...; writer.finish()`.

    Leaving the block without finish() removes what was written. Raises HvdError DISK_FULL; OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new = unfinished(path)
        self.sections: list[Section] = []
        with self._full_disk_told():
            self._fd = os.open(self.new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._finished = False
        self._write(header())

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if not self._finished:
            with contextlib.suppress(FileNotFoundError):
                self.new.unlink()

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise HvdError("DISK_FULL", directory=self.path.parent, what="the snapshot") from error
            raise

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with self._full_disk_told():
            while view:
                written = os.pwrite(self._fd, view, self._end)
                self._end += written
                view = view[written:]

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[SectionWriter]:
        """Write one section, piece by piece."""
        start = round_up(self._end)
        self._end = start
        yield SectionWriter(self)
        self.sections.append(Section(name, start, self._end - start, None))

    def add(self, name: str, data: bytes) -> None:
        """A section of these bytes."""
        with self.section(name) as section:
            section.write(data)

    def add_json(self, name: str, document: Mapping[str, Any]) -> None:
        """A section of JSON."""
        self.add(name, json.dumps(document).encode())

    def finish(self) -> int:
        """Checksums, table, trailer; on the disk and under its name when this returns. Bytes of the file. Reads what
        was written once more, out of the page cache: a guest that waits need not wait for this."""
        checked = [section._replace(crc=checksum(self._fd, section)) for section in self.sections]
        self._end = round_up(self._end)
        with self._full_disk_told():
            os.ftruncate(self._fd, self._end)
            self._write(ending(checked, self._end))
            os.fsync(self._fd)
        os.rename(self.new, self.path)
        self._finished = True
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return self._end


class SectionWriter:
    """What Writer.section gives."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self._writer._write(data)

    def copy(self, fd: int, offset: int, length: int) -> None:
        """Append a piece of another file: shared with it where the file system can (reflink)."""
        writer = self._writer
        with writer._full_disk_told():
            copy_range(fd, offset, writer._fd, writer._end, length)
        writer._end += length


def copy_range(source: int, offset: int, target: int, target_offset: int, length: int) -> None:
    """A piece of a file into another, in the kernel if these file systems can. Raises OSError; EIO when the source became
    shorter meanwhile."""
    in_kernel = True
    while length > 0:
        copied = 0
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, length, offset, target_offset)
            except OSError as error:
                if error.errno in FULL:
                    raise
            in_kernel = copied > 0
        if not copied:
            piece = os.pread(source, min(length, COPY_BYTES), offset)
            if not piece:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            copied = os.pwrite(target, piece, target_offset)
        offset += copied
        target_offset += copied
        length -= copied


def checksum(fd: int, section: Section) -> int:
    """CRC-32C of a section as it stands in the file. Raises EOFError when the file ends before."""
    crc, offset, buffer = 0, section.offset, bytearray(min(COPY_BYTES, section.bytes))
    view = memoryview(buffer)
    while offset < section.end:
        length = os.preadv(fd, [view[: min(len(buffer), section.end - offset)]], offset)
        if not length:
            raise EOFError
        crc = crc32c(view[:length], crc)
        offset += length
    return crc


class Reader:
    """A file, opened and its table checked. The name is that for people, in errors.

    Raises HvdError SNAPSHOT_FOREIGN (no snapshot), SNAPSHOT_VERSION (of a newer hvd), SNAPSHOT_DAMAGED.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.name = name or path.name
        self.path = path
        self._fd = open_input(path)
        try:
            self.bytes = os.fstat(self._fd).st_size
            self.sections = {section.name: section for section in self._table()}
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    @property
    def fd(self) -> int:
        """The file; it stays owned by this object."""
        return self._fd

    def damaged(self, problem: str) -> HvdError:
        """The error to raise."""
        return HvdError("SNAPSHOT_DAMAGED", name=self.name, problem=problem)

    def _table(self) -> list[Section]:
        start = os.pread(self._fd, PAGE, 0)
        if start[:8] != MAGIC:
            raise HvdError("SNAPSHOT_FOREIGN", name=self.name, problem="it does not begin like one")
        if len(start) < PAGE:
            raise self.damaged("it ends within its header")
        _, version, crc = HEADER.unpack_from(start)
        if crc32c(start[:12]) != crc or any(start[HEADER.size :]):
            raise self.damaged("its header has a wrong checksum")
        if version > VERSION:
            raise HvdError("SNAPSHOT_VERSION", name=self.name, found=version, known=VERSION)
        if self.bytes < PAGE + TRAILER.size:
            raise self.damaged("it was not written to its end")
        self.table_offset, length, crc, version, own, magic = TRAILER.unpack(
            os.pread(self._fd, TRAILER.size, self.bytes - TRAILER.size)
        )
        if magic != END_MAGIC:
            raise self.damaged("it was not written to its end")
        trailer = os.pread(self._fd, TRAILER.size, self.bytes - TRAILER.size)
        if crc32c(trailer[: _TRAILER_CHECKED.size]) != own or any(trailer[_TRAILER_CHECKED.size + 4 : -8]):
            raise self.damaged("its trailer has a wrong checksum")
        if (
            version > VERSION
            or length > MOST_TABLE_BYTES
            or self.table_offset % PAGE
            or self.table_offset + length + TRAILER.size != self.bytes
        ):
            raise self.damaged("its trailer does not fit it")
        table = os.pread(self._fd, length, self.table_offset)
        if len(table) != length or crc32c(table) != crc:
            raise self.damaged("its table has a wrong checksum")
        return self._rows(table)

    def _rows(self, table: bytes) -> list[Section]:
        """A forged table has right checksums: nothing in it is believed."""
        found: list[Section] = []
        end = PAGE
        try:
            for row in json.loads(table):
                section = Section(row["name"], row["offset"], row["bytes"], row["crc32c"])
                numbers = (section.offset, section.bytes, section.crc)
                if not isinstance(section.name, str) or not all(type(number) is int for number in numbers):
                    raise ValueError(section)
                if section.offset != round_up(end) or section.bytes < 0 or section.end > self.table_offset:
                    raise ValueError(section)
                end = section.end
                found.append(section)
            if round_up(end) != self.table_offset or len({section.name for section in found}) != len(found):
                raise ValueError(end)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.damaged("its table makes no sense") from error
        return found

    def section(self, name: str) -> Section:
        try:
            return self.sections[name]
        except KeyError:
            raise self.damaged(f"it has no section {name}") from None

    def check(self, section: Section) -> None:
        """Raises HvdError SNAPSHOT_DAMAGED when its bytes, or those up to the next, are not as they were written."""
        try:
            crc = checksum(self._fd, section)
        except EOFError:
            crc = None
        gap = round_up(section.end) - section.end
        if crc != section.crc or os.pread(self._fd, gap, section.end) != bytes(gap):
            raise self.damaged(f"section {section.name} has a wrong checksum")

    def verify(self) -> None:
        """Every byte. Raises HvdError SNAPSHOT_DAMAGED."""
        for section in self.sections.values():
            self.check(section)

    def read(self, name: str, most: int = MOST_JSON_BYTES) -> bytes:
        """A whole section, checked. Raises HvdError SNAPSHOT_DAMAGED."""
        section = self.section(name)
        if section.bytes > most:
            raise self.damaged(f"section {name} has {section.bytes} bytes")
        data = os.pread(self._fd, section.bytes, section.offset)
        if len(data) != section.bytes or crc32c(data) != section.crc:
            raise self.damaged(f"section {name} has a wrong checksum")
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises HvdError SNAPSHOT_DAMAGED."""
        try:
            document = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"section {name} is no JSON") from error
        if not isinstance(document, dict):
            raise self.damaged(f"section {name} is no JSON object")
        return document
