"""Trace rings and sessions: nothing lost silently, nothing invented, nothing trusted."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hvapi import record
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.errors import HvdError
from hvd.trace.filter import Filter
from hvd.trace.points import POINTS
from hvd.trace.ring import RingReader, write_enabled
from hvd.trace.session import GuestTrace, TraceSwitch
from tests.fakes.backend import FakeRing


def numbers(block: bytes) -> list[int]:
    return [each.a0 for each in record.decode(block)]


@pytest.fixture
def ring(tmp_path: Path) -> FakeRing:
    return FakeRing(tmp_path / "trace", capacity=16)


@pytest.fixture
def reader(ring: FakeRing) -> Iterator[RingReader]:
    reader = RingReader(ring.path)
    yield reader
    reader.close()


def test_reads_what_was_written(ring: FakeRing, reader: RingReader) -> None:
    assert reader.read(100) == (b"", 0)
    ring.record("halt", 5, force=True)
    block, lost = reader.read(3)
    assert (numbers(block), lost) == ([0, 1, 2], 0)
    ring.record("halt", 12, force=True)
    block, lost = reader.read(100)
    assert (numbers(block), lost) == (list(range(3, 17)), 0)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=20))
def test_every_record_is_read_once_or_counted_as_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    ring = FakeRing(tmp_path_factory.mktemp("ring") / "trace", capacity=16)
    reader = RingReader(ring.path)
    seen: list[int] = []
    missed = 0
    for write, most in [*steps, (0, 1000), (0, 1000)]:
        ring.record("halt", write, force=True)
        block, lost = reader.read(most)
        missed += lost
        seen += numbers(block)
        assert len(block) <= most * 64
    reader.close()
    assert len(seen) + missed == ring.head
    assert seen == sorted(set(seen)) and all(number < ring.head for number in seen)


def test_torn_records_are_lost_not_shown(ring: FakeRing, reader: RingReader) -> None:
    ring.record("halt", 6, force=True)
    with ring.path.open("r+b") as file:
        for number in (0, 3):
            file.seek(64 + number * 64 + 20)
            file.write(b"\xff\xff\xff\x7f")
    block, lost = reader.read(100)
    assert (numbers(block), lost) == ([1, 2, 4, 5], 2)


def test_head_that_goes_back_or_far_ahead(ring: FakeRing, reader: RingReader) -> None:
    ring.record("halt", 6, force=True)
    reader.read(100)

    def set_head(head: int) -> None:
        with ring.path.open("r+b") as file:
            file.seek(16)
            file.write(head.to_bytes(8, "little"))

    set_head(2)
    assert reader.read(100) == (b"", 0) and reader.position == 2
    set_head((1 << 64) - 1)
    block, lost = reader.read(100)
    assert block == b"" and lost > 1 << 60


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 64,
        struct.pack("<IIIIQ", 0x52545648, 2, 16, 0, 0).ljust(64 + 16 * 64, b"\0"),
        struct.pack("<IIIIQ", 0x52545648, 1, 15, 0, 0).ljust(64 + 16 * 64, b"\0"),
        struct.pack("<IIIIQ", 0x52545648, 1, 0, 0, 0).ljust(64, b"\0"),
        struct.pack("<IIIIQ", 0x52545648, 1, 1 << 31, 0, 0).ljust(64, b"\0"),
        struct.pack("<IIIIQ", 0x52545648, 1, 16, 0, 0).ljust(64 + 15 * 64, b"\0"),
    ],
)
def test_what_is_no_ring_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(HvdError) as caught:
        RingReader(path)
    assert caught.value.reason == "TRACE_UNREADABLE"


def test_ring_cut_short_while_open(ring: FakeRing, reader: RingReader) -> None:
    ring.record("halt", 6, force=True)
    with ring.path.open("r+b") as file:
        file.truncate(64 + 2 * 64)
    with pytest.raises(HvdError):
        reader.read(100)


def test_switch_is_the_union_of_sessions(ring: FakeRing) -> None:
    switch = TraceSwitch()
    directory = ring.path.parent
    halts, ports = Filter(["halt"], [], POINTS), Filter(["port-io"], [], POINTS)
    assert (halts.mask, ports.mask) == (1 << 5, 1 << 1)
    first = GuestTrace(directory, halts, switch)
    second = GuestTrace(directory, ports, switch)
    third = GuestTrace(directory, ports, switch)
    assert ring.enabled == 1 << 5 | 1 << 1
    second.close()
    assert ring.enabled == 1 << 5 | 1 << 1
    third.close()
    assert ring.enabled == 1 << 5
    ring.record("halt")
    ring.record("port-in", force=True)
    block, _, more = first.read(10)
    assert numbers(block) == [0] and more
    first.close()
    assert ring.enabled == 0


def test_a_ring_is_allocated_before_it_is_switched_on(tmp_path: Path) -> None:
    ring = FakeRing(tmp_path / "trace", capacity=4096)
    size = 64 + ring.capacity * 64
    write_enabled(ring.path, 0)
    assert ring.path.stat().st_blocks * 512 < size
    write_enabled(ring.path, 1)
    assert ring.path.stat().st_blocks * 512 >= size == ring.path.stat().st_size


def test_a_ring_that_nobody_announced_is_found(tmp_path: Path) -> None:
    """A session that begins while the guest is being started."""
    trace = GuestTrace(tmp_path, Filter([], [], POINTS), TraceSwitch())
    assert trace.read(10) == (b"", 0, False)
    ring = FakeRing(tmp_path / "trace")
    ring.record("halt", force=True)
    assert numbers(trace.read(10)[0]) == [0] and ring.enabled
    trace.close()


def start(directory: Path, switch: TraceSwitch) -> FakeRing:
    """What the daemon and then the guest's process do to the directory at a start."""
    for file in directory.iterdir():
        file.unlink()
    switch.before_launch(directory)
    return FakeRing(directory / "trace")


