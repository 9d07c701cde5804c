"""Linux bzImage: the 32-bit and the 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst, zero-page.rst).

A kernel whose xloadflags has XLF_KERNEL_64 is entered in long mode, any other in protected mode; the real-mode part is
never run. memtest86+ comes in this format too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from hvd.board.loaders.image import ImageFile
from hvd.board.loaders.kernel import (
    ONE_MIB,
    Kernel,
    Placement,
    encode_command_line,
    long_mode,
    memory_map,
    protected_mode,
)
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState
from hvd.errors import HvdError

BOOT_PARAMS: Final = 0x10000
_HEADER: Final = 0x1F1
_OLDEST: Final = 0x0202  # the first protocol with a command line pointer
_LOADED_HIGH: Final = 1 << 0
_XLF_KERNEL_64: Final = 1 << 0
_XLF_64_ENTRY: Final = 0x200
_TYPE_OF_LOADER_OTHER: Final = 0xFF
# boot_params.screen_info (include/uapi/linux/screen_info.h): the VGA as after power-on, mode 3, 256 KiB, colour; cursor at 0, 0.
_SCREEN_INFO: Final = (
    (0x06, 0x03),  # orig_video_mode
    (0x07, 80),  # orig_video_cols
    (0x0A, 0x03),  # orig_video_ega_bx, as INT 10h, AH=12h, BL=10h answers
    (0x0E, 25),  # orig_video_lines
    (0x0F, 0x01),  # orig_video_isVGA
    (0x10, 16),  # orig_video_points
)
_E820_MOST: Final = 128  # entries in boot_params


def _u16(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


@dataclass(frozen=True, slots=True)
class BzImage(Kernel):
    """A bzImage with a sound header."""

    format: ClassVar[str] = "bzimage"
    image: ImageFile
    description: str
    bits: int
    end: int
    header: bytes  # of the setup sector: offset 0x1f1 to its end
    payload_offset: int
    load_address: int
    initrd_limit: int  # highest address an initrd may occupy, plus 1
    command_line_bytes: int

    def load(self, memory: GuestMemory, initrd: ImageFile | None, command_line: str, rsdp: int = 0) -> EntryState:
        self.check_fits(memory.low_ram_end)
        text = encode_command_line(command_line, self.command_line_bytes)
        length = self.image.size - self.payload_offset
        placement = Placement(memory)
        placement.reserve(BOOT_PARAMS, BOOT_PARAMS + 4096)
        placement.reserve(self.load_address, self.end)

        parameters = bytearray(4096)
        for offset, value in _SCREEN_INFO:
            parameters[offset] = value
        parameters[_HEADER : _HEADER + len(self.header)] = self.header
        struct.pack_into("<Q", parameters, 0x070, rsdp)  # acpi_rsdp_addr
        parameters[0x210] = _TYPE_OF_LOADER_OTHER
        struct.pack_into("<I", parameters, 0x214, self.load_address)  # code32_start
        if initrd is not None and initrd.size:
            address = placement.put_file(initrd, limit=self.initrd_limit)
            struct.pack_into("<II", parameters, 0x218, address, initrd.size)
        struct.pack_into("<I", parameters, 0x228, placement.put("the command line", text))
        entries = memory_map(memory)[:_E820_MOST]
        parameters[0x1E8] = len(entries)
        for number, entry in enumerate(entries):
            struct.pack_into("<QQI", parameters, 0x2D0 + 20 * number, *entry)
        memory.write(BOOT_PARAMS, parameters)
        self.image.copy(self.payload_offset, length, memory, self.load_address)
        if self.bits == 64:
            return long_mode(memory, placement, self.load_address + _XLF_64_ENTRY, rsi=BOOT_PARAMS)
        return protected_mode(placement, self.load_address, esi=BOOT_PARAMS)


def parse(image: ImageFile) -> BzImage | None:
    """None when it is no bzImage. Raises HvdError IMAGE_FORMAT (too old, not loaded high), IMAGE_TRUNCATED,
    IMAGE_LAYOUT."""
    head = image.head(0x10000)
    if len(head) < 0x206 or head[0x1FE:0x200] != b"\x55\xaa" or head[0x202:0x206] != b"HdrS":
        return None
    version = _u16(head, 0x206) if len(head) >= 0x208 else 0
    if version < _OLDEST:
        raise _format(image, f"its boot protocol {version >> 8}.{version & 0xFF:02} is older than 2.02")
    header_end = 0x202 + head[0x201]
    image.need(header_end)
    if header_end < 0x22C or header_end > 0x290:  # boot_params has room up to there
        raise _format(image, f"its setup header ends at {header_end:#x}, which no boot protocol allows")
    header = head[_HEADER:header_end].ljust(0x290 - _HEADER, b"\0")
    padded = bytes(_HEADER) + header  # offsets below are those of boot.rst
    if not padded[0x211] & _LOADED_HIGH:
        raise _format(image, "it is a zImage, which loads below 1 MiB")
    payload = ((padded[0x1F1] or 4) + 1) * 512
    paragraphs = _u32(padded, 0x1F4) if version >= 0x0204 else 0
    # syssize counts paragraphs, and memtest86+ rounds up without padding the file.
    image.need(payload + max(paragraphs * 16 - 15, _XLF_64_ENTRY + 1))
    relocatable = version >= 0x0205 and padded[0x234]
    preferred = int.from_bytes(padded[0x258:0x260], "little") if version >= 0x020A else 0
    initial = _u32(padded, 0x260) if version >= 0x020A else 0
    load_address = ONE_MIB if relocatable or not preferred else preferred
    if load_address < ONE_MIB or load_address >= 1 << 32:
        raise HvdError("IMAGE_LAYOUT", what=image.what, problem=f"it wants to be loaded at {load_address:#x}")
    # A relocatable kernel moves itself to its preferred address when it is loaded below (it is), and needs init_size
    # bytes there.
    runs_at = max(load_address, preferred)
    end = max(load_address + image.size - payload, runs_at + initial)
    bits = 64 if version >= 0x020C and _u16(padded, 0x236) & _XLF_KERNEL_64 else 32
    return BzImage(
        image=image,
        description=f"{_version_text(image, padded)}, {bits}-bit boot protocol {version >> 8}.{version & 0xFF:02}",
        bits=bits,
        end=end,
        header=header,
        payload_offset=payload,
        load_address=load_address,
        initrd_limit=(_u32(padded, 0x22C) if version >= 0x0203 else 0x37FF_FFFF) + 1,
        command_line_bytes=_u32(padded, 0x238) if version >= 0x0206 else 255,
    )


def _version_text(image: ImageFile, header: bytes) -> str:
    """The kernel's own version string ("6.1.0-13-amd64 (...)": its first word), or just "Linux"."""
    pointer = _u16(header, 0x20E)
    offset = pointer + 0x200
    if not pointer or offset >= image.size:
        return "Linux"
    text = image.read(offset, min(128, image.size - offset)).partition(b"\0")[0]
    words = text.decode("ascii", "replace").split()
    if not words or not words[0].isprintable() or len(words[0]) > 64:
        return "Linux"
    return f"Linux {words[0]}" if words[0][0].isdigit() else " ".join(words)[:64]


def _format(image: ImageFile, problem: str) -> HvdError:
    return HvdError("IMAGE_FORMAT", what=image.what, problem=problem)
