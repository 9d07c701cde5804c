"""A VGA text screen as a PNG file (ISO/IEC 15948): characters of 9x16 dots, as a VGA shows them.

The shapes of the characters are the VGA BIOS's own, taken at run time from its ROM in Debian's package seabios.
"""

from __future__ import annotations

import functools
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from hvctl.sdk.errors import HvctlError

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

HEIGHT, WIDTH = 16, 9
# Any of SeaBIOS's VGA ROMs has the font; the first are those of its own package.
ROM_PLACES = ("/usr/share/seabios", "/usr/share/qemu", "/usr/share/vgabios")
# Characters 0 and 1 of the 8x16 font: nothing, and a face.
_FONT_BEGINS = bytes(16) + bytes.fromhex("00007e81a58181bd9981817e00000000")
_FONT_BYTES = 256 * HEIGHT
# Lines of the cursor, of mode 3.
_CURSOR_LINES = (14, 15)
# The ninth dot repeats the eighth in the codes of lines and blocks, and is blank otherwise.
_JOINED = range(0xC0, 0xE0)


@functools.cache
def font() -> bytes:
    """Sixteen bytes a character, 256 characters. Raises HvctlError FONT_MISSING."""
    for place in ROM_PLACES:
        for rom in sorted(Path(place).glob("vgabios*.bin")):
            try:
                content = rom.read_bytes()
            except OSError:
                continue
            begin = content.find(_FONT_BEGINS)
            if begin >= 0 and len(content) >= begin + _FONT_BYTES:
                return content[begin : begin + _FONT_BYTES]
    raise HvctlError.local("FONT_MISSING", places=", ".join(ROM_PLACES), package="seabios")


def png(screen: guest_pb2.Screen) -> bytes:
    """The picture's file. Raises HvctlError FONT_MISSING."""
    columns, rows = screen.columns, screen.rows
    shapes = font()
    lines: list[list[bytes]] = []
    for row in range(rows):
        cells = screen.cells[2 * row * columns : 2 * (row + 1) * columns]
        drawn = [_cell(shapes, code, attribute) for code, attribute in zip(cells[::2], cells[1::2], strict=True)]
        band = [[cell[line] for cell in drawn] for line in range(HEIGHT)]
        if screen.HasField("cursor_row") and screen.cursor_row == row:
            color = cells[2 * screen.cursor_column + 1] & 0x0F
            for line in _CURSOR_LINES:
                band[line][screen.cursor_column] = bytes((color,)) * WIDTH
        lines += band
    # Each line begins with its filter: none.
    data = b"".join(b"\0" + b"".join(line) for line in lines)
    header = struct.pack(">IIBBBBB", columns * WIDTH, rows * HEIGHT, 8, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((
        _chunk(b"IHDR", header),
        _chunk(b"PLTE", screen.palette),
        _chunk(b"IDAT", zlib.compress(data, 6)),
        _chunk(b"IEND", b""),
    ))  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _cell(shapes: bytes, code: int, attribute: int) -> list[bytes]:
    """A character's lines, a byte a dot."""
    ink, paper = attribute & 0x0F, attribute >> 4
    lines = []
    for bits in shapes[HEIGHT * code : HEIGHT * (code + 1)]:
        ninth = bits & 1 if code in _JOINED else 0
        lines.append(
            bytes(ink if bits << 1 >> dot & 1 else paper for dot in range(8, 0, -1)) + bytes((ink if ninth else paper,))
        )
    return lines


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
