"""32-bit little-endian ELF executables for x86 (System V ABI, chapters 4 and 5): sections, and where in the file an address lies."""

from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass
from typing import Final, Protocol

SHT_NOBITS: Final = 8
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
_PT_LOAD: Final = 1
_MOST: Final = 65535
_SECTION: Final = struct.Struct("<10I")
_SEGMENT: Final = struct.Struct("<8I")


class Content(Protocol):
    """A file's bytes: `bytes`, or what reads them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class FormatError(ValueError):
    """It is no such file, or a damaged one. The text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    type: int
    flags: int
    address: int
    offset: int  # in the file
    size: int

    @property
    def executable(self) -> bool:
        """Code that is in the file, and in memory when the program is loaded."""
        return bool(self.flags & SHF_ALLOC and self.flags & SHF_EXECINSTR) and self.type != SHT_NOBITS

    def holds(self, address: int, length: int = 1) -> bool:
        return self.address <= address and address + length <= self.address + self.size


@dataclass(frozen=True, slots=True)
class Segment:
    virtual: int
    physical: int
    offset: int
    file_size: int


class Elf:
    """data: the whole file. Raises FormatError."""

    def __init__(self, data: Content) -> None:
        self.data = data
        header = data[:52]
        if header[:4] != b"\x7fELF":
            raise FormatError("it is no ELF file")
        if len(header) < 52 or header[4] != 1 or header[5] != 1 or struct.unpack_from("<H", header, 18)[0] != 3:
            raise FormatError("it is no ELF file of 32-bit x86 code")
        self.entry, segments, sections = struct.unpack_from("<III", header, 24)
        segment_size, segment_count, section_size, section_count, names = struct.unpack_from("<5H", header, 42)
        if (segment_count and segment_size != _SEGMENT.size) or (section_count and section_size != _SECTION.size):
            raise FormatError("its headers have the wrong size")
        self.segments = tuple(
            Segment(virtual, physical, offset, file_size)
            for kind, offset, virtual, physical, file_size, _, _, _ in self._table(_SEGMENT, segments, segment_count)
            if kind == _PT_LOAD and self._inside(offset, file_size)
        )
        self.sections = self._named(list(self._table(_SECTION, sections, section_count)), names)
        code = sorted((s for s in self.sections if s.executable), key=lambda s: s.address)
        self.code, self._starts = code, [s.address for s in code]

    def _inside(self, offset: int, size: int) -> bool:
        if offset + size > len(self.data):
            raise FormatError(f"it ends before byte {offset + size:,}, which its headers name")
        return True

    def _table(self, form: struct.Struct, offset: int, count: int) -> list[tuple[int, ...]]:
        self._inside(offset, form.size * count)
        return list(form.iter_unpack(self.data[offset : offset + form.size * count]))

    def _named(self, headers: list[tuple[int, ...]], names: int) -> tuple[Section, ...]:
        if names >= len(headers):
            return ()
        strings_at, strings_size = headers[names][4], headers[names][5]
        self._inside(strings_at, strings_size)
        strings = self.data[strings_at : strings_at + strings_size]
        found = []
        for name, kind, flags, address, offset, size, *_ in headers:
            if kind and kind != SHT_NOBITS:
                self._inside(offset, size)
            text = strings[name : strings.find(b"\0", name)] if name < len(strings) else b""
            found.append(Section(text.decode(errors="replace"), kind, flags, address, offset, size))
        return tuple(found)

    def section(self, name: str) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)

    def bytes_of(self, section: Section) -> bytes:
        return self.data[section.offset : section.offset + section.size]

    def code_section(self, address: int, length: int = 1) -> Section | None:
        """The section of code in which all these bytes lie."""
        index = bisect.bisect_right(self._starts, address) - 1
        return self.code[index] if index >= 0 and self.code[index].holds(address, length) else None

    def file_offset(self, address: int, length: int) -> int:
        """Where bytes of a section of code lie in the file. Raises FormatError: they do not."""
        section = self.code_section(address, length)
        if section is None:
            raise FormatError(f"{length} bytes at {address:#x} are not in a section of code")
        return section.offset + address - section.address

    def segment(self, address: int) -> Segment:
        """That loads this byte. Raises FormatError: none does."""
        for segment in self.segments:
            if segment.virtual <= address < segment.virtual + segment.file_size:
                return segment
        raise FormatError(f"no segment loads {address:#x}")

    def physical(self, address: int) -> int:
        """The guest-physical address at which a loader puts this byte. Raises FormatError."""
        segment = self.segment(address)
        return address - segment.virtual + segment.physical
