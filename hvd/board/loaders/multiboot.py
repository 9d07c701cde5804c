"""Multiboot 1 (Multiboot Specification version 0.6.96): ELF files, and any file by the header's address fields (the
"a.out kludge").

A request for a video mode (flag bit 2) is not met: the screen stays in text mode, as the specification lets the loader
choose.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from hvd.board.loaders import elf
from hvd.board.loaders.image import ImageFile
from hvd.board.loaders.kernel import (
    CONVENTIONAL_END,
    E820_RAM,
    ONE_MIB,
    Kernel,
    Placement,
    encode_command_line,
    memory_map,
    protected_mode,
)
from hvd.board.memory import LOW_RAM_END, GuestMemory
from hvd.board.paravirt import Paravirt, note_of
from hvd.board.vcpu import EntryState
from hvd.errors import HvdError

HEADER_MAGIC: Final = 0x1BADB002
BOOTLOADER_MAGIC: Final = 0x2BADB002
_SEARCH: Final = 8192
_PAGE_ALIGN, _MEMORY, _VIDEO, _ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_MUST_UNDERSTAND: Final = 0xFFFF
_COMMAND_LINE_BYTES: Final = 4095
# Flags of the information structure.
_INFO_MEM, _INFO_CMDLINE, _INFO_MODS, _INFO_MMAP, _INFO_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_INFO_BYTES: Final = 116
# The specification leaves it open. Kernels that load a GDT of their own and keep the segment registers as they are (xv6) rely on
# the usual layout of such GDTs, which is also what QEMU's loader begins with.
_CODE_SELECTOR: Final = 0x08


@dataclass(frozen=True, slots=True)
class _Raw:
    """The load image that the address fields describe; in bytes."""

    offset: int
    file_size: int
    address: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Multiboot(Kernel):
    """A Multiboot 1 kernel with a sound header."""

    format: ClassVar[str] = "multiboot"
    image: ImageFile
    content: elf.Elf | _Raw
    entry: int
    description: str
    bits: int
    end: int
    paravirt: Paravirt | None = None

    @property
    def code_bits(self) -> int:
        return self.content.bits if isinstance(self.content, elf.Elf) else self.bits

    def load(self, memory: GuestMemory, initrd: ImageFile | None, command_line: str, rsdp: int = 0) -> EntryState:
        self.check_fits(memory.low_ram_end)
        text = encode_command_line(command_line, _COMMAND_LINE_BYTES)
        placement = Placement(memory)
        if isinstance(self.content, elf.Elf):
            for segment in self.content.segments:
                placement.reserve(segment.physical, segment.physical + segment.memory_size)
            self.content.load(memory, self.image)
        else:
            raw = self.content
            placement.reserve(raw.address, raw.address + raw.memory_size)
            self.image.copy(raw.offset, raw.file_size, memory, raw.address)
            memory.clear(raw.address + raw.file_size, raw.memory_size - raw.file_size)
        flags = _INFO_MEM | _INFO_CMDLINE | _INFO_MODS | _INFO_MMAP | _INFO_NAME
        modules = 0
        if initrd is not None and initrd.size:
            start = placement.put_file(initrd)  # page-aligned, whether the header asks for it or not
            name = placement.put("the module's name", b"initrd\0")
            modules = placement.put("the module list", struct.pack("<IIII", start, start + initrd.size, name, 0))
        entries = memory_map(memory)
        table = b"".join(struct.pack("<IQQI", 20, *entry) for entry in entries)
        info = bytearray(_INFO_BYTES)
        low = min(memory.low_ram_end, CONVENTIONAL_END)
        high = sum(length for start, length, kind in entries if start == ONE_MIB and kind == E820_RAM)
        struct.pack_into("<III", info, 0, flags, low // 1024, high // 1024)
        struct.pack_into("<III", info, 16, placement.put("the command line", text), int(modules != 0), modules)
        struct.pack_into("<II", info, 44, len(table), placement.put("the memory map", table))
        struct.pack_into("<I", info, 64, placement.put("the loader's name", b"hvd\0"))
        address = placement.put("the Multiboot information", bytes(info))
        return protected_mode(placement, self.entry, selector=_CODE_SELECTOR, eax=BOOTLOADER_MAGIC, ebx=address)


def parse(image: ImageFile) -> Multiboot | None:
    """None when there is no header in the first 8192 bytes. Raises HvdError IMAGE_FORMAT (it needs an unknown
    feature), IMAGE_LAYOUT, IMAGE_TRUNCATED, and what elf.parse raises."""
    found = _find(image.head(_SEARCH))
    if found is None:
        return None
    offset, flags = found
    if unknown := flags & _MUST_UNDERSTAND & ~(_PAGE_ALIGN | _MEMORY | _VIDEO):
        raise HvdError(
            "IMAGE_FORMAT", what=image.what, problem=f"its Multiboot header needs unknown features ({unknown:#x})"
        )
    if flags & _ADDRESSES:
        raw, entry = _raw(image, offset)
        content: elf.Elf | _Raw = raw
        end = raw.address + raw.memory_size
        inside = raw.address <= entry < end
        description = "Multiboot 1 kernel, loaded by address"
    else:
        file = elf.parse(image)
        if file is None:
            problem = "its Multiboot header has no load addresses and it is no ELF file"
            raise HvdError("IMAGE_FORMAT", what=image.what, problem=problem)
        content, entry, end = file, file.physical_entry(), file.end
        inside = file.holds(entry)
        description = f"Multiboot 1 kernel, ELF{file.bits}"
    if not inside:
        raise HvdError("IMAGE_LAYOUT", what=image.what, problem=f"its entry {entry:#x} lies in no segment")
    paravirt = note_of(content, image) if isinstance(content, elf.Elf) else None
    return Multiboot(image, content, entry, description, 32, end, paravirt)


def _find(head: bytes) -> tuple[int, int] | None:
    """(offset, flags) of the header: 4-byte aligned, magic + flags + checksum = 0."""
    magic = struct.pack("<I", HEADER_MAGIC)
    offset = head.find(magic)
    while offset >= 0:
        if offset % 4 == 0 and offset + 12 <= len(head):
            flags, checksum = struct.unpack_from("<II", head, offset + 4)
            if (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
                return offset, flags
        offset = head.find(magic, offset + 1)
    return None


def _raw(image: ImageFile, offset: int) -> tuple[_Raw, int]:
    """The load image and the entry, from the address fields (specification 3.1.3)."""

    def wrong(problem: str) -> HvdError:
        return HvdError("IMAGE_LAYOUT", what=image.what, problem=f"its Multiboot header {problem}")

    header, load, load_end, bss_end, entry = struct.unpack("<5I", image.read(offset + 12, 20))
    first = offset - (header - load)
    if load > header or first < 0:
        raise wrong(
            f"says that it lies at {header:#x} in an image loaded at {load:#x}; its place in the file contradicts"
        )
    if load_end and load_end < load:
        raise wrong(f"has a load end {load_end:#x} below the load address {load:#x}")
    file_size = load_end - load if load_end else image.size - first
    image.need(first + file_size)
    memory_size = file_size
    if bss_end:
        if bss_end < load + file_size:
            raise wrong(f"has a bss end {bss_end:#x} below the end of what is loaded")
        memory_size = bss_end - load
    if load + memory_size > LOW_RAM_END:
        raise wrong(f"wants {memory_size} bytes at {load:#x}, above 3 GiB")
    return _Raw(first, file_size, load, memory_size), entry
