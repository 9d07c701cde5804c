"""A VGA text screen as text: code page 437 and attributes to Unicode and a terminal's colours. No input or output."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

# What code page 437 shows for the codes that are control characters elsewhere; a cell of zeros is an empty one.
_LOW = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
GLYPHS = _LOW + bytes(range(0x20, 0x7F)).decode("ascii") + "⌂" + bytes(range(0x80, 0xFF)).decode("cp437") + " "

GREY_ON_BLACK = 0x07
# A VGA counts blue, green, red; a terminal red, green, blue.
_TERMINAL = (0, 4, 2, 6, 1, 5, 3, 7)
RESET = "\x1b[0m"


def plain_lines(screen: guest_pb2.Screen) -> list[str]:
    """One string a row, without the blanks at its end."""
    return [text.rstrip() for text in _rows(screen)]


def _rows(screen: guest_pb2.Screen) -> list[str]:
    width = 2 * screen.columns
    cells = screen.cells
    return [
        "".join(GLYPHS[code] for code in cells[at : at + width : 2]) for at in range(0, width * screen.rows, width or 1)
    ]


def colored_lines(screen: guest_pb2.Screen) -> list[str]:
    """One string a row, with a terminal's escapes wherever the attribute changes; each row ends as it began, plain."""
    lines = []
    for row, text in enumerate(_rows(screen)):
        attributes = screen.cells[2 * row * screen.columns + 1 : 2 * (row + 1) * screen.columns : 2]
        # Blanks at the end, of which nothing would be seen.
        end = len(text)
        while end and text[end - 1] == " " and not attributes[end - 1] & 0xF0:
            end -= 1
        pieces: list[str] = []
        now = GREY_ON_BLACK
        for character, attribute in zip(text[:end], attributes[:end], strict=True):
            if attribute != now:
                pieces.append(escape(attribute))
                now = attribute
            pieces.append(character)
        lines.append("".join(pieces) + (RESET if now != GREY_ON_BLACK else ""))
    return lines


def escape(attribute: int) -> str:
    """The escape for a cell's colours: the terminal's own ones for grey on black. Bit 7 brightens the background."""
    if attribute == GREY_ON_BLACK:
        return RESET
    foreground = (90 if attribute & 0x08 else 30) + _TERMINAL[attribute & 7]
    background = (100 if attribute & 0x80 else 40) + _TERMINAL[attribute >> 4 & 7]
    return f"\x1b[0;{foreground};{background}m"
