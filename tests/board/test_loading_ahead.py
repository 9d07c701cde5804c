"""A kernel that was loaded before its guest was known: the guest's memory is as if it had not been."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import images
import pytest
from images import Segment

from hvd.board.loaders import Loaded, ahead
from hvd.board.loaders.ahead import LoadAhead, load_kernel, preload
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.runner.runner import Ram

MIB = 1 << 20


def put(path: Path, data: bytes) -> str:
    """A file that nobody has touched for a while."""
    path.write_bytes(data)
    os.utime(path, (1, 1))
    return str(path)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineSpec:
    monkeypatch.setattr(ahead, "SETTLED_SECONDS", 0.05)
    kernel = images.pvh(segments=[Segment(MIB, b"\xf4" * (MIB + 100))]).build()
    made = MachineSpec("x", "none", "", 8 * MIB, put(tmp_path / "kernel", kernel), put(tmp_path / "initrd", b"init" * MIB), "a line")
    time.sleep(0.1)  # their inodes were changed just now
    return made


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(8 * MIB) as made:
        yield made


def loaded_anew(spec: MachineSpec) -> tuple[bytes, Loaded]:
    with GuestMemory(8 * MIB) as memory:
        loaded = load_kernel(memory, spec)
        return memory.read(0, 8 * MIB), loaded


def the_same(memory: GuestMemory, loading: LoadAhead, spec: MachineSpec) -> bool:
    loaded = loading.loaded()
    return (memory.read(0, 8 * MIB), loaded) == loaded_anew(spec)


def test_who_has_that_kernel_and_command_line_finds_it(spec: MachineSpec, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    there = preload(memory, spec)
    assert there
    for name in ("clear_all", "write", "store_file"):
        monkeypatch.setattr(GuestMemory, name, lambda *arguments: pytest.fail("nothing is to be written"))
    loading = LoadAhead(memory, spec, there)
    monkeypatch.undo()
    assert the_same(memory, loading, spec)


def test_another_kernel_initrd_or_command_line_finds_clean_memory(spec: MachineSpec, tmp_path: Path) -> None:
    other = put(tmp_path / "other", b"other" * 1000)
    small = put(tmp_path / "small", images.pvh().build())
    kinds = ((spec.kernel, other, "a line"), (spec.kernel, "", "a line"), (small, spec.initrd, "a line"), (small, "", "a line"))
    for kernel, initrd, line in (*kinds, (spec.kernel, spec.initrd, "another line"), (spec.kernel, spec.initrd, "")):
        own = MachineSpec("x", "none", "", 8 * MIB, kernel, initrd, line)
        with GuestMemory(8 * MIB) as memory:
            there = preload(memory, spec)
            assert there
            assert the_same(memory, LoadAhead(memory, own, there), own)


def test_a_file_that_was_changed_since_is_read_again(spec: MachineSpec, memory: GuestMemory) -> None:
    there = preload(memory, spec)
    assert there
    put(Path(spec.initrd), b"tini" * MIB)  # of the same size, and with the same time
    assert the_same(memory, LoadAhead(memory, spec, there), spec)


def test_a_file_that_may_still_be_changed_unseen_is_not_taken(spec: MachineSpec, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SETTLED_SECONDS", 60)
    assert preload(memory, spec) is None
    assert memory.allocated_bytes() == 0


def test_what_is_small_or_large_or_not_there_is_not_loaded(
    spec: MachineSpec, memory: GuestMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = MachineSpec("x", "none", "", 8 * MIB, put(tmp_path / "small", images.pvh().build()))
    nowhere = MachineSpec("x", "none", "", 8 * MIB, str(tmp_path / "nowhere"))
    none = MachineSpec("x", "none", "", 8 * MIB, "")
    broken = MachineSpec("x", "none", "", 8 * MIB, spec.initrd)
    for other in (small, nowhere, none, broken):
        assert preload(memory, other) is None
    monkeypatch.setattr(ahead, "MOST_BYTES", 2 * MIB)
    assert preload(memory, spec) is None
    assert memory.allocated_bytes() == 0


def test_a_file_that_has_gone_is_told_by_whoever_loads_it(spec: MachineSpec, memory: GuestMemory) -> None:
    there = preload(memory, spec)
    os.unlink(spec.kernel)
    with pytest.raises(FileNotFoundError):
        LoadAhead(memory, spec, there).loaded()
    assert memory.allocated_bytes() == 0


def test_a_snapshot_is_restored_into_clean_memory(spec: MachineSpec, memory: GuestMemory) -> None:
    there = preload(memory, spec)
    assert there and memory.allocated_bytes()
    ram = Ram.of(replace(spec, snapshot="snapshot"), memory, there)
    assert ram.ahead is None and memory.allocated_bytes() == 0
