"""Into the jail: the last thing that a runner does before its guest's first instruction, while it has but one thread that goes on: capabilities,
filter and Landlock are each thread's own. (Another may still be loading the kernel, and ends before that first instruction.)"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hvapi

import hvd
import hvd.backends
from hvd.jail import landlock, namespaces, root, seccomp
from hvd.jail.libc import Libc, failed

# linux/capability.h
SYS_RAWIO, SYS_CHROOT, PERFMON = 17, 18, 38
# What a cell needs of its runner: page 0 of its guest below vm.mmap_min_addr, and an empty root of its own.
CELL: Final = frozenset({SYS_RAWIO, SYS_CHROOT})
MOST_DESCRIPTORS: Final = 1024
# Threads and the cell.
MOST_PROCESSES: Final = 64

# linux/prctl.h
_KEEP_CAPABILITIES, _NO_NEW_PRIVILEGES, _AMBIENT, _AMBIENT_RAISE = 8, 38, 47, 2
_CAPSET, _SECCOMP = 126, 317
_CAPABILITY_VERSION = 0x20080522
_SECCOMP_FILTER, _SPEC_ALLOW = 1, 4


@dataclass(frozen=True, slots=True)
class Jail:
    """As machine.json has it, beside the machine."""

    user: int | None  # and group; None = there are no privileges to become one
    writable: Sequence[str] = ()  # directories that are the guest's own, besides the present one

    def document(self) -> dict[str, Any]:
        return {"user": self.user, "writable": list(self.writable)}

    @classmethod
    def of(cls, document: Any) -> Jail:
        """Raises HvdError RUNNER_START_FAILED."""
        try:
            user = document["user"]
            return cls(None if user is None else int(user), [str(path) for path in document["writable"]])
        except (TypeError, KeyError, ValueError) as error:
            raise failed("machine.json", error) from error


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


# The filter of system calls, made once, by the template.
CALLS: Final = seccomp.program()


def enter(jail: Jail, kept: frozenset[int], readable: Sequence[str] = (), *, child: bool = False) -> None:
    """kept: the capabilities that stay. readable: directories besides the libraries'. child: there is one already that it sends signals to
    (hvd.runner.ahead), and it sends them to nobody else. Without a user in the jail only what needs no privileges.
    Raises HvdError RUNNER_START_FAILED."""
    libc = Libc()
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, MOST_DESCRIPTORS)):
        _limit(kind, most)
    readable = _outermost([*libraries(), *filter(os.path.isdir, readable)])
    if jail.user is not None:
        try:
            root.leave(jail.writable, readable, readable == libraries())
        except OSError as error:
            raise failed("root", error) from error
        _limit(resource.RLIMIT_NPROC, MOST_PROCESSES)
        _become(libc, jail.user, kept)
    namespaces.drop()  # without a user
    libc.prctl(_NO_NEW_PRIVILEGES, 1)
    _fence(jail, readable, signals=not child)
    _filter(libc)


def _limit(kind: int, most: int) -> None:
    """Never raises a limit."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


@functools.cache
def libraries() -> list[str]:
    """Where Python may still find what it imports late; none of it is anybody's secret."""
    paths = [os.path.dirname(os.__file__), *(path for package in (hvd, hvapi) for path in package.__path__)]
    paths += [path for path in sys.path if path.endswith(("site-packages", "dist-packages", "lib-dynload"))]
    paths += hvd.backends.__path__
    return _outermost(os.path.abspath(path) for path in paths if os.path.isdir(path))


def prepare_jail() -> None:
    """What is the same for all, ahead of the first (hvd.runner.template)."""
    libraries()
    with contextlib.suppress(OSError):  # without /proc: told when it is needed
        _last_capability()


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those that lie in another."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{other}/") for other in found):
            found.append(path)
    return found


@functools.cache
def _last_capability() -> int:
    """That this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def _become(libc: Libc, user: int, kept: frozenset[int]) -> None:
    """That user, with these capabilities; a cell inherits them and drops what it does not need."""
    libc.drop_bounding(capability for capability in range(_last_capability() + 1) if capability not in kept)
    os.setgroups([])
    libc.prctl(_KEEP_CAPABILITIES, 1)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    masks = [sum(1 << bit - 32 * word for bit in kept if bit // 32 == word) for word in range(2)]
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Effective, permitted, inheritable; of the low capabilities, then of the high ones.
    sets = (ctypes.c_uint32 * 6)(*(mask for mask in masks for _ in range(3)))
    libc("syscall", _CAPSET, header, sets)
    for capability in kept:
        libc.prctl(_AMBIENT, _AMBIENT_RAISE, capability)


def _fence(jail: Jail, readable: Sequence[str], *, signals: bool) -> None:
    own = [(path, landlock.OWN) for path in (os.getcwd(), *jail.writable)]
    try:
        landlock.restrict([*((path, landlock.LIBRARIES) for path in readable), *own, ("/proc", landlock.PROCESSES)], signals=signals)
    except OSError as error:
        raise failed("Landlock", error) from error


def _filter(libc: Libc) -> None:
    if platform.machine() != "x86_64":
        return
    program = _Program(len(CALLS) // 8, CALLS)
    # Without SPEC_ALLOW, kernels before 5.16 slow down all that runs under a filter.
    libc("syscall", _SECCOMP, _SECCOMP_FILTER, _SPEC_ALLOW, ctypes.byref(program))
