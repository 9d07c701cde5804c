"""The VGA as a text screen: its registers (IBM VGA/XGA Technical Reference Manual, chapter 2) in front of the screen
memory at 0xA0000-0xBFFFF, which is plain storage (hvd/board/memory.py): drawing takes no exit, and what is shown is read
out of memory when somebody looks.

After power-on the registers are those of mode 3 (80x25, 16 colours), so that kernels without firmware can print at once.
What is left out: graphics modes are recognised, not shown; planes, fonts and write modes do not exist; blinking and
underlining; the line-compare split and the retrace's true timing, which is a bit that
changes at every read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.board.machine import Machine

ATTRIBUTE, ATTRIBUTE_READ, MISC_WRITE, SEQUENCER, PEL_MASK, DAC_STATE, DAC_WRITE, DAC_DATA = (
    0x3C0, 0x3C1, 0x3C2, 0x3C4, 0x3C6, 0x3C7, 0x3C8, 0x3C9,
)  # fmt: skip
FEATURE_READ, MISC_READ, GRAPHICS = 0x3CA, 0x3CC, 0x3CE
# The CRT controller and status 1 are at one of two places, as bit 0 of the miscellaneous output register says.
CRTC_MONO, STATUS_MONO, CRTC_COLOR, STATUS_COLOR = 0x3B4, 0x3BA, 0x3D4, 0x3DA
MISC_COLOR = 0x01
STATUS_0_SWITCH, STATUS_1_TOGGLES = 0x10, 0x09  # display enable, vertical retrace

# Mode 3 as IBM's BIOS sets it (ibidem, "Video mode values").
MODE_3_MISC: Final = 0x67
MODE_3_SEQUENCER: Final = bytes.fromhex("0300030002000000")
MODE_3_CRTC: Final = bytes.fromhex("5f4f50825581bf1f004f0d0e00000000 9c8e8f281f96b9a3ff")
MODE_3_GRAPHICS: Final = bytes.fromhex("0000000000100e00ff")
MODE_3_ATTRIBUTE: Final = bytes.fromhex("000102030405140738393a3b3c3d3e3f 0c000f0800")
COLORS = 256

# The screen memory's windows, by bits 2-3 of graphics register 6: address and bytes.
WINDOWS: Final = ((0xA0000, 0x20000), (0xA0000, 0x10000), (0xB0000, 0x8000), (0xB8000, 0x8000))
MOST_COLUMNS: Final = 256
MOST_ROWS: Final = 128
PALETTE_BYTES: Final = 3 * 16


@dataclass(frozen=True, slots=True)
class ScreenImage:
    """What the screen shows: hvd.v1.Screen. Without columns and rows it shows no text, and note says why."""

    columns: int = 0
    rows: int = 0
    cells: bytes = b""
    cursor: tuple[int, int] | None = None  # row, column
    palette: bytes = b""
    note: str = ""


@functools.cache
def _first_colors() -> bytes:
    """The 64 colours of the EGA, two bits for each of red, green and blue (bits rgbRGB), as the BIOS loads them."""
    colors = bytearray(3 * COLORS)
    for number in range(64):
        for channel in range(3):
            bright, dim = number >> (2 - channel) & 1, number >> (5 - channel) & 1
            colors[3 * number + channel] = 0x2A * bright + 0x15 * dim
    return bytes(colors)


class Vga:
    """The registers, and screen() for those who look."""

    name: ClassVar[str] = "vga"
    widest: ClassVar[int] = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.reset()

    @property
    def ports(self) -> Sequence[range]:
        return (
            range(CRTC_MONO, CRTC_MONO + 2),
            range(STATUS_MONO, STATUS_MONO + 1),
            range(ATTRIBUTE, GRAPHICS + 2),
            range(CRTC_COLOR, CRTC_COLOR + 2),
            range(STATUS_COLOR, STATUS_COLOR + 1),
        )

    def reset(self) -> None:
        self._misc = MODE_3_MISC
        self._feature = 0
        self._sequencer, self._crtc = bytearray(MODE_3_SEQUENCER), bytearray(MODE_3_CRTC)
        self._graphics, self._attribute = bytearray(MODE_3_GRAPHICS), bytearray(MODE_3_ATTRIBUTE)
        self._sequencer_index = self._crtc_index = self._graphics_index = 0
        self._attribute_index = 0x20  # with bit 5: the palette drives the screen
        self._attribute_data_next = False
        self._colors = bytearray(_first_colors())
        self._pel_mask = 0xFF
        self._color_index = self._color_component = 0
        self._color_reading = False
        self._status = 0

    # ---- registers

    def _here(self, port: int) -> int | None:
        """A port of the group that has two places as the colour one; None = it is not there now."""
        if port < ATTRIBUTE:
            return None if self._misc & MISC_COLOR else port + 0x20
        if port >= CRTC_COLOR:
            return port if self._misc & MISC_COLOR else None
        return port

    def read_port(self, port: int, size: int) -> int:
        place = self._here(port)
        match place:
            case 0x3D4:
                return self._crtc_index
            case 0x3D5:
                return _register(self._crtc, self._crtc_index)
            case 0x3DA:
                self._attribute_data_next = False
                self._status ^= STATUS_1_TOGGLES
                return self._status
            case 0x3C0:
                return self._attribute_index
            case 0x3C1:
                return _register(self._attribute, self._attribute_index & 0x1F)
            case 0x3C2:
                return STATUS_0_SWITCH
            case 0x3C4:
                return self._sequencer_index
            case 0x3C5:
                return _register(self._sequencer, self._sequencer_index)
            case 0x3C6:
                return self._pel_mask
            case 0x3C7:
                return 3 if self._color_reading else 0
            case 0x3C8:
                return self._color_index
            case 0x3C9:
                return self._next_color(None)
            case 0x3CA:
                return self._feature
            case 0x3CC:
                return self._misc
            case 0x3CE:
                return self._graphics_index
            case 0x3CF:
                return _register(self._graphics, self._graphics_index)
        return 0xFF

    def write_port(self, port: int, size: int, value: int) -> None:
        match self._here(port):
            case 0x3D4:
                self._crtc_index = value
            case 0x3D5:
                self._write_crtc(value)
            case 0x3DA:
                self._feature = value
            case 0x3C0:
                self._write_attribute(value)
            case 0x3C2:
                self._misc = value
            case 0x3C4:
                self._sequencer_index = value
            case 0x3C5:
                _store(self._sequencer, self._sequencer_index, value)
            case 0x3C6:
                self._pel_mask = value
            case 0x3C7 | 0x3C8 as which:
                self._color_index, self._color_component = value, 0
                self._color_reading = which == DAC_STATE
            case 0x3C9:
                self._next_color(value)
            case 0x3CE:
                self._graphics_index = value
            case 0x3CF:
                _store(self._graphics, self._graphics_index, value)

    def _write_crtc(self, value: int) -> None:
        index = self._crtc_index
        if index < 8 and self._crtc[0x11] & 0x80:  # protected, but for one bit of the line compare
            if index == 7:
                self._crtc[7] = (self._crtc[7] & ~0x10) | (value & 0x10)
            return
        _store(self._crtc, index, value)

    def _write_attribute(self, value: int) -> None:
        if self._attribute_data_next:
            _store(self._attribute, self._attribute_index & 0x1F, value)
        else:
            self._attribute_index = value & 0x3F
        self._attribute_data_next = not self._attribute_data_next

    def _next_color(self, value: int | None) -> int:
        """Write a component of the palette, or read one; the index moves on after three."""
        place = 3 * self._color_index + self._color_component
        if value is not None:
            self._colors[place] = value & 0x3F
        result = self._colors[place]
        self._color_component = (self._color_component + 1) % 3
        if self._color_component == 0:
            self._color_index = (self._color_index + 1) % COLORS
        return result

    # ---- the picture

    def screen(self) -> ScreenImage:
        """What is shown now."""
        crtc, graphics = self._crtc, self._graphics
        lines = 1 + (crtc[0x12] | (crtc[7] & 0x02) << 7 | (crtc[7] & 0x40) << 3)
        columns = crtc[1] + 1
        if graphics[6] & 1 or self._attribute[0x10] & 1:
            return ScreenImage(
                note=f"the guest is in a graphics mode ({self._size(columns, lines)}), which is not shown"
            )
        rows = min(max(lines // ((crtc[9] & 0x1F) + 1) // (2 if crtc[9] & 0x80 else 1), 1), MOST_ROWS)
        window, length = WINDOWS[graphics[6] >> 2 & 3]
        try:
            memory = self._machine.memory.read(window, length)
        except HvdError:
            return ScreenImage(note=f"the guest has no memory at {window:#x}, where its screen would be")
        start, pitch = 2 * (crtc[0x0C] << 8 | crtc[0x0D]), 4 * crtc[0x13]
        cells = bytearray()
        for row in range(rows):
            at = (start + row * pitch) % length
            line = memory[at : at + 2 * columns]
            cells += line + memory[: 2 * columns - len(line)]
        return ScreenImage(columns, rows, bytes(cells), self._cursor(columns, rows), self._palette(), self._blanked())

    def _size(self, columns: int, lines: int) -> str:
        width = columns * (4 if self._attribute[0x10] & 0x40 else 8)  # eight bits a dot: two clocks each
        return f"{width}x{lines // (2 if self._crtc[9] & 0x9F else 1)}"

    def _cursor(self, columns: int, rows: int) -> tuple[int, int] | None:
        crtc = self._crtc
        if crtc[0x0A] & 0x20 or crtc[0x0A] & 0x1F > crtc[0x0B] & 0x1F:
            return None
        distance = ((crtc[0x0E] << 8 | crtc[0x0F]) - (crtc[0x0C] << 8 | crtc[0x0D])) & 0xFFFF
        row, column = divmod(distance, max(2 * crtc[0x13], 1))
        return (row, column) if row < rows and column < columns else None

    def _palette(self) -> bytes:
        """Red, green and blue, 8 bits each, of the sixteen colours that an attribute can name."""
        attribute = self._attribute
        own, selected = (0x0F, 0x0F) if attribute[0x10] & 0x80 else (0x3F, 0x0C)
        result = bytearray()
        for number in range(16):
            index = (attribute[number] & own) | (attribute[0x14] & selected) << 4
            place = 3 * (index & self._pel_mask)
            result += bytes(value << 2 | value >> 4 for value in self._colors[place : place + 3])
        return bytes(result)

    def _blanked(self) -> str:
        off = self._sequencer[1] & 0x20 or not self._attribute_index & 0x20
        return "the guest has switched its screen off: this is what it would show" if off else ""

    # ---- snapshots

    _BANKS: ClassVar[dict[str, int]] = {
        "sequencer": len(MODE_3_SEQUENCER), "crtc": len(MODE_3_CRTC), "graphics": len(MODE_3_GRAPHICS),
        "attribute": len(MODE_3_ATTRIBUTE), "colors": 3 * COLORS,
    }  # fmt: skip
    _BYTES: ClassVar[tuple[str, ...]] = (
        "misc", "feature", "sequencer_index", "crtc_index", "graphics_index", "attribute_index", "pel_mask", "color_index",
        "color_component", "status",
    )  # fmt: skip
    _FLAGS: ClassVar[tuple[str, ...]] = ("attribute_data_next", "color_reading")

    def save(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, f"_{name}").hex() for name in self._BANKS}
        return state | {name: getattr(self, f"_{name}") for name in (*self._BYTES, *self._FLAGS)}

    def restore(self, state: dict[str, Any]) -> None:
        after_reset = self.save()
        saved.only(state, frozenset(after_reset), self.name)
        for name in self._BANKS:
            setattr(self, f"_{name}", bytearray(saved.data(state, name, bytes.fromhex(after_reset[name]))))
        for name in self._BYTES:
            most = 2 if name == "color_component" else 0xFF
            setattr(self, f"_{name}", saved.number(state, name, most, after_reset[name]))
        for name in self._FLAGS:
            setattr(self, f"_{name}", saved.flag(state, name, after_reset[name]))
        self._colors = bytearray(value & 0x3F for value in self._colors)


def _register(bank: bytearray, index: int) -> int:
    return bank[index] if index < len(bank) else 0


def _store(bank: bytearray, index: int, value: int) -> None:
    if index < len(bank):
        bank[index] = value
