"""The root of a jail: the guest's directories, Python's libraries and what /proc tells of this user's processes; besides, a network, a host name and
IPC without anything in them.

What is alike for all guests, which is all but their own directories, a spare runner has made ahead (hvd.jail.namespaces).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from hvd.jail.libc import Libc
from hvd.jail.namespaces import MOUNTS, NETWORK, Ahead

EMPTY: Final = "/empty"
# Where it is made: a directory that nothing of it is in.
_PLACE: Final = "/proc"

# linux/sched.h, linux/mount.h, linux/fcntl.h
_OWN_DIRECTORY, _NEWUTS, _NEWIPC = 0x200, 0x4000000, 0x8000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXECUTION, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT, _OPEN_TREE, _MOVE_MOUNT = 155, 428, 429
_AT_PRESENT, _CLONE, _FROM_DESCRIPTOR = -100, 1, 4
_QUIET: Final = _NO_SUID | _NO_DEVICES | _NO_EXECUTION | _READ_ONLY


def furnish(readable: Sequence[str]) -> None:
    """In a mount namespace of its own: the root without the guest's directories, for leave() to go on with. Raises HvdError RUNNER_START_FAILED;
    OSError."""
    libc = Libc()
    libc.mount("", "/", flags=_RECURSIVE | _PRIVATE)
    libc.mount("jail", _PLACE, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    os.umask(0o022)
    for path in readable:
        target = _PLACE + path
        os.makedirs(target, exist_ok=True)
        libc.mount(path, target, flags=_BIND)
        _restrict(libc, target, _READ_ONLY)
    for path in (EMPTY, "/proc"):
        os.mkdir(_PLACE + path, 0o755)
    os.umask(0o077)
    libc.mount("proc", f"{_PLACE}/proc", "proc", _QUIET, "hidepid=2")
    os.chdir(_PLACE)
    libc("syscall", _PIVOT_ROOT, b".", b".")
    libc("umount2", b".", _DETACH)
    os.chdir("/")


def leave(writable: Sequence[str], readable: Sequence[str], plain: bool) -> None:
    """Into all of that. The present directory is the guest's, and stays the present one. plain: there is no more to be read than what furnish() was
    told ahead. Raises HvdError RUNNER_START_FAILED; OSError."""
    libc = Libc()
    if not plain:
        MOUNTS.drop()
    here = os.getcwd()
    # Through the descriptors of these trees, since no path leads to them from the root that was made ahead.
    own = [(path, libc("syscall", _OPEN_TREE, _AT_PRESENT, path.encode(), _CLONE | os.O_CLOEXEC)) for path in (here, *writable)]
    # Another thread, which loads the kernel, has the present directory, too: with that no process gets into another mount namespace.
    libc("unshare", _OWN_DIRECTORY | _NEWUTS | _NEWIPC)
    _enter(libc, NETWORK)
    if not _enter(libc, MOUNTS):
        furnish(readable)
    os.umask(0o022)
    for path, tree in own:
        os.makedirs(path, exist_ok=True)
        libc("syscall", _MOVE_MOUNT, tree, b"", _AT_PRESENT, path.encode(), _FROM_DESCRIPTOR)
        os.close(tree)
        libc.mount("", path, flags=_PRIVATE)
        _restrict(libc, path, _NO_EXECUTION)
    os.umask(0o077)
    libc.mount("", "/", flags=_REMOUNT | _BIND | _QUIET)
    os.chdir(here)


def _enter(libc: Libc, which: Ahead) -> bool:
    """True: one that was made ahead."""
    made = which.take()
    if made < 0:
        libc("unshare", which.kind)
        return False
    libc("setns", made, which.kind)
    os.close(made)
    return True


def _restrict(libc: Libc, mounted: str, flags: int) -> None:
    libc.mount("", mounted, flags=_REMOUNT | _BIND | _NO_SUID | _NO_DEVICES | flags)
