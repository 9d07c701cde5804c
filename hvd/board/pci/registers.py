"""What PCI's functions share with the C that answers for them (hvd/board/native/pci.h): configuration spaces, BARs, interrupt pins, the
registers of virtio."""

from __future__ import annotations

import ctypes
import enum
from typing import Any, Final

SPACES: Final = 32
CONFIG_BYTES: Final = 256
QUEUES: Final = 4

_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class Purpose(enum.IntEnum):
    """enum hv_virtio_purpose: what a queue's buffers are for, if more than the device in Python looks after it."""

    ANY = 0
    TYPED = 1  # what is typed at the console, and nothing else
    RANDOM = 2  # random numbers


class QueueRegisters(ctypes.Structure):
    """struct hv_virtio_queue: what the driver wrote of a queue, which is fixed while it is enabled, and what the device says of it."""

    _fields_ = (
        ("descriptors", _u64), ("driver", _u64), ("device", _u64), ("size", _u16), ("vector", _u16), ("enabled", _u8), ("purpose", _u8),
        ("most", _u16), ("next", _u16), ("used", _u16), ("told", _u16), ("reserved", _u16),
    )  # fmt: skip


class VirtioRegisters(ctypes.Structure):
    """struct hv_virtio."""

    _fields_ = (
        ("offered", _u64), ("ram_end", _u64), ("bar", _u8), ("queues", _u8), ("msix", _u8), ("vectors", _u16), ("config_vector", _u16),
        ("queue_select", _u16), ("feature_select", _u32), ("driver_select", _u32), ("accepted", _u64), ("status", _u8),
        ("generation", _u8), ("isr", _u8), ("reserved", _u8 * 3), ("queue", QueueRegisters * QUEUES),
    )  # fmt: skip


class Space(ctypes.Structure):
    """struct hv_pci_space. A function is made with one of its own, and is given its place among the board's by the bus."""

    _fields_ = (
        ("asks", _u64), ("tells", _u64), ("bar_bytes", _u32 * 6), ("wide", _u8), ("place", _u8), ("gsi", _u8), ("writable", _u8 * CONFIG_BYTES),
        ("intx", _u8), ("data", _u8 * CONFIG_BYTES), ("virtio", VirtioRegisters),
    )  # fmt: skip


class _Spaces(ctypes.Structure):
    _fields_ = (("count", _u32), ("space", Space * SPACES))


class _Address(ctypes.Structure):
    """struct hv_pci."""

    _fields_ = (("address", _u32), ("bus", _u8), ("functions", _u8 * 32))


class PciRegisters:
    """Of one board."""

    def __init__(self, library: ctypes.PyDLL, board: int, keep: object) -> None:
        """board: struct hv_board *, in memory that lives as long as `keep`."""
        self._lib, self._board, self._keep = library, board, keep
        self._spaces = _Spaces.from_address(library.hv_board_pci_spaces(board))
        self._hot = _Address.from_address(library.hv_board_pci(board))
        self._value, self._bar, self._offset = _u64(), _u32(), _u64()
        self._arguments = (_u64 * 4)()
        self._at_value, self._at_bar, self._at_offset = (ctypes.byref(each) for each in (self._value, self._bar, self._offset))

    def clear(self) -> None:
        """There are no functions."""
        self._spaces.count = 0
        ctypes.memset(ctypes.addressof(self._hot), 0, ctypes.sizeof(self._hot))

    def add(self, slot: int, number: int, space: Space) -> Space:
        """There is such a function, on a bus that is there: what is for no function needs no trip to Python from now on. Returns where its
        space is from now on. Raises ValueError when there is no room."""
        index = self._spaces.count
        if index == SPACES:
            raise ValueError(f"there is no room for more than {SPACES} functions")
        space.place = slot << 3 | number
        place = self._spaces.space[index]
        ctypes.memmove(ctypes.addressof(place), ctypes.addressof(space), ctypes.sizeof(space))
        place.keep = self._keep
        self._spaces.count += 1
        self._hot.bus = 1
        self._hot.functions[slot] |= 1 << number
        return place  # type: ignore[no-any-return]

    @property
    def address(self) -> int:
        """The address register of configuration mechanism 1."""
        return int(self._hot.address)

    @address.setter
    def address(self, value: int) -> None:
        self._hot.address = value

    # ---- ports and memory: None and False are for Python to do

    def read_port(self, port: int, size: int) -> int | None:
        self._value.value = 0
        return self._value.value if self._lib.hv_pci_in(self._board, port, size, self._at_value) else None

    def write_port(self, port: int, size: int, value: int) -> bool:
        return bool(self._lib.hv_pci_out(self._board, port, size, value))

    def find(self, address: int, size: int) -> tuple[int, int, int] | None:
        """Which BAR answers there: its function's place (slot << 3 | number), its number, the offset in it."""
        index: int = self._lib.hv_pci_find(self._board, address, size, self._at_bar, self._at_offset)
        return None if index < 0 else (self._spaces.space[index].place, self._bar.value, self._offset.value)

    def notification(self, address: int) -> tuple[int, int, int, int]:
        """After MmioResult.NOTIFIED: the arguments of the trace point."""
        self._lib.hv_pci_notification(self._board, address, 0, self._arguments)
        return tuple(self._arguments)

    # ---- of one function

    def write_space(self, space: Space, offset: int, size: int, value: int) -> None:
        """By the guest: the bits that it may change."""
        self._lib.hv_pci_write_space(self._board, ctypes.byref(space), offset, size, value)

    def set_intx(self, space: Space, level: bool) -> None:
        """Drive its pin."""
        self._lib.hv_pci_set_intx(self._board, ctypes.byref(space), level)

    def drive(self) -> None:
        """The interrupt lines, after pins or what they may do were changed by hand."""
        self._lib.hv_pci_drive(self._board)

    def read_virtio(self, space: Space, bar: int, offset: int, size: int) -> int | None:
        answered = self._lib.hv_pci_virtio_read(self._board, ctypes.byref(space), bar, offset, size, self._at_value)
        return self._value.value if answered else None

    def write_virtio(self, space: Space, bar: int, offset: int, size: int, value: int) -> bool:
        return bool(self._lib.hv_pci_virtio_write(ctypes.byref(space), bar, offset, size, value))


_pointer, _unsigned, _bool = ctypes.c_void_p, ctypes.c_uint, ctypes.c_bool
# For hvd.board.libhv.
PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "hv_board_pci": (_pointer, [_pointer]),
    "hv_board_pci_spaces": (_pointer, [_pointer]),
    "hv_pci_in": (_bool, [_pointer, _u16, _unsigned, _pointer]),
    "hv_pci_out": (_bool, [_pointer, _u16, _unsigned, _u32]),
    "hv_pci_find": (ctypes.c_int, [_pointer, _u64, _unsigned, _pointer, _pointer]),
    "hv_pci_notification": (None, [_pointer, _u64, _unsigned, _pointer]),
    "hv_pci_write_space": (None, [_pointer, _pointer, _unsigned, _unsigned, _u32]),
    "hv_pci_set_intx": (None, [_pointer, _pointer, _bool]),
    "hv_pci_drive": (None, [_pointer]),
    "hv_pci_virtio_read": (_bool, [_pointer, _pointer, _unsigned, _u64, _unsigned, _pointer]),
    "hv_pci_virtio_write": (_bool, [_pointer, _unsigned, _u64, _unsigned, _u64]),
}
