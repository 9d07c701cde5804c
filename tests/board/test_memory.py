"""Guest-physical memory: sizes, bounds, seals, the map, and that what nobody touched costs nothing."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from hvd.board import memory as module
from hvd.board.memory import GuestMemory, Region, RegionKind, check_size, host_memory_available
from hvd.errors import HvdError

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(8 * MIB) as memory:
        yield memory


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestMemory]:
    """5 GiB, on any host: nothing of it is touched."""
    monkeypatch.setattr(module, "host_memory_available", lambda: 64 * GIB)
    with GuestMemory(5 * GIB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "MEMORY_TOO_SMALL"),
        (1, "MEMORY_TOO_SMALL"),
        (-4096, "MEMORY_TOO_SMALL"),
        (60 << 10, "MEMORY_TOO_SMALL"),
        (64 * 1024 + 1, "MEMORY_ALIGNMENT"),
        (1 << 50, "MEMORY_TOO_LARGE"),
    ],
)
def test_sizes_that_are_refused(size: int, reason: str) -> None:
    with pytest.raises(HvdError) as caught:
        GuestMemory(size)
    assert caught.value.reason == reason
    assert caught.value.metadata["memory"] == str(size)


def test_smallest() -> None:
    with GuestMemory(64 << 10) as memory:
        assert memory.ram_spans() == [(0, 64 << 10, 0)]
        memory.write(65535, b"x")


def test_size_is_checked_against_the_host() -> None:
    check_size(64 << 10)
    with pytest.raises(HvdError) as caught:
        check_size((host_memory_available() // 4096 + (1 << 20)) * 4096)
    assert caught.value.reason == "MEMORY_TOO_LARGE"


def test_read_and_write(memory: GuestMemory) -> None:
    memory.write(0x1234, b"abc")
    assert memory.read(0x1233, 5) == b"\0abc\0"
    memory.write(8 * MIB - 1, b"z")
    assert memory.read(8 * MIB - 1, 1) == b"z"
    assert memory.read(8 * MIB, 0) == b""
    assert ctypes.string_at(memory.host_address + 0x1234, 3) == b"abc"
    assert os.pread(memory.fd, 3, 0x1234) == b"abc"


@pytest.mark.parametrize(
    ("address", "length"), [(8 * MIB, 1), (8 * MIB - 1, 2), (-1, 1), (0, -1), (1 << 64, 4), (0, 1 << 64)]
)
def test_outside(memory: GuestMemory, address: int, length: int) -> None:
    with pytest.raises(HvdError) as caught:
        memory.read(address, length)
    assert caught.value.reason == "ADDRESS_OUTSIDE"
    assert caught.value.metadata == {"address": hex(address), "length": str(length)}


def test_write_outside_writes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(HvdError, match="0x7fffff"):
        memory.write(8 * MIB - 1, b"ab")
    assert memory.read(8 * MIB - 1, 1) == b"\0"


def test_sealed_against_resizing(memory: GuestMemory) -> None:
    for size in (0, 16 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)


def test_above_3_gib(large: GuestMemory) -> None:
    assert large.ram_spans() == [(0, 3 * GIB, 0), (4 * GIB, 2 * GIB, 3 * GIB)]
    large.write(4 * GIB, b"high")
    assert os.pread(large.fd, 4, 3 * GIB) == b"high"
    large.write(6 * GIB - 4, b"last")
    assert large.read(6 * GIB - 4, 4) == b"last"
    for address, length in ((3 * GIB, 1), (4 * GIB - 1, 1), (3 * GIB - 1, 2), (6 * GIB - 3, 4)):
        with pytest.raises(HvdError):
            large.read(address, length)


def test_untouched_memory_costs_nothing(large: GuestMemory) -> None:
    assert large.allocated_bytes() == 0
    assert large.read(1 * GIB, 16 * MIB) == bytes(16 * MIB)
    assert large.allocated_bytes() == 0
    large.write(1 * GIB, b"x")
    assert 0 < large.allocated_bytes() <= 2 * MIB  # one page, huge where the host is so configured


def test_clear(memory: GuestMemory) -> None:
    memory.write(0, b"\xff" * 0x10000)
    memory.clear(0x1800, 0x2000)
    assert memory.read(0x17FF, 0x2002) == b"\xff" + bytes(0x2000) + b"\xff"
    memory.clear(0x8010, 8)
    assert memory.read(0x800F, 10) == b"\xff" + bytes(8) + b"\xff"
    memory.clear(0x8FFC, 8)
    assert memory.read(0x8FFB, 10) == b"\xff" + bytes(8) + b"\xff"
    memory.clear(0x9000, 0)
    assert memory.read(0x9004, 1) == b"\xff"
    memory.clear_all()
    assert memory.read(0, 0x10000) == bytes(0x10000)
    assert memory.allocated_bytes() == 0
    with pytest.raises(HvdError):
        memory.clear(8 * MIB - 1, 2)


def test_view_is_the_memory(memory: GuestMemory) -> None:
    with memory.view(0x5000, 4) as view:
        view[:] = b"view"
    assert memory.read(0x5000, 4) == b"view"


def test_close_gives_everything_back() -> None:
    memory = GuestMemory(1 * MIB)
    fd = memory.fd
    memory.close()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_regions(memory: GuestMemory) -> None:
    memory.add_mmio(0xFEE0_0000, 0x1000, "lapic")
    memory.add_mmio(0xFEC0_0000, 0x1000, "ioapic")
    shown = [(r.start, r.end, r.kind, r.owner) for r in memory.regions()]
    hole = RegionKind.HOLE
    assert shown == [
        (0, 8 * MIB, RegionKind.RAM, "ram"),
        (8 * MIB, 0xFEC0_0000, hole, "none"),
        (0xFEC0_0000, 0xFEC0_1000, RegionKind.MMIO, "ioapic"),
        (0xFEC0_1000, 0xFEE0_0000, hole, "none"),
        (0xFEE0_0000, 0xFEE0_1000, RegionKind.MMIO, "lapic"),
        (0xFEE0_1000, 4 * GIB, hole, "none"),
    ]


def test_regions_above_3_gib(large: GuestMemory) -> None:
    assert large.regions() == [
        Region(0, 3 * GIB, RegionKind.RAM, "ram", 0),
        Region(3 * GIB, 1 * GIB, RegionKind.HOLE, "none"),
        Region(4 * GIB, 2 * GIB, RegionKind.RAM, "ram", 3 * GIB),
    ]


@pytest.mark.parametrize(("start", "length"), [(0, 1), (8 * MIB - 1, 1), (0xFEE0_0FFF, 1), (0xF000_0000, 0), (-8, 4)])
def test_mmio_that_is_a_bug_of_the_board(memory: GuestMemory, start: int, length: int) -> None:
    memory.add_mmio(0xFEE0_0000, 0x1000, "lapic")
    with pytest.raises(ValueError, match="device"):
        memory.add_mmio(start, length, "device")
