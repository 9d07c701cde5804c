"""The records of a kernel's replaceable instructions (guests/include/hv/sites.h): read, and checked.

A kernel comes from anywhere: what a table says is believed only as far as the rest of the file agrees.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from hvd.hvpvcc.elf import Elf, FormatError

SECTION: Final = ".hvpv.sites"
PAGE: Final = 4096
_RECORD: Final = struct.Struct("<IBBBB")
_KIND: Final = 4  # where in a record
_MOST: Final = 1_000_000
_LONGEST: Final = 15
NOP: Final = 0x90
# Of the area's record, in `original`: somebody has replaced already.
FINISHED: Final = 1


class Kind(enum.IntEnum):
    """enum hv_site_kind."""

    AREA = 0
    CLI = 1
    STI = 2
    PUSHF = 3
    POPF = 4
    IRET = 5
    HLT = 6
    LGDT = 7
    LIDT = 8
    LLDT = 9
    LTR = 10
    SGDT = 11
    SIDT = 12
    SLDT = 13
    STR = 14
    LMSW = 15
    SMSW = 16
    CLTS = 17
    RDMSR = 18
    WRMSR = 19
    RDTSC = 20
    RDTSCP = 21
    RDPMC = 22
    CPUID = 23
    INVLPG = 24
    INVD = 25
    WBINVD = 26
    INVPCID = 27
    IN = 28
    OUT = 29
    INS = 30
    OUTS = 31
    LAR = 32
    LSL = 33
    VERR = 34
    VERW = 35
    FAR_JUMP = 36
    FAR_CALL = 37
    FAR_RETURN = 38
    SYSEXIT = 39
    MONITOR = 40
    MWAIT = 41
    XGETBV = 42
    XSETBV = 43
    LOAD_FAR = 44
    MOV_FROM_CR = 45
    MOV_TO_CR = 46
    MOV_FROM_DR = 47
    MOV_TO_DR = 48
    MOV_FROM_SEGMENT = 49
    MOV_TO_SEGMENT = 50
    PUSH_SEGMENT = 51
    POP_SEGMENT = 52
    VM = 53
    ACCESS_FLAG = 54

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, eq=False, slots=True)
class Shape:
    """What sites have in common: a kernel has thousands of sites, of some hundred shapes, and what replaces them depends on their shape alone."""

    kind: Kind
    length: int  # bytes that may be replaced
    code: bytes  # the instruction
    lead: int  # no-operations before it
    padded: bool  # there is nothing but no-operations around the instruction, as in a kernel that is neutral


class Site(NamedTuple):
    address: int
    shape: Shape

    @property
    def kind(self) -> Kind:
        return self.shape.kind

    @property
    def length(self) -> int:
        return self.shape.length

    @property
    def code(self) -> bytes:
        return self.shape.code

    @property
    def lead(self) -> int:
        return self.shape.lead

    @property
    def instruction(self) -> int:
        return self.address + self.lead

    @property
    def end(self) -> int:
        return self.address + self.length


@dataclass(frozen=True, slots=True)
class Area:
    """Room for the hypercall page and thunks."""

    address: int
    pages: int
    finished: bool
    record: int  # its record's offset in the file


@dataclass(frozen=True, slots=True)
class Table:
    sites: tuple[Site, ...]  # ascending
    area: Area


def records_of(elf: Elf) -> tuple[bytes, int] | None:
    """All records, and where in the file the first is. None: hvpvcc had nothing to do with this kernel."""
    section = elf.section(SECTION)
    if section is None:
        return None
    if section.size % _RECORD.size or section.size > _MOST * _RECORD.size:
        raise FormatError(f"{SECTION} has {section.size} bytes, which are no table")
    return elf.bytes_of(section), section.offset


def area_of(elf: Elf, records: bytes, offset: int) -> Area:
    kinds = records[_KIND :: _RECORD.size]
    if (count := kinds.count(Kind.AREA)) != 1:
        raise FormatError(f"{SECTION} names {count} places for thunks, not one")
    at = kinds.index(Kind.AREA) * _RECORD.size
    address, _, pages, original, _ = _RECORD.unpack_from(records, at)
    area = Area(address, pages, original == FINISHED, offset + at)
    if area.address % PAGE or not area.pages or elf.code_section(area.address, area.pages * PAGE) is None:
        raise FormatError(f"the place for thunks at {area.address:#x} is no code")
    return area


def find_area(elf: Elf) -> Area | None:
    """The area alone: cheaper than read_table(), with the same errors about it."""
    found = records_of(elf)
    return area_of(elf, *found) if found else None


def read_table(elf: Elf) -> Table | None:
    """None when hvpvcc had nothing to do with this kernel. Raises FormatError: the table does not fit to the code."""
    found = records_of(elf)
    if found is None:
        return None
    area = area_of(elf, *found)
    # Address 0: the linker left its section out.
    records = sorted(fields for fields in _RECORD.iter_unpack(found[0]) if fields[1] != Kind.AREA and fields[0])
    return Table(tuple(_sites(elf, records, area)), area)


def _sites(elf: Elf, records: Iterable[tuple[int, ...]], area: Area) -> Iterator[Site]:
    """Of records in ascending order."""
    data, area_end = elf.data, area.address + area.pages * PAGE
    start = end = offset = 0  # of the section of code that the last one was in
    last = behind = 0  # the last site
    new = tuple.__new__  # what Site() does, in a third of the time
    shapes: dict[tuple[int, int, int, int, bytes], Shape] = {}
    for address, kind, length, original, lead in records:
        if not start <= address <= end - length:
            section = elf.code_section(address, length)
            if section is None:
                shape_of(address, kind, length, original, lead, b"")  # what is wrong with the record itself comes first
                raise FormatError(f"the site at {address:#x} is not in a section of code")
            start, end, offset = section.address, section.address + section.size, section.offset - section.address
        at = address + offset
        key = kind, length, original, lead, data[at : at + length]
        if (shape := shapes.get(key)) is None:
            shape = shapes[key] = shape_of(address, *key)
        if address < behind:
            raise FormatError(f"the sites at {last:#x} and {address:#x} overlap")
        last, behind = address, address + length
        if address < area_end and area.address < behind:
            raise FormatError(f"the site at {address:#x} lies in the place for thunks")
        yield new(Site, (address, shape))


def shape_of(address: int, kind: int, length: int, original: int, lead: int, content: bytes) -> Shape:
    """address: for messages."""
    try:
        known = Kind(kind)
    except ValueError:
        raise FormatError(f"the site at {address:#x} is of kind {kind}, which there is not") from None
    if not 0 < original <= _LONGEST or lead + original > length:
        raise FormatError(f"the site at {address:#x} has {length} bytes, {lead} before an instruction of {original}")
    padding = content[:lead] + content[lead + original :]
    return Shape(known, length, content[lead : lead + original], lead, not padding.strip(bytes([NOP])))
