"""The control group that a machine's runner and cell are in, beside those of containers: the daemon's side. It is made, and the runner
put into it, while that starts: moving a process may take the kernel some ten milliseconds (Documentation/admin-guide/cgroup-v2.rst, "favordynmods"),
and no start waits for that. What the runner has had until then counts as the daemon's. Should the daemon die in between, the next one does it.

Without it a guest runs all the same: problem() says why there is none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hvd.cgroup.files import number, text
from hvd.cgroup.hierarchy import PARENT, Hierarchy, hierarchy
from hvd.cgroup.processes import kill_all, oom_kills, remove
from hvd.jail.enter import MOST_PROCESSES
from hvd.jail.pids import children

log = structlog.get_logger()

# For the runner (Python, devices, the screen) and its translator, whose code cache is 256 MiB, or its cell, which may have as much.
OWN_BYTES: Final = 768 << 20
# Of the guest's memory: so much more for page tables, the shadows of guests' address spaces and what is known of each page.
SHADOWS: Final = 4
# From the runner's end to its cell's.
END_SECONDS: Final = 5.0
CONTROLLERS: Final = ("memory", "pids")


@dataclass(frozen=True, slots=True)
class Limits:
    memory_bytes: int  # 0 = none
    processes: int = MOST_PROCESSES


def limits(memory_bytes: int, log_bytes: int, written: Path | None) -> Limits:
    """Of a guest with so much memory, and a log that may lie in the host's memory. written: a directory, or where one will be, whose files the
    runner writes: in a file system in memory (tmpfs) they would count, and nothing says how much of disks and snapshots there will be."""
    if written is not None and _in_memory(written):
        return Limits(0)
    return Limits(memory_bytes + memory_bytes // SHADOWS + log_bytes + OWN_BYTES)


@functools.cache
def groups() -> Hierarchy:
    """Asked once: the list of mounts grows with the containers."""
    return hierarchy()


def problem(found: Hierarchy | None = None) -> str:
    """Why machines have no control groups of their own here; empty = they have."""
    found = found or groups()
    if os.geteuid() != 0:
        return "hvd is not root"
    if missing := [name for name in CONTROLLERS if not found.has(name)]:
        return f"this host has no cgroup controller {', '.join(missing)}"
    try:
        for directory in _parents(found):
            if not os.access(directory, os.W_OK):
                return f"{directory} cannot be written"
    except OSError as error:
        return str(error)
    return ""


def make(uid: str, limit: Limits, found: Hierarchy | None = None) -> bool:
    """A new one; false = there is none (the log says why), and the guest does without."""
    found = found or groups()
    if os.geteuid() != 0 or not all(map(found.has, CONTROLLERS)):
        return False
    try:
        directories = {_directory(found, controller, uid) for controller in CONTROLLERS}
        if any(map(os.path.exists, directories)):
            remove(found, uid)  # of an earlier run that nobody saw end: its counts would be taken for this one's
        _parents(found)
        for directory in directories:
            os.mkdir(directory)
        _limit(found, uid, limit)
    except OSError as error:
        log.warning("a machine has no control group", guest=uid, problem=str(error))
        with contextlib.suppress(OSError):
            remove(found, uid)
        return False
    return True


def join(uid: str, pid: int, found: Hierarchy | None = None) -> None:
    """The process and its children into the group, if there is one. A child that comes later is in it by itself. No error when they have ended."""
    found = found or groups()
    directories = {_directory(found, name, uid) for name in CONTROLLERS if found.has(name)}
    members = [directory / "cgroup.procs" for directory in directories if directory.is_dir()]
    try:
        if members and _move(pid, uid, members):
            for child in children(pid):  # looked for when new ones are in it
                _move(child, uid, members)
    except OSError as error:
        log.warning("a machine is not in its control group", guest=uid, problem=str(error))


def _move(pid: int, uid: str, members: list[Path]) -> bool:
    """False = it has ended. Raises OSError."""
    if text(Path(f"/proc/{pid}"), "cgroup").count(f":/{PARENT}/{uid}\n") >= len(members):
        return True
    try:
        for file in members:
            _write(file, pid)
    except ProcessLookupError:
        return False
    return True


def exists(uid: str, found: Hierarchy | None = None) -> bool:
    directory = (found or groups()).directory("pids", uid)
    return directory is not None and directory.is_dir()


def memory_limit(uid: str, found: Hierarchy | None = None) -> int:
    """Bytes; 0 = none."""
    found = found or groups()
    return number(found.directory("memory", uid), "memory.limit_in_bytes" if "memory" in found.version_1 else "memory.max")


def remove_empty(uid: str, found: Hierarchy | None = None) -> None:
    with contextlib.suppress(OSError):  # there are processes in it
        remove(found or groups(), uid)


def killed_for_memory(uid: str, found: Hierarchy | None = None) -> bool:
    return oom_kills(found or groups(), uid) > 0


def put_away(uid: str, found: Hierarchy | None = None) -> None:
    """Once its runner has ended: what is left in the group (a cell that is about to end), and the group. Blocks for that; what does not go is logged:
    the next daemon, start or deletion tries again."""
    found = found or groups()
    deadline, pause = time.monotonic() + END_SECONDS, 0.001
    while True:
        try:
            remove(found, uid)
            return
        except FileNotFoundError:
            return  # somebody else is at it
        except OSError as error:
            if time.monotonic() > deadline:
                log.warning("control group cannot be removed yet", guest=uid, problem=str(error))
                return
        kill_all(found, uid)
        time.sleep(pause)  # there is nothing to wait for that the kernel would tell of both versions
        pause = min(2 * pause, 0.05)


def _directory(found: Hierarchy, controller: str, uid: str) -> Path:
    directory = found.directory(controller, uid)
    assert directory is not None
    return directory


def _parents(found: Hierarchy) -> list[Path]:
    """Those that machines' groups are in, made if they are missing; in version 2 the controllers must be handed down. Raises OSError."""
    parents = sorted({_directory(found, controller, "") for controller in CONTROLLERS})
    for parent in parents:
        parent.mkdir(exist_ok=True)
    if wanted := [name for name in CONTROLLERS if name not in found.version_1]:
        assert found.unified is not None
        for directory in (found.unified, found.unified / PARENT):
            has = text(directory, "cgroup.subtree_control").split()
            if lacking := " ".join(f"+{name}" for name in wanted if name not in has):
                (directory / "cgroup.subtree_control").write_text(lacking, "ascii")
    return parents


