"""Kernel images made by hand, so that a test can break any one field of them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PVH_ENTRY_NOTE = 18


@dataclass
class Segment:
    physical: int
    data: bytes
    memory_size: int = -1  # as long as the data
    virtual: int = -1  # = physical
    type: int = 1
    offset: int = -1  # where the data really is
    file_size: int = -1
    alignment: int = 4


@dataclass
class ElfImage:
    segments: list[Segment] = field(default_factory=list)
    entry: int = 0x100000
    bits: int = 32
    machine: int = -1
    type: int = 2

    def build(self) -> bytes:
        wide = self.bits == 64
        machine = self.machine if self.machine >= 0 else (62 if wide else 3)
        header_size, entry_size = (64, 56) if wide else (52, 32)
        ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
        numbers = (header_size, entry_size, len(self.segments), 0, 0, 0)
        form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
        header = ident + struct.pack(form, self.type, machine, 1, self.entry, header_size, 0, 0, *numbers)
        offset = header_size + entry_size * len(self.segments)
        table = body = b""
        for segment in self.segments:
            at = offset + len(body) if segment.offset < 0 else segment.offset
            file_size = len(segment.data) if segment.file_size < 0 else segment.file_size
            memory_size = len(segment.data) if segment.memory_size < 0 else segment.memory_size
            virtual = segment.physical if segment.virtual < 0 else segment.virtual
            if wide:
                table += struct.pack(
                    "<IIQQQQQQ",
                    segment.type,
                    7,
                    at,
                    virtual,
                    segment.physical,
                    file_size,
                    memory_size,
                    segment.alignment,
                )
            else:
                table += struct.pack("<8I", segment.type, at, virtual, segment.physical, file_size, memory_size, 7, 4)
            body += segment.data
        return header + table + body


def note(owner: bytes, kind: int, value: bytes) -> bytes:
    name = owner + b"\0"
    return struct.pack("<III", len(name), len(value), kind) + name.ljust(-(-len(name) // 4) * 4, b"\0") + value


def pvh(entry: int = 0x100000, bits: int = 32, segments: list[Segment] | None = None) -> ElfImage:
    load = segments if segments is not None else [Segment(0x100000, b"\xf4" * 64, 0x2000)]
    value = struct.pack("<Q" if bits == 64 else "<I", entry)
    notes = note(b"GNU", 3, b"12345") + b"\0" * 3 + note(b"Xen", PVH_ENTRY_NOTE, value)
    return ElfImage([*load, Segment(0, notes, type=4)], entry, bits)


def multiboot_header(flags: int = 3, addresses: tuple[int, ...] = ()) -> bytes:
    return struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def multiboot(flags: int = 3) -> ElfImage:
    return ElfImage([Segment(0x100000, multiboot_header(flags) + b"\xf4" * 64, 0x3000)], 0x10000C)


def bzimage(
    *,
    version: int = 0x020F,
    xloadflags: int = 0,
    payload: bytes = b"\xf4" * 2048,
    setup_sectors: int = 3,
    loadflags: int = 1,
    relocatable: int = 1,
    preferred: int = 0x1000000,
    init_size: int = 0x400000,
    initrd_max: int = 0x7FFFFFFF,
    command_line: int = 2047,
    header_end: int = 0x26C,
) -> bytes:
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    struct.pack_into("<I", setup, 0x1F4, -(-len(payload) // 16))
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = bytes([0xEB, (header_end - 0x202) & 0xFF])
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<H", setup, 0x20E, 0x100)  # version string at 0x300
    setup[0x300:0x30D] = b"6.1.0-x (you)"
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    setup[0x234] = relocatable
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, command_line)
    struct.pack_into("<QI", setup, 0x258, preferred, init_size)
    return bytes(setup) + payload
