"""Machines' control groups on made-up hierarchies: what is written where in both versions, and why there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvd.cgroup.hierarchy import PARENT, Hierarchy
from hvd.jail import group
from hvd.runner import ending
from hvd.runner.directory import EXIT, ExitRecord, read_json

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
UID = "5a7e6deb-f597-45ad-92dc-1003d35d797e"


def version_2(where: Path) -> Hierarchy:
    for directory in (where, where / PARENT):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.subtree_control").write_text("cpu\n")
    return Hierarchy({}, where, frozenset({"memory", "pids", "cpu"}))


def version_1(where: Path) -> Hierarchy:
    for name in group.CONTROLLERS:
        (where / name).mkdir(parents=True)
    return Hierarchy({name: where / name for name in group.CONTROLLERS}, None, frozenset())


def test_version_2_is_handed_its_controllers(tmp_path: Path) -> None:
    found = version_2(tmp_path)
    assert group.make(UID, group.Limits(1 << 30), found)
    for directory in (tmp_path, tmp_path / PARENT):
        assert (directory / "cgroup.subtree_control").read_text() == "+memory +pids"
    made = tmp_path / PARENT / UID
    assert {path.name: path.read_text() for path in made.iterdir()} == {"memory.max": str(1 << 30), "pids.max": "64"}
    assert group.memory_limit(UID, found) == 1 << 30
    assert group.problem(found) == ""


def test_version_1_has_a_group_for_each_controller(tmp_path: Path) -> None:
    found = version_1(tmp_path)
    assert group.make(UID, group.Limits(0), found)  # no limit of memory
    assert [path.name for path in (tmp_path / "memory" / PARENT / UID).iterdir()] == []
    assert (tmp_path / "pids" / PARENT / UID / "pids.max").read_text() == "64"


def test_without_them_there_is_a_reason_and_no_group(tmp_path: Path) -> None:
    none = Hierarchy({}, None, frozenset())
    assert "no cgroup controller memory, pids" in group.problem(none)
    assert not group.make(UID, group.Limits(0), none)
    group.join(UID, os.getpid(), none)
    group.put_away(UID, none)
    nowhere = Hierarchy(dict.fromkeys(group.CONTROLLERS, tmp_path / "missing"), None, frozenset())
    assert "missing" in group.problem(nowhere)
    assert not group.make(UID, group.Limits(0), nowhere)


@pytest.mark.parametrize("before", ["", "EXECUTION_ERROR", "POWEROFF"])
def test_an_end_for_want_of_memory_is_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Whether the kernel chose the runner, which then says nothing, or its cell, of which the runner tells; not one that had ended before."""
    found, directory = version_1(tmp_path / "groups"), tmp_path / UID
    directory.mkdir()
    monkeypatch.setattr(group, "groups", lambda: found)
    monkeypatch.setattr(group, "put_away", lambda uid: None)
    assert group.make(UID, group.Limits(1 << 20))
    (tmp_path / "groups" / "memory" / PARENT / UID / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    if before:
        ExitRecord(str(directory)).write(before, "its cell has ended", None, {})
    ending.put_away(directory)
    record = read_json(str(directory / EXIT))
    assert record is not None
    assert (record["reason"], record["state"]) == ((before, "STOPPED") if before == "POWEROFF" else (ending.REASON, "FAILED"))
    if before != "POWEROFF":
        assert record["metadata"] == {"oom_killed": "true"}
        assert ("its cell has ended" in record["message"]) == bool(before)


def test_files_in_the_host_s_memory_are_no_limit(tmp_path: Path) -> None:
    assert group.limits(1 << 30, 1 << 20, None).memory_bytes == (5 << 28) + (1 << 20) + group.OWN_BYTES
    if os.path.ismount("/dev/shm"):
        assert group.limits(1 << 30, 0, Path("/dev/shm/not/there")).memory_bytes == 0
