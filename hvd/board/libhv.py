"""libhv.so, the C part of the board (native/), by ctypes: its functions, and the table of its state."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hvd.board.pci import registers
from hvd.errors import HvdError

LIBRARY = Path(__file__).resolve().parent.parent / "libhv.so"

_u8, _u16, _u32, _u64, _size = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
_pointer, _unsigned, _bool = ctypes.c_void_p, ctypes.c_uint, ctypes.c_bool


_Prototypes = dict[str, tuple[type | None, list[type]]]
_Library = TypeVar("_Library", bound=ctypes.CDLL)


class _Field(ctypes.Structure):
    """struct hv_field (native/state.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("offset", _u32), ("width", _u32), ("count", _u32), ("least", _u64), ("most", _u64),
    )  # fmt: skip


# C function -> result, arguments (native/board.h).
_PROTOTYPES: _Prototypes = {
    "hv_host_ns": (_u64, []),
    "hv_clock_start": (None, [_pointer]),
    "hv_clock_stop": (None, [_pointer]),
    "hv_clock_now": (_u64, [_pointer]),
    "hv_board_size": (_size, []),
    "hv_board_init": (None, [_pointer, ctypes.c_int, _pointer, _size, _pointer, _size, _unsigned]),
    "hv_crossings_init": (None, [_pointer, _pointer, _size, _pointer, _size, _unsigned]),
    "hv_board_account": (None, [_pointer, _u64, _u64]),
    "hv_board_reset": (None, [_pointer]),
    "hv_board_claim": (None, [_pointer, _u16, _u16]),
    "hv_board_port_in": (ctypes.c_int, [_pointer, _u16, _unsigned, _pointer]),
    "hv_board_port_out": (ctypes.c_int, [_pointer, _u16, _unsigned, _u32]),
    "hv_board_mmio_read": (_bool, [_pointer, _u64, _unsigned, _pointer]),
    "hv_board_mmio_write": (ctypes.c_int, [_pointer, _u64, _unsigned, _u64]),
    "hv_board_set_irq": (None, [_pointer, _unsigned, _bool]),
    "hv_board_msi": (None, [_pointer, _u64, _u32]),
    "hv_board_peek": (ctypes.c_int, [_pointer]),
    "hv_board_read_msr": (_bool, [_pointer, _u32, _pointer]),
    "hv_board_write_msr": (_bool, [_pointer, _u32, _u64]),
    "hv_board_cr8": (_u8, [_pointer]),
    "hv_board_set_cr8": (None, [_pointer, _u8]),
    "hv_board_advance": (_bool, [_pointer]),
    "hv_board_deadline": (_u64, [_pointer]),
    "hv_board_console": (_pointer, [_pointer]),
    "hv_board_use_console": (None, [_pointer, _pointer]),
    "hv_board_crossings": (_pointer, [_pointer]),
    "hv_board_counters": (_pointer, [_pointer]),
    "hv_board_clock": (_pointer, [_pointer]),
    "hv_board_acknowledge": (_u8, [_pointer]),
    "hv_board_console_write": (_size, [_pointer, ctypes.c_char_p, _size]),
    "hv_board_console_read": (_size, [_pointer, _pointer, _size]),
    "hv_board_console_waiting": (_size, [_pointer]),
    "hv_board_typed_to_virtio": (_bool, [_pointer]),
    "hv_board_type_to_virtio": (None, [_pointer, _bool]),
    "hv_console_take": (_size, [_pointer, _pointer, _size]),
    "hv_console_put": (_size, [_pointer, ctypes.c_char_p, _size]),
    "hv_console_sleep": (_bool, [_pointer]),
    "hv_console_doze": (None, [_pointer]),
    "hv_console_rest": (None, [_pointer, ctypes.c_int]),
    "hv_board_window": (_pointer, [_pointer, _unsigned]),
    "hv_board_cmos": (_pointer, [_pointer]),
    "hv_board_vga": (_pointer, [_pointer]),
    "hv_board_keyboard": (_pointer, [_pointer]),
    "hv_keyboard_reset": (None, [_pointer]),
    "hv_keyboard_read": (_u8, [_pointer, _unsigned]),
    "hv_keyboard_write": (_bool, [_pointer, _unsigned, _u8]),
    "hv_keyboard_press": (_bool, [_pointer, ctypes.c_char_p, _size]),
    "hv_board_acpi": (_pointer, [_pointer]),
    "hv_acpi_read": (_u8, [_pointer, _unsigned]),
    "hv_acpi_write": (_bool, [_pointer, _unsigned, _u8]),
    "hv_acpi_drive": (None, [_pointer]),
    "hv_vga_in": (_bool, [_pointer, _u16, _unsigned, _pointer]),
    "hv_vga_out": (_bool, [_pointer, _u16, _unsigned, _u32]),
    "hv_cmos_in": (_bool, [_pointer, _u16, _unsigned, _pointer]),
    "hv_cmos_register": (_bool, [_pointer, _unsigned, _pointer]),
    "hv_cmos_out": (_bool, [_pointer, _u16, _unsigned, _u32]),
    "hv_console_unread": (_size, [_pointer, _pointer, _size]),
    "hv_board_field_count": (_size, []),
    "hv_board_field": (ctypes.POINTER(_Field), [_size]),
    "hv_board_get_field": (_u64, [_pointer, _size, _u32]),
    "hv_board_set_field": (_bool, [_pointer, _size, _u32, _u64]),
    "hv_board_restored": (None, [_pointer]),
    "hv_clock_set": (_bool, [_pointer, _u64]),
    "hv_crossings_tap": (None, [_pointer, _pointer]),
    "hv_note": (None, [_pointer, _unsigned, _u64, _u64, _u64, _u64, _u64]),
    "hv_cross": (None, [_pointer, _unsigned, _u64, _u64, _unsigned, _u64, _u64, _u64, _u64]),
    **registers.PROTOTYPES,
}
# Those that take a while (native/pages.c).
_SLOW: _Prototypes = {
    "hv_crc32c": (_u32, [_u32, _pointer, _size]),
    "hv_nonzero_run": (_size, [_pointer, _size, _size, ctypes.POINTER(_size)]),
    "hv_store_file": (ctypes.c_int64, [ctypes.c_int, _u64, ctypes.c_int, _u64, _u64]),
    "hv_make_large": (_unsigned, [ctypes.c_int, _u64, _u64]),
}


