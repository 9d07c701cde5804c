"""System calls for which the kernel's buffer has no room are told by no record, but counted: in a control group of our own, without a container."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvd.backends.container.trace import program
from hvd.backends.container.trace.choice import choose
from hvd.backends.container.trace.ebpf import Ebpf
from hvd.backends.container.trace.points import POINTS, chosen
from hvd.cgroup.hierarchy import hierarchy
from hvd.runner.directory import COUNTERS
from hvd.trace.counters import PointCounter, read_counters
from hvd.trace.points import BY_NAME, BackendId
from hvd.trace.writer import RecordWriter

NUMBERS = {point.name: point.id for point in POINTS}
LOST = BY_NAME["lost"].id
CALLS = 5000  # of which the buffer holds some 400
# Calls of its own, of two kinds in turn.
WORK = f"""
import os, sys
sys.stdin.read(1)
for _ in range({CALLS}):
    os.getppid()
    os.getpgid(0)
"""


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A control group as a container has one: its uid."""
    if why := choose("ebpf").reason:
        pytest.skip(why)
    monkeypatch.setattr(program, "RING_BYTES", 1 << 16)
    uid = f"test-{uuid.uuid4().hex}"
    directory = hierarchy().unified_directory(uid)
    assert directory is not None
    directory.mkdir(parents=True)
    yield uid
    directory.rmdir()


@pytest.fixture
def source() -> Iterator[Ebpf]:
    with contextlib.closing(Ebpf()) as source:
        yield source


def traced(source: Ebpf, group: str, names: tuple[str, ...]) -> None:
    """Runs WORK, of which these calls are wanted; nobody reads meanwhile."""
    directory = hierarchy().unified_directory(group)
    assert directory is not None
    with subprocess.Popen([sys.executable, "-S", "-c", WORK], stdin=subprocess.PIPE) as child:
        (directory / "cgroup.procs").write_text(str(child.pid))
        source.follow(group, child.pid, chosen([NUMBERS[name] for name in names]))
        child.communicate(b"x", timeout=60)
    assert child.returncode == 0


def not_told(uid: str) -> None:
    raise AssertionError(uid)


def counted(directory: Path) -> dict[int, PointCounter]:
    with (directory / COUNTERS).open("rb") as page:
        return read_counters(page.fileno()).points


def test_what_is_lost_is_counted_by_call(group: str, source: Ebpf, tmp_path: Path) -> None:
    told = 0
    for turn in (1, 2):  # the second goes on with what the first has left
        traced(source, group, ("getppid", "getpgid"))
        lost, uncounted = source.losses(group)
        assert lost > turn * CALLS and uncounted == 0
        with contextlib.closing(RecordWriter(tmp_path, BackendId.CONTAINER, 0)) as writer:
            while source.read({group: writer}, 100, not_told):
                pass
            told += writer.pending
            writer.flush()
        assert told + lost == turn * 2 * CALLS
        found = counted(tmp_path)
        assert {number: counter.count for number, counter in found.items()} == dict.fromkeys((NUMBERS["getppid"], NUMBERS["getpgid"]), turn * CALLS)
        for counter in found.values():
            assert sum(counter.histogram) == counter.count and 0 < counter.max_ns <= counter.total_ns
    source.leave(group)
    source.forget(group)
    assert not list(source._programs.counts())


def test_with_a_call_those_are_counted_that_were_lost_before_it(group: str, source: Ebpf, tmp_path: Path) -> None:
    """Who has found a last one need not wait for the others (hvctl compare)."""
    traced(source, group, ("getppid",))
    lost, _ = source.losses(group)
    with contextlib.closing(RecordWriter(tmp_path, BackendId.CONTAINER, 0)) as writer:
        assert source.read({group: writer}, 1, not_told)
        assert counted(tmp_path)[NUMBERS["getppid"]].count == lost + 1
    source.leave(group)
    source.forget(group)


def test_calls_that_can_only_be_told_as_lost_have_a_row(group: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "MISSED", 1)
    with contextlib.closing(Ebpf()) as source, contextlib.closing(RecordWriter(tmp_path, BackendId.CONTAINER, 0)) as writer:
        traced(source, group, ("getppid", "getpgid"))
        lost, uncounted = source.losses(group)
        assert 0 < uncounted < lost
        while source.read({group: writer}, 100, not_told):
            pass
        writer.lose(lost, uncounted)
    assert sum(counter.count for counter in counted(tmp_path).values()) == 2 * CALLS
    assert counted(tmp_path)[LOST].count == uncounted
