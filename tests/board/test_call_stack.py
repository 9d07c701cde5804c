"""The walk along frame pointers: through every kind of page tables, and through nonsense without reading what is not RAM."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.libhv import library

MOST = 20
RAM = 1 << 20
PG, PSE, PAE, LA57, LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_Memory = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t)


class _Begin(ctypes.Structure):
    """struct hv_stack_begin."""

    _fields_ = (
        ("cr0", ctypes.c_uint64), ("cr3", ctypes.c_uint64), ("cr4", ctypes.c_uint64), ("efer", ctypes.c_uint64), ("frame", ctypes.c_uint64),
        ("word", ctypes.c_uint32), ("memory", _Memory), ("owner", ctypes.c_void_p),
    )  # fmt: skip


class Guest:
    """Memory, and a stack in it."""

    def __init__(self) -> None:
        self.ram = (ctypes.c_uint8 * RAM)()

    def put(self, address: int, word: int, *values: int) -> None:
        data = struct.pack(f"<{len(values)}{'I' if word == 4 else 'Q'}", *values)
        ctypes.memmove(ctypes.addressof(self.ram) + address, data, len(data))

    def walk(self, frame: int, word: int = 4, *, cr0: int = 0, cr3: int = 0, cr4: int = 0, efer: int = 0) -> list[int]:
        def memory(_: object, physical: int, length: int) -> int | None:
            return ctypes.addressof(self.ram) + physical if physical + length <= RAM else None

        begin = _Begin(cr0, cr3, cr4, efer, frame, word, _Memory(memory), None)
        found = (ctypes.c_uint64 * MOST)()
        walk: Any = library().hv_stack_walk
        return list(found[: walk(ctypes.byref(begin), found, MOST)])

    def frames(self, at: int, word: int, virtual: int = 0) -> int:
        """Three of them from there on; where the first one is for the guest."""
        first = virtual or at
        self.put(at, word, first + 0x40, 0x1111)
        self.put(at + 0x40, word, first + 0x100, 0x2222)
        self.put(at + 0x100, word, 0, 0x3333)
        return first


CALLERS = [0x1111, 0x2222, 0x3333]


def test_without_paging() -> None:
    guest = Guest()
    assert guest.walk(guest.frames(0x8000, 4)) == CALLERS


def tables_32(guest: Guest) -> tuple[int, dict[str, int]]:
    guest.put(0x1000 + 0x300 * 4, 4, 0x2000 | 1)
    guest.put(0x2000 + 8 * 4, 4, 0x8000 | 1)
    return 0xC0008000, {"cr0": PG, "cr3": 0x1000}


def tables_pse(guest: Guest) -> tuple[int, dict[str, int]]:
    guest.put(0x1000 + 0x300 * 4, 4, 0x81)
    return 0xC0008000, {"cr0": PG, "cr3": 0x1000, "cr4": PSE}


def tables_pae(guest: Guest) -> tuple[int, dict[str, int]]:
    guest.put(0x1000 + 3 * 8, 8, 0x2000 | 1)
    guest.put(0x2000, 8, 0x3000 | 1 | 1 << 63)
    guest.put(0x3000 + 8 * 8, 8, 0x8000 | 1 | 1 << 63)
    return 0xC0008000, {"cr0": PG, "cr3": 0x1000, "cr4": PAE}


def tables_pae_large(guest: Guest) -> tuple[int, dict[str, int]]:
    guest.put(0x1000 + 3 * 8, 8, 0x2000 | 1)
    guest.put(0x2000, 8, 0x81)
    return 0xC0008000, {"cr0": PG, "cr3": 0x1000, "cr4": PAE}


def tables_64(guest: Guest) -> tuple[int, dict[str, int]]:
    for table, index, to in ((0x1000, 511, 0x2000), (0x2000, 510, 0x3000), (0x3000, 0, 0x4000), (0x4000, 8, 0x8000)):
        guest.put(table + index * 8, 8, to | 1)
    return 0xFFFFFFFF80008000, {"word": 8, "cr0": PG, "cr3": 0x1000, "cr4": PAE, "efer": LMA}


def tables_gigabyte(guest: Guest) -> tuple[int, dict[str, int]]:
    guest.put(0x1000 + 511 * 8, 8, 0x2000 | 1)
    guest.put(0x2000 + 510 * 8, 8, 0x81)
    return 0xFFFFFFFF80008000, {"word": 8, "cr0": PG, "cr3": 0x1000, "cr4": PAE, "efer": LMA}


TABLES = [tables_32, tables_pse, tables_pae, tables_pae_large, tables_64, tables_gigabyte]


@pytest.mark.parametrize("tables", TABLES)
def test_through_page_tables(tables: Callable[[Guest], tuple[int, dict[str, int]]]) -> None:
    guest = Guest()
    virtual, registers = tables(guest)
    frame = guest.frames(0x8000, registers.get("word", 4), virtual)
    assert guest.walk(frame, **registers) == CALLERS
    assert guest.walk(frame + 0x2000000, **registers) == [], "not mapped"
    assert guest.walk(frame, **{**registers, "cr3": 0x40000}) == []


def test_five_levels_are_not_known() -> None:
    guest = Guest()
    virtual, registers = tables_64(guest)
    assert guest.walk(guest.frames(0x8000, 8, virtual), **{**registers, "cr4": PAE | LA57}) == []


@pytest.mark.parametrize("frame", [0, 2, 0x8002, RAM - 4, RAM - 8 + 1, RAM, 0xFFFFFFFC, 0xFFFFFFF8])
def test_frames_that_cannot_be(frame: int) -> None:
    guest = Guest()
    guest.frames(0x8000, 4)
    assert len(guest.walk(frame)) <= 1


def test_a_chain_in_a_circle_or_without_end_ends() -> None:
    guest = Guest()
    guest.put(0x8000, 4, 0x8000, 0x1111)
    assert guest.walk(0x8000) == [0x1111]
    for at in range(0x8000, 0x9000, 8):
        guest.put(at, 4, at + 8, 0x4444)
    assert guest.walk(0x8000) == [0x4444] * MOST
    guest.put(0x8000, 4, 0x8000 + (1 << 17), 0x5555)
    assert guest.walk(0x8000) == [0x5555], "too far away to be the same stack"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0xFFF), st.integers(0, (1 << 64) - 1)), max_size=40),
    st.integers(0, (1 << 64) - 1), st.sampled_from([4, 8]), st.sampled_from([0, PG]), st.integers(0, 0xFFFFF), st.sampled_from([0, PSE, PAE]),
    st.sampled_from([0, LMA]),
)  # fmt: skip
def test_nonsense_reads_nothing_but_ram(words: list[tuple[int, int]], frame: int, word: int, cr0: int, cr3: int, cr4: int, efer: int) -> None:
    guest = Guest()
    for place, value in words:
        guest.put(place * 8, 8, value)
    assert len(guest.walk(frame, word, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer)) <= MOST
