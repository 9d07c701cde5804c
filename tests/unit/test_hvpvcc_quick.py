"""The loader's quick replacement of sites does what finish() does, byte for byte, and refuses what finish() refuses, with its words."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from harness import GUESTS, kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.memory import GuestMemory
from hvd.board.paravirt import patches, replace_sites
from hvd.errors import HvdError
from hvd.hvpvcc import quick
from hvd.hvpvcc.elf import Elf
from hvd.hvpvcc.sites import SECTION, Kind, read_table

MEMORY = 2 << 20
HOLE = kernel("hole.hvpv.elf").read_bytes()
KERNELS = sorted(GUESTS.glob("*.hvpv.elf"))


def slowly(content: bytes) -> bytes | str:
    """All of memory, or what is said."""
    with GuestMemory(MEMORY) as memory:
        try:
            for address, code in patches(content):
                memory.write(address, code)
        except HvdError as error:
            return str(error)
        return bytes(memory.whole)


def quickly(content: bytes) -> bytes | str:
    with GuestMemory(MEMORY) as memory:
        try:
            replace_sites(memory, content)
        except HvdError as error:
            return str(error)
        return bytes(memory.whole)


def table_of(content: bytes) -> tuple[int, int]:
    """Where in the file it is, and how many records it has."""
    section = Elf(content).section(SECTION)
    assert section is not None
    return section.offset, section.size // 8


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_the_same_bytes(path: Path) -> None:
    content = path.read_bytes()
    made = quickly(content)
    assert isinstance(made, bytes) and made == slowly(content)
    with GuestMemory(MEMORY) as memory:  # and not by falling back
        assert quick.patch(memory, Elf(content))


def test_kinds_are_numbered_without_a_gap() -> None:
    """patch.c knows the last one only."""
    assert sorted(Kind) == list(range(max(Kind) + 1))


def test_records_in_any_order() -> None:
    at, count = table_of(HOLE)
    records = [HOLE[at + 8 * index :][:8] for index in range(count)]
    turned = HOLE[:at] + b"".join(reversed(records)) + HOLE[at + 8 * count :]
    assert quickly(turned) == slowly(HOLE)


def record_like(index: int, change: int, at: int) -> bytes:
    """One that is there, with a byte changed."""
    start, count = table_of(HOLE)
    data = bytearray(HOLE[start + 8 * (index % count) :][:8])
    data[at] = (data[at] + change) & 0xFF
    return bytes(data)


def sti_at(address: int, length: int) -> bytes:
    return struct.pack("<IBBBB", address, Kind.STI, length, 1, 0)


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 200),
            st.one_of(
                st.binary(min_size=8, max_size=8),
                st.builds(record_like, st.integers(0, 200), st.integers(-9, 9), st.integers(0, 7)),
                st.builds(sti_at, st.integers(0xFFFF0, 0x104000), st.integers(0, 20)),
            ),
        ),
        max_size=4,
    ),
    code=st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from([0xFB, 0xFA, 0xCF, 0x90, 0xF4, 0x0F])), max_size=4),
)
def test_tables_that_lie(changes: list[tuple[int, bytes]], code: list[tuple[int, int]]) -> None:
    data = bytearray(HOLE)
    at, count = table_of(HOLE)
    table = read_table(Elf(HOLE))
    assert table is not None
    for place, byte in code:  # somewhere in a site
        site = table.sites[place % len(table.sites)]
        data[Elf(HOLE).file_offset(site.address, 1) + place % site.length] = byte
    for index, record in changes:
        data[at + 8 * (index % count) : at + 8 * (index % count) + 8] = record
    assert quickly(bytes(data)) == slowly(bytes(data))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 600), junk=st.binary(min_size=1, max_size=12), tail=st.booleans())
def test_damaged_headers(at: int, junk: bytes, tail: bool) -> None:
    """Of the file, its segments and (at its end) its sections."""
    data = bytearray(HOLE)
    start = len(data) - at - len(junk) if tail else at
    data[start : start + len(junk)] = junk
    assert outcome(quickly, bytes(data)) == outcome(slowly, bytes(data))


def outcome(way, content: bytes) -> object:
    try:
        return way(content)
    except (OSError, ValueError) as error:
        return type(error), str(error)


def test_more_shapes_than_it_knows_are_left_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick.library(), "hv_sites_group", lambda *arguments: -1)
    with GuestMemory(MEMORY) as memory:
        assert not quick.patch(memory, Elf(HOLE))
    assert quickly(HOLE) == slowly(HOLE)


def test_a_kernel_that_does_not_fit_into_memory_is_told_so() -> None:
    with GuestMemory(64 << 10) as memory, pytest.raises(HvdError) as caught:
        replace_sites(memory, HOLE)
    assert caught.value.reason == "ADDRESS_OUTSIDE"