def read_all(trace: GuestTrace) -> tuple[list[int], int]:
    found, lost = [], 0
    while True:
        block, missed, more = trace.read(3)
        found += numbers(block)
        lost += missed
        if not more:
            return found, lost


def test_session_follows_the_guest_from_run_to_run(tmp_path: Path) -> None:
    """However late it reads, each run is read from its first record to its last, once."""
    switch = TraceSwitch()
    old = FakeRing(tmp_path / "trace")
    old.record("halt", 5, force=True)
    trace = GuestTrace(tmp_path, Filter([], [], POINTS), switch)
    other = GuestTrace(tmp_path, Filter(["port-io"], [], POINTS), switch)
    for runs in (1, 2, 3):
        wanted = []
        for _ in range(runs):
            ring = start(tmp_path, switch)
            assert ring.record("halt", 7) == 7
            wanted += list(range(7))
        assert read_all(trace) == (wanted, 0)
        assert read_all(other) == ([], 0)
        assert ring.record("port-in", 2) == 2
        assert read_all(trace) == ([7, 8], 0)
        assert read_all(other) == ([7, 8], 0)
    trace.close()
    other.close()
    assert start(tmp_path, switch).record("halt") == 0


def test_runs_that_a_reader_is_too_slow_for_are_counted(tmp_path: Path) -> None:
    switch = TraceSwitch()
    trace = GuestTrace(tmp_path, Filter([], [], POINTS), switch)
    for _ in range(20):
        start(tmp_path, switch).record("halt", 10)
    found, lost = read_all(trace)
    assert len(found) + lost == 200 and lost == 12 * 10
    trace.close()


def no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_the_readers_error(
    ring: FakeRing, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch, wanted = TraceSwitch(), Filter([], [], POINTS)
    stopped = tmp_path_factory.mktemp("stopped")
    waiting = GuestTrace(stopped, wanted, switch)
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(HvdError) as caught:
        GuestTrace(ring.path.parent, wanted, switch)
    assert caught.value.reason == "DISK_FULL"
    assert ring.enabled == 0 and switch.wanted(ring.path.parent).mask == 0
    assert start(stopped, switch).record("halt") == 0  # it runs, and records nothing
    assert [file.name for file in stopped.iterdir()] == ["trace"]
    with pytest.raises(HvdError) as caught:
        waiting.read(10)
    assert caught.value.reason == "DISK_FULL"
    waiting.close()


def test_filter_by_kind_and_point() -> None:
    both = Filter(["port-io"], ["port-in", "halt"], POINTS)
    assert both.mask == 1 << 1
    with pytest.raises(HvdError) as caught:
        Filter(["sound"], [], POINTS)
    assert caught.value.metadata["field"] == "kinds"


def test_a_missing_ring_is_not_switched(tmp_path: Path) -> None:
    write_enabled(tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()
    short = tmp_path / "short"
    short.write_bytes(b"xy")
    write_enabled(short, 1)
    assert short.read_bytes() == b"xy"
