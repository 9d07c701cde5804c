"""Namespaces for a machine to come: a spare runner makes them ahead (hvd.runner.spare), since they take longer than all else of a jail, stays where
it is, and goes in with its guest. Each is one machine's, as those are that are made at once."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from hvd.errors import HvdError

# linux/sched.h
NEW_MOUNTS: Final = 0x2_0000
NEW_NETWORK: Final = 0x4000_0000


class Ahead:
    """One kind of namespace."""

    def __init__(self, kind: int, name: str) -> None:
        """name: of its file in /proc/PID/ns."""
        self.kind: Final = kind
        self._file: Final = f"/proc/self/ns/{name}"
        self._descriptor = -1

    def make(self, least_descriptor: int, furnish: Callable[[], None] = lambda: None) -> None:
        """By a process with one thread. Its descriptor is that number or a larger one. furnish is called in there. Nothing is left without the
        privileges, or when furnish raises HvdError or OSError: whoever makes one at its start finds out why. Raises OSError; then the process may be
        anywhere."""
        libc = ctypes.CDLL(None, use_errno=True)
        with ExitStack() as descriptors:
            root, here = (os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in ("/", "."))
            home = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
            for descriptor in (root, here, home):
                descriptors.callback(os.close, descriptor)
            if libc.setns(home, self.kind) != 0:  # it would not come back
                return
            try:
                if libc.unshare(self.kind) == 0:
                    self._descriptor = self._furnished(furnish, least_descriptor)
            except (HvdError, OSError):
                pass
            finally:
                if libc.setns(home, self.kind) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                if self.kind == NEW_MOUNTS:  # both have become that namespace's
                    os.fchdir(root)
                    os.chroot(".")
                    os.fchdir(here)

    def _furnished(self, furnish: Callable[[], None], least_descriptor: int) -> int:
        made = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            furnish()
            return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, least_descriptor)
        finally:
            os.close(made)

    @property
    def descriptor(self) -> int:
        """-1 = there is none."""
        return self._descriptor

    def take(self) -> int:
        """descriptor, which is the caller's from now on."""
        taken, self._descriptor = self._descriptor, -1
        return taken

    def drop(self) -> None:
        """It is not needed."""
        if (made := self.take()) >= 0:
            os.close(made)


MOUNTS: Final = Ahead(NEW_MOUNTS, "mnt")
NETWORK: Final = Ahead(NEW_NETWORK, "net")
ALL: Final = (MOUNTS, NETWORK)


def drop() -> None:
    """Those that there still are."""
    for ahead in ALL:
        ahead.drop()


def descriptors() -> frozenset[int]:
    """Of those that there still are."""
    return frozenset(each.descriptor for each in ALL if each.descriptor >= 0)
