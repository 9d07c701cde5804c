"""The VGA as a text screen: its registers (IBM VGA/XGA Technical Reference Manual, chapter 2) in front of the screen
memory at 0xA0000-0xBFFFF, which is plain storage (hvd/board/memory.py): drawing takes no exit, and what is shown is read
out of memory when somebody looks.

After power-on the registers are those of mode 3 (80x25, 16 colours), so that kernels without firmware can print at once.
What is left out: graphics modes are recognised, not shown; planes, fonts and write modes do not exist; blinking and
underlining; the line-compare split and the retrace's true timing, which is a bit that
changes at every read.

What a guest writes and reads is in C (hvd/board/native/vga.c), in registers that this device resets, shows and saves.
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

ATTRIBUTE, GRAPHICS = 0x3C0, 0x3CE
# The CRT controller and status 1 are at one of two places, as bit 0 of the miscellaneous output register says.
CRTC_MONO, STATUS_MONO, CRTC_COLOR, STATUS_COLOR = 0x3B4, 0x3BA, 0x3D4, 0x3DA

# Mode 3 as IBM's BIOS sets it (ibidem, "Video mode values").
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


_FIRST_BANKS: Final = {
    "sequencer": MODE_3_SEQUENCER, "crtc": MODE_3_CRTC, "graphics": MODE_3_GRAPHICS, "attribute": MODE_3_ATTRIBUTE, "colors": _first_colors(),
}  # fmt: skip
_BYTES: Final = (
    "misc", "feature", "sequencer_index", "crtc_index", "graphics_index", "attribute_index", "pel_mask", "color_index", "color_component", "status",
)  # fmt: skip
_FLAGS: Final = ("attribute_data_next", "color_reading")
_FIRST: Final = {"misc": 0x67, "attribute_index": 0x20, "pel_mask": 0xFF}  # bit 5 of the index: the palette drives the screen
_MOST: Final = {"color_component": 2}


class Vga:
    """The registers as they are after a reset, and screen() for those who look."""

    name: ClassVar[str] = "vga"
    widest: ClassVar[int] = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._registers = machine.board.vga()
        self._banks = {name: memoryview(getattr(self._registers, name)).cast("B") for name in _FIRST_BANKS}
        self._registers.there = True
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
        for name in (*_BYTES, *_FLAGS):
            setattr(self._registers, name, _FIRST.get(name, 0))
        for name, content in _FIRST_BANKS.items():
            self._banks[name][:] = content

    def read_port(self, port: int, size: int) -> int:
        return self._machine.board.read_vga(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self._machine.board.write_vga(port, size, value)

    # ---- the picture

    def screen(self) -> ScreenImage:
        """What is shown now."""
        crtc, graphics = self._banks["crtc"], self._banks["graphics"]
        lines = 1 + (crtc[0x12] | (crtc[7] & 0x02) << 7 | (crtc[7] & 0x40) << 3)
        columns = crtc[1] + 1
        if graphics[6] & 1 or self._banks["attribute"][0x10] & 1:
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
        width = columns * (4 if self._banks["attribute"][0x10] & 0x40 else 8)  # eight bits a dot: two clocks each
        height = lines // (2 if self._banks["crtc"][9] & 0x9F else 1)
        return f"{width}x{height}"

    def _cursor(self, columns: int, rows: int) -> tuple[int, int] | None:
        crtc = self._banks["crtc"]
        if crtc[0x0A] & 0x20 or crtc[0x0A] & 0x1F > crtc[0x0B] & 0x1F:
            return None
        distance = ((crtc[0x0E] << 8 | crtc[0x0F]) - (crtc[0x0C] << 8 | crtc[0x0D])) & 0xFFFF
        row, column = divmod(distance, max(2 * crtc[0x13], 1))
        return (row, column) if row < rows and column < columns else None

    def _palette(self) -> bytes:
        """Red, green and blue, 8 bits each, of the sixteen colours that an attribute can name."""
        attribute = self._banks["attribute"]
        own, selected = (0x0F, 0x0F) if attribute[0x10] & 0x80 else (0x3F, 0x0C)
        result = bytearray()
        for number in range(16):
            index = (attribute[number] & own) | (attribute[0x14] & selected) << 4
            place = 3 * (index & self._registers.pel_mask)
            result += bytes(value << 2 | value >> 4 for value in self._banks["colors"][place : place + 3])
        return bytes(result)

    def _blanked(self) -> str:
        off = self._banks["sequencer"][1] & 0x20 or not self._registers.attribute_index & 0x20
        return "the guest has switched its screen off: this is what it would show" if off else ""

    # ---- snapshots

    def save(self) -> dict[str, Any]:
        registers = self._registers
        state: dict[str, Any] = {name: bank.hex() for name, bank in self._banks.items()}
        return state | {name: getattr(registers, name) for name in _BYTES} | {name: bool(getattr(registers, name)) for name in _FLAGS}

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(self.save()), self.name)
        banks = {name: saved.data(state, name, content) for name, content in _FIRST_BANKS.items()}
        values: dict[str, int] = {name: saved.number(state, name, _MOST.get(name, 0xFF), _FIRST.get(name, 0)) for name in _BYTES}
        values |= {name: saved.flag(state, name) for name in _FLAGS}
        banks["colors"] = bytes(value & 0x3F for value in banks["colors"])
        for name, content in banks.items():
            self._banks[name][:] = content
        for name, value in values.items():
            setattr(self._registers, name, value)
