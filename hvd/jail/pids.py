"""A PID namespace for each machine: its processes see nobody else's and can signal nobody else, and none outlives the runner, whose end the
kernel makes theirs (pid_namespaces(7)). The side of whoever starts a runner, since only a child can be in a new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hvd.cgroup.files import text

# linux/sched.h
_NEW_PIDS: Final = 0x2000_0000


@functools.cache
def _home() -> tuple[ctypes.CDLL, int]:
    """libc, and the namespace that this process is in."""
    return ctypes.CDLL(None, use_errno=True), os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def own_pids(wanted: bool) -> Iterator[None]:
    """The one child that this thread makes meanwhile is process 1 of a namespace of its own. What fork(2) returns, and everybody outside sees, is its
    pid here. Raises OSError; needs CAP_SYS_ADMIN."""
    if not wanted:
        yield
        return
    libc, home = _home()
    _check(libc.unshare(_NEW_PIDS))
    try:
        yield
    finally:
        _check(libc.setns(home, _NEW_PIDS))


def children(pid: int) -> list[int]:
    """Of all its threads (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        found += map(int, text(thread, "children").split())
    return found


def is_stopped(pid: int) -> bool:
    """By a signal or a debugger (proc(5), /proc/PID/stat)."""
    return text(Path(f"/proc/{pid}"), "stat").rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _check(result: int) -> None:
    if result != 0:
        # ENOSPC is a limit here (user.max_pid_namespaces), not a full disk.
        number = {errno.ENOSPC: errno.EUSERS}.get(ctypes.get_errno(), ctypes.get_errno())
        raise OSError(number, f"a PID namespace cannot be made ({os.strerror(ctypes.get_errno())}); the setting jail=off does without")
