"""The host's pages for what a Linux takes first: the guest finds the same memory, zero, and little that it does not take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from images import Segment

from hvd.board.libhv import slow_library
from hvd.board.loaders import ahead
from hvd.board.loaders.ahead import load_kernel, preload
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec

MIB = 1 << 20
INITRD = (2 << 20) + 4096 * 3 - 5


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SETTLED_SECONDS", 0.01)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 * MIB) as made:
        yield made


def spec_of(folder: Path, initrd: int = INITRD, at: int = 16 * MIB, memory: int = 64 * MIB) -> MachineSpec:
    kernel = images.pvh(entry=at, segments=[Segment(at, b"\xf4" * (MIB + 100))]).build()
    paths = []
    for name, data in (("kernel", kernel), ("initrd", b"init" * (initrd // 4) + b"i" * (initrd % 4))):
        (folder / name).write_bytes(data)
        os.utime(folder / name, (1, 1))
        paths.append(str(folder / name))
    time.sleep(0.05)  # their inodes were changed just now
    return MachineSpec("x", "none", "", memory, paths[0], paths[1] if initrd else "", "a line")


def is_there(memory: GuestMemory, start: int, end: int) -> bool:
    """Pages, all of them; or none."""
    first = os.lseek(memory.fd, start, os.SEEK_DATA)
    assert first == start or first >= end, hex(first)
    assert first != start or os.lseek(memory.fd, start, os.SEEK_HOLE) >= end
    return first == start


def test_what_lies_beside_kernel_and_initrd_is_there_and_zero(tmp_path: Path, memory: GuestMemory) -> None:
    spec = spec_of(tmp_path)
    assert preload(memory, spec)
    initrd = (64 * MIB - INITRD) // 4096 * 4096
    assert is_there(memory, 60 * MIB, initrd)  # the rest of the block of 4 MiB
    assert not is_there(memory, 18 * MIB + MIB // 2 + 4096, 60 * MIB)
    assert is_there(memory, 16 * MIB, 18 * MIB)
    assert is_there(memory, MIB, 2 * MIB + 3 * MIB // 4)
    assert not is_there(memory, 2 * MIB + 3 * MIB // 4, 16 * MIB)
    with GuestMemory(64 * MIB) as other:
        load_kernel(other, spec)
        assert memory.read(0, 64 * MIB) == other.read(0, 64 * MIB)
        assert memory.allocated_bytes() - other.allocated_bytes() <= 7 * MIB


def test_a_kernel_in_the_first_megabytes_and_an_initrd_at_a_block_s_begin(tmp_path: Path, memory: GuestMemory) -> None:
    assert preload(memory, spec_of(tmp_path, initrd=4 * MIB, at=MIB))
    assert is_there(memory, MIB, 3 * MIB + MIB // 2)
    assert not is_there(memory, 3 * MIB + MIB // 2 + 4096, 58 * MIB)


@pytest.mark.parametrize("initrd, mebibytes", [(0, 64), (INITRD, 63)])
def test_who_has_no_initrd_or_little_memory_does_without(tmp_path: Path, initrd: int, mebibytes: int) -> None:
    spec = spec_of(tmp_path, initrd=initrd, memory=mebibytes * MIB)
    with GuestMemory(mebibytes * MIB) as memory, GuestMemory(mebibytes * MIB) as other:
        assert preload(memory, spec)
        load_kernel(other, spec)
        assert memory.allocated_bytes() == other.allocated_bytes()


def test_a_host_without_memory_is_no_failure(tmp_path: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: GuestMemory, address: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GuestMemory, "take", refuse)
    assert preload(memory, spec_of(tmp_path)) is None
    assert memory.allocated_bytes() == 0


def test_pages_are_taken_as_asked(memory: GuestMemory) -> None:
    memory.take(5 * MIB, 3 * MIB + 4096)
    assert memory.allocated_bytes() == 3 * MIB + 4096
    assert is_there(memory, 5 * MIB, 8 * MIB + 4096)
    assert memory.read(5 * MIB, 3 * MIB) == bytes(3 * MIB)
    assert memory.taken == [(5 * MIB, 3 * MIB + 4096)]
    memory.clear_all()
    assert memory.allocated_bytes() == 0 and not memory.taken


def test_large_pages_hold_what_was_there(memory: GuestMemory) -> None:
    """Those that lie in the piece as a whole; where the host makes none, or has no room for all, they stay small, and nobody sees a difference."""
    memory.write(6 * MIB - 3, b"before")
    memory.write(10 * MIB - 4, b"behind")
    made = slow_library().hv_make_large(memory.fd, 5 * MIB, 5 * MIB)
    assert made <= 2
    assert memory.allocated_bytes() == 2 * MIB * made + (4 - made) * 4096
    assert memory.read(6 * MIB - 3, 6) == b"before" and memory.read(10 * MIB - 4, 6) == b"behind"
    assert slow_library().hv_make_large(memory.fd, 5 * MIB, 2 * MIB) == 0