def _limit(found: Hierarchy, uid: str, limit: Limits) -> None:
    """Raises OSError."""
    _write(_directory(found, "pids", uid) / "pids.max", limit.processes)
    memory = _directory(found, "memory", uid)
    files = {"memory.limit_in_bytes": limit.memory_bytes, "memory.memsw.limit_in_bytes": limit.memory_bytes}
    if "memory" not in found.version_1:
        # No swap beyond it, and one that is over it ends as a whole.
        files = {"memory.max": limit.memory_bytes, "memory.swap.max": 0, "memory.oom.group": 1}
    if limit.memory_bytes:
        for name, value in files.items():
            # Swap is counted only by kernels that were told to.
            if name in ("memory.limit_in_bytes", "memory.max") or (memory / name).exists():
                _write(memory / name, value)


def _write(file: Path, value: int) -> None:
    """A file of a control group: no file object, since a start has some six of these. Raises OSError."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, str(value).encode("ascii"))
    finally:
        os.close(descriptor)


def _in_memory(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    return _kind(os.stat(path).st_dev) in ("tmpfs", "ramfs")


@functools.cache
def _kind(device: int) -> str:
    """Of a mounted file system."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        # proc(5), /proc/PID/mountinfo: ... (3) major:minor ... - (9) type
        left, _, right = line.partition(" - ")
        if left.split(" ")[2] == number:
            return right.split(" ")[0]
    return ""