@functools.cache
def library(path: Path = LIBRARY) -> ctypes.PyDLL:
    """libhv.so with its prototypes set. Raises HvdError NATIVE_MISSING.

    None of these functions blocks, so they keep the interpreter's lock: giving it up and getting it back costs more
    than they do.
    """
    return _declared(ctypes.PyDLL, path, _PROTOTYPES)


@functools.cache
def slow_library(path: Path = LIBRARY) -> ctypes.CDLL:
    """libhv.so's functions that take a while and give the interpreter's lock up. Raises HvdError NATIVE_MISSING."""
    return _declared(ctypes.CDLL, path, _SLOW)


def _declared(kind: type[_Library], path: Path, prototypes: _Prototypes) -> _Library:
    try:
        lib = kind(str(path))
        for name, (result, arguments) in prototypes.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise HvdError("NATIVE_MISSING", path=path, problem=error) from error
    return lib


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the board's state in a snapshot. count: elements, 1 = no array."""

    name: str
    bits: int
    count: int
    least: int
    most: int


@functools.cache
def fields() -> tuple[Field, ...]:
    """The board's state by name: the table of native/state.c. Raises HvdError NATIVE_MISSING."""
    lib = library()
    rows = (lib.hv_board_field(index).contents for index in range(lib.hv_board_field_count()))
    return tuple(Field(row.name.decode(), 8 * row.width, row.count, row.least, row.most) for row in rows)
