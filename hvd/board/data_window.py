"""DataWindow: a device's data port that C serves (native/window.c)."""

from __future__ import annotations

import ctypes

_u8, _u16, _u32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32

WINDOWS = 4
WINDOW_BYTES = 8192


class _Window(ctypes.Structure):
    """struct hv_window."""

    _fields_ = (
        ("position", _u32), ("length", _u32), ("port", _u16), ("open", _u8), ("out", _u8), ("data", _u8 * WINDOW_BYTES),
    )  # fmt: skip


class DataWindow:
    """A device's data port, served in C until the last access of a block, which comes to the device.
    Belongs to the vcpu's thread."""

    def __init__(self, address: int, keep: object) -> None:
        """keep: what owns the memory at that address."""
        self._raw = _Window.from_address(address)
        self._keep = keep
        self.data = memoryview(self._raw.data).cast("B")

    def open(self, port: int, out: bool, length: int, position: int = 0) -> None:
        """The guest reads (out: writes) data[position:length] from now on. Raises ValueError."""
        if not 0 <= position <= length <= WINDOW_BYTES:
            raise ValueError(f"no window: {position} of {length} bytes")
        raw = self._raw
        raw.position, raw.length, raw.port, raw.out, raw.open = position, length, port, out, True

    def close(self) -> None:
        """Accesses go to the device. Position, length and data stay as they are."""
        self._raw.open = False

    @property
    def position(self) -> int:
        """Bytes that the guest has had or given."""
        return int(self._raw.position)

    @position.setter
    def position(self, value: int) -> None:
        self._raw.position = value

    @property
    def length(self) -> int:
        return int(self._raw.length)
