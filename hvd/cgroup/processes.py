"""The processes in a guest's control groups, and the end of both."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from hvd.cgroup.files import table, text
from hvd.cgroup.hierarchy import Hierarchy


def kill_all(found: Hierarchy, uid: str) -> int:
    """SIGKILL whatever is in them, frozen or not; how many there were."""
    pids: set[int] = set()
    for group in found.directories(uid):
        for path, _, _ in os.walk(group):
            pids.update(map(int, text(Path(path), "cgroup.procs").split()))
            # Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst: what is frozen dies when it thaws. Version 2 kills it so.
            with contextlib.suppress(OSError):
                (Path(path) / "freezer.state").write_text("THAWED", "ascii")
    for pid in pids - {0}:  # 0: of another process namespace
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def remove(found: Hierarchy, uid: str) -> None:
    """The groups, and those in them. Raises FileNotFoundError when somebody else is at it; OSError (EBUSY) while a process is in one."""
    for group in found.directories(uid):
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)


def oom_kills(found: Hierarchy, uid: str) -> int:
    """Of its processes, so many were killed at its memory limit; 0 where the host does not tell."""
    file = "memory.oom_control" if "memory" in found.version_1 else "memory.events"
    return table(found.directory("memory", uid), file).get("oom_kill", 0)
