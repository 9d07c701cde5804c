"""A network namespace with nothing in it, for a machine to come: a spare runner makes one ahead (hvd.runner.spare), since that takes longer than all
else of a jail, and goes in with its guest. Each is one machine's, as those are that are made at once."""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final

# linux/sched.h
NEW_NETWORK: Final = 0x4000_0000
_SELF: Final = "/proc/self/ns/net"
_ahead = -1


def make_ahead(least_descriptor: int) -> None:
    """By a process with one thread, which stays where it is. Its descriptor is that number or a larger one. Without the privileges nothing is done.
    Raises OSError; then the process may be anywhere."""
    global _ahead
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(NEW_NETWORK) != 0:
            return
        made = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        if libc.setns(home, NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        _ahead = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, least_descriptor)
        os.close(made)
    finally:
        os.close(home)


def descriptor() -> int:
    """Of the one that was made ahead; -1 = there is none."""
    return _ahead


def take() -> int:
    """descriptor(), which is the caller's from now on."""
    global _ahead
    taken, _ahead = _ahead, -1
    return taken


def drop() -> None:
    """It is not needed."""
    if (made := take()) >= 0:
        os.close(made)
