"""What devices in Python share with the C that answers for them (hvd/board/native): registers that these devices reset, look at and save."""

from __future__ import annotations

import ctypes
from typing import Final

KEY_BYTES: Final = 16

_u8, _u16, _u32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32


class CmosRegisters(ctypes.Structure):
    """struct hv_cmos."""

    _fields_ = (
        ("base_s", ctypes.c_int64), ("base_ns", _u32), ("there", _u8), ("frozen", _u8), ("index", _u8), ("memory", _u8 * 128),
    )  # fmt: skip


class VgaRegisters(ctypes.Structure):
    """struct hv_vga."""

    _fields_ = (
        ("there", _u8), ("misc", _u8), ("feature", _u8), ("pel_mask", _u8), ("status", _u8), ("sequencer_index", _u8), ("crtc_index", _u8),
        ("graphics_index", _u8), ("attribute_index", _u8), ("attribute_data_next", _u8), ("color_index", _u8), ("color_component", _u8),
        ("color_reading", _u8), ("sequencer", _u8 * 8), ("crtc", _u8 * 25), ("graphics", _u8 * 9), ("attribute", _u8 * 21), ("colors", _u8 * 768),
    )  # fmt: skip


class KeyBytes(ctypes.Structure):
    """struct hv_key_bytes: bytes that wait, the first to come first."""

    _fields_ = (("count", _u8), ("byte", _u8 * KEY_BYTES))

    def get(self) -> bytes:
        return bytes(self.byte[: self.count])

    def set(self, content: bytes) -> None:
        """At most KEY_BYTES."""
        self.count = len(content)
        self.byte[: len(content)] = tuple(content)


class Ps2Registers(ctypes.Structure):
    """struct hv_ps2."""

    _fields_ = (
        ("answers", KeyBytes), ("keys", KeyBytes), ("last", _u8), ("leds", _u8), ("awaits", _u8), ("set", _u8), ("scanning", _u8),
    )  # fmt: skip


class KeyboardRegisters(ctypes.Structure):
    """struct hv_keyboard."""

    _fields_ = (
        ("there", _u8), ("refused", _u8), ("mode", _u8), ("lines", _u8), ("last_was_command", _u8), ("awaits", _u8), ("full", _u8),
        ("buffer", _u8), ("released", _u8), ("ram", _u8 * 32), ("answers", KeyBytes), ("ps2", Ps2Registers),
    )  # fmt: skip


class AcpiRegisters(ctypes.Structure):
    """struct hv_acpi."""

    _fields_ = (("status", _u16), ("enable", _u16), ("control", _u16), ("there", _u8), ("arbiter", _u8), ("half", _u8))
