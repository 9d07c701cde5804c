"""The processes in a container's control groups."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from hvd.backends.container.cgroup.files import text
from hvd.backends.container.cgroup.hierarchy import Hierarchy


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
