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
from hvd.errors import HvdError
from hvd.jail import landlock, network, seccomp

# linux/capability.h
SYS_RAWIO, SYS_CHROOT, PERFMON = 17, 18, 38
# What a cell needs of its runner: page 0 of its guest below vm.mmap_min_addr, and an empty root of its own.
CELL: Final = frozenset({SYS_RAWIO, SYS_CHROOT})
EMPTY: Final = "/empty"
MOST_DESCRIPTORS: Final = 1024
# Threads and the cell.
MOST_PROCESSES: Final = 64

# linux/sched.h, linux/mount.h, linux/prctl.h
_NEWNS, _NEWUTS, _NEWIPC = 0x20000, 0x4000000, 0x8000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXECUTION, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_KEEP_CAPABILITIES, _CAPABILITY_DROP, _NO_NEW_PRIVILEGES, _AMBIENT, _AMBIENT_RAISE = 8, 24, 38, 47, 2
_PIVOT_ROOT, _CAPSET, _SECCOMP = 155, 126, 317
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
            raise _failed("machine.json", error) from error


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


# Made once, by the template.
_CODE: Final = seccomp.program()


class _Libc:
    """System calls that raise."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(None, use_errno=True)
        self._lib.syscall.restype = ctypes.c_long
        self._lib.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

    def __call__(self, name: str, *arguments: Any) -> None:
        if getattr(self._lib, name)(*arguments) != 0:
            raise self._failed(name)

    @staticmethod
    def _failed(name: str) -> HvdError:
        return HvdError(
            "RUNNER_START_FAILED",
            problem=f"its jail cannot be made ({name}: {os.strerror(ctypes.get_errno())}); the setting jail=off does without",
            log="runner.log in the guest's directory",
        )

    def prctl(self, option: int, *arguments: int) -> None:
        self("prctl", option, *(*arguments, 0, 0, 0, 0)[:4])

    def drop_bounding(self, capabilities: Iterable[int]) -> None:
        """Some forty, one by one: of what a start takes, this loop is a part."""
        prctl = self._lib.prctl
        for capability in capabilities:
            if prctl(_CAPABILITY_DROP, capability, 0, 0, 0) != 0:
                raise self._failed("prctl")

    def mount(self, source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
        self("mount", *(text.encode() for text in (source, target, kind)), ctypes.c_ulong(flags), data.encode())


def enter(jail: Jail, kept: frozenset[int], readable: Sequence[str] = ()) -> None:
    """kept: the capabilities that stay. readable: directories besides the libraries'. Without a user in the jail only what needs no privileges.
    Raises HvdError RUNNER_START_FAILED."""
    libc = _Libc()
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, MOST_DESCRIPTORS)):
        _limit(kind, most)
    readable = _outermost([*libraries(), *filter(os.path.isdir, readable)])
    if jail.user is not None:
        try:
            _leave_root(libc, jail, readable)
        except OSError as error:
            raise _failed("root", error) from error
        _limit(resource.RLIMIT_NPROC, MOST_PROCESSES)
        _become(libc, jail.user, kept)
    network.drop()  # without a user
    libc.prctl(_NO_NEW_PRIVILEGES, 1)
    _fence(jail, readable)
    _filter(libc)


def _failed(what: str, error: Exception) -> HvdError:
    return HvdError("RUNNER_START_FAILED", problem=f"its jail cannot be made ({what}: {error})", log="runner.log in the guest's directory")


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


def _leave_root(libc: _Libc, jail: Jail, readable: Sequence[str]) -> None:
    """Namespaces of its own: a network, host name, IPC without anything in them, and a root with the guest's directories, Python's libraries and
    what /proc tells of this user's processes."""
    here = os.getcwd()
    made = network.take()
    libc("unshare", _NEWNS | _NEWUTS | _NEWIPC | (network.NEW_NETWORK if made < 0 else 0))
    if made >= 0:
        libc("setns", made, network.NEW_NETWORK)
        os.close(made)
    own = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    libc.mount("", "/", flags=_RECURSIVE | _PRIVATE)
    # Any directory will do that none of the others is in.
    libc.mount("jail", here, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    os.umask(0o022)
    for path in readable:
        _show(libc, path, here + path, _READ_ONLY)
    for path in jail.writable:
        _show(libc, path, here + path, _NO_EXECUTION)
    _show(libc, f"/proc/self/fd/{own}", here + here, _NO_EXECUTION)
    os.close(own)
    os.mkdir(here + EMPTY, 0o755)
    os.mkdir(f"{here}/proc", 0o755)
    os.umask(0o077)
    quiet = _NO_SUID | _NO_DEVICES | _NO_EXECUTION | _READ_ONLY
    libc.mount("proc", f"{here}/proc", "proc", quiet, "hidepid=2")
    libc.mount("", here, flags=_REMOUNT | _BIND | quiet)
    os.chdir(here)
    libc("syscall", _PIVOT_ROOT, b".", b".")
    libc("umount2", b".", _DETACH)
    os.chdir(here)


def _show(libc: _Libc, source: str, target: str, flags: int) -> None:
    os.makedirs(target, exist_ok=True)
    libc.mount(source, target, flags=_BIND)
    libc.mount("", target, flags=_REMOUNT | _BIND | _NO_SUID | _NO_DEVICES | flags)


@functools.cache
def _last_capability() -> int:
    """That this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def _become(libc: _Libc, user: int, kept: frozenset[int]) -> None:
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


def _fence(jail: Jail, readable: Sequence[str]) -> None:
    own = [(path, landlock.OWN) for path in (os.getcwd(), *jail.writable)]
    try:
        landlock.restrict([*((path, landlock.LIBRARIES) for path in readable), *own, ("/proc", landlock.PROCESSES)])
    except OSError as error:
        raise _failed("Landlock", error) from error


def _filter(libc: _Libc) -> None:
    if platform.machine() != "x86_64":
        return
    program = _Program(len(_CODE) // 8, _CODE)
    # Without SPEC_ALLOW, kernels before 5.16 slow down all that runs under a filter.
    libc("syscall", _SECCOMP, _SECCOMP_FILTER, _SPEC_ALLOW, ctypes.byref(program))
