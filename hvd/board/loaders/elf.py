"""ELF files (System V ABI, chapters 4 and 5): what the PVH and Multiboot loaders share."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hvd.board.loaders.image import ImageFile
from hvd.board.memory import LOW_RAM_END, GuestMemory
from hvd.errors import HvdError

MAGIC: Final = b"\x7fELF"
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_ET_EXEC: Final = 2
_MACHINES: Final = {3: 32, 62: 64}  # e_machine -> bits
# For messages only: what people are likely to feed us by mistake.
_FOREIGN: Final = {8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM", 183: "AArch64", 243: "RISC-V"}
_FEW: Final = 256  # program headers; a kernel has less than ten
_NOTE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Header:
    """A program header; offsets and sizes in bytes."""

    type: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int
    alignment: int


@dataclass(frozen=True, slots=True)
class Elf:
    """A statically linked x86 executable whose segments are known to be sound: within the file, disjoint, below 3
    GiB."""

    bits: int
    entry: int  # e_entry: virtual
    headers: tuple[Header, ...]
    segments: tuple[Header, ...]  # PT_LOAD with memory, ascending by physical address

    @property
    def end(self) -> int:
        """First physical address behind the last segment."""
        last = self.segments[-1]
        return last.physical + last.memory_size

    def physical_entry(self) -> int:
        """e_entry as a physical address: translated by the segment that holds it, as GRUB does."""
        for segment in self.segments:
            if segment.virtual <= self.entry < segment.virtual + segment.memory_size:
                return self.entry - segment.virtual + segment.physical
        return self.entry

    def holds(self, address: int) -> bool:
        """Does a physical address lie in a segment?"""
        return any(s.physical <= address < s.physical + s.memory_size for s in self.segments)

    def notes(self, image: ImageFile) -> Iterator[tuple[bytes, int, bytes]]:
        """(owner, type, description) of all notes. A note that leaves its segment ends the list of that segment."""
        for header in self.headers:
            if header.type != _PT_NOTE:
                continue
            data = image.read(header.offset, min(header.file_size, _NOTE_BYTES))
            # The ABI says 4-byte words in both classes; some tools pad to 8 where the segment is so aligned.
            padding = 8 if header.alignment == 8 else 4
            position = 0
            while position + 12 <= len(data):
                name_size, size, kind = struct.unpack_from("<III", data, position)
                name_at = position + 12
                at = _round(name_at + name_size, padding)
                if at + size > len(data):
                    break
                yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[at : at + size]
                position = _round(at + size, padding)

    def load(self, memory: GuestMemory, image: ImageFile) -> None:
        """Copy the segments; what is not in the file (.bss) becomes zero."""
        for segment in self.segments:
            image.copy(segment.offset, segment.file_size, memory, segment.physical)
            memory.clear(segment.physical + segment.file_size, segment.memory_size - segment.file_size)


def _round(value: int, granule: int) -> int:
    return -(-value // granule) * granule


def _format(image: ImageFile, problem: str) -> HvdError:
    return HvdError("IMAGE_FORMAT", what=image.what, problem=problem)


def _layout(image: ImageFile, problem: str) -> HvdError:
    return HvdError("IMAGE_LAYOUT", what=image.what, problem=problem)


def parse(image: ImageFile) -> Elf | None:
    """None when it is no ELF file. Raises HvdError IMAGE_FORMAT (not x86, no executable), IMAGE_TRUNCATED,
    IMAGE_LAYOUT (segments overlap, leave the file or the address space)."""
    if image.head(4) != MAGIC:
        return None
    ident = image.read(0, 20)
    machine, kind = struct.unpack_from("<H", ident, 18)[0], struct.unpack_from("<H", ident, 16)[0]
    if ident[5] == 2:
        machine, kind = struct.unpack_from(">H", ident, 18)[0], struct.unpack_from(">H", ident, 16)[0]
    if ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise _format(image, f"its ELF header has class {ident[4]} and byte order {ident[5]}")
    if ident[5] != 1 or machine not in _MACHINES:
        raise _format(image, f"it is an ELF file for {_FOREIGN.get(machine, f'machine {machine}')}, not for x86")
    if kind != _ET_EXEC:
        names = {1: "a relocatable object", 3: "position-independent or a library", 4: "a core dump"}
        raise _format(
            image, f"it is {names.get(kind, f'an ELF file of type {kind}')}, not a statically linked executable"
        )
    wide = ident[4] == 2  # the class; x32-style mixtures of class and machine are what the class says
    if wide:
        image.need(64)
        entry, table = struct.unpack("<QQ", image.read(24, 16))
        size, count = struct.unpack("<HH", image.read(54, 4))
    else:
        image.need(52)
        entry, table = struct.unpack("<II", image.read(24, 8))
        size, count = struct.unpack("<HH", image.read(42, 4))
    expected = 56 if wide else 32
    if not count or count > _FEW or size != expected:
        raise _layout(image, f"it has {count} program headers of {size} bytes, expected are 1 to {_FEW} of {expected}")
    data = image.read(table, size * count)
    headers = tuple(_header(data, position, wide) for position in range(0, size * count, size))
    segments = tuple(sorted((h for h in headers if h.type == _PT_LOAD and h.memory_size), key=lambda h: h.physical))
    if not segments:
        raise _layout(image, "it has no segment to load")
    for header in headers:
        if header.type in (_PT_LOAD, _PT_NOTE):
            image.need(header.offset + header.file_size)
    for segment in segments:
        if segment.file_size > segment.memory_size:
            raise _layout(image, f"the segment at {segment.physical:#x} has more bytes in the file than in memory")
        if segment.physical + segment.memory_size > LOW_RAM_END:
            raise _layout(
                image, f"the segment at {segment.physical:#x} of {segment.memory_size} bytes lies above 3 GiB"
            )
    for first, second in pairwise(segments):
        if second.physical < first.physical + first.memory_size:
            raise _layout(image, f"the segments at {first.physical:#x} and {second.physical:#x} overlap")
    return Elf(64 if wide else 32, entry, headers, segments)


def _header(data: bytes, position: int, wide: bool) -> Header:
    if wide:
        kind, _, offset, virtual, physical, file_size, memory_size, alignment = struct.unpack_from(
            "<IIQQQQQQ", data, position
        )
    else:
        kind, offset, virtual, physical, file_size, memory_size, _, alignment = struct.unpack_from(
            "<8I", data, position
        )
    return Header(kind, offset, virtual, physical, file_size, memory_size, alignment)
