"""Landlock, where the kernel has it: what a runner may open and do with files, by a list of its own. The jail's root shows the same directories; this
one holds where there is no such root, because hvd is not root, and where somebody finds a way out of it.

https://docs.kernel.org/userspace-api/landlock.html; numbers: linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Iterable
from typing import Any, Final

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIRECTORY, _REMOVE_FILE, _MAKE_DIRECTORY, _MAKE_FILE, _MAKE_SOCKET = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 9
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# All rights that a version of the interface knows: of files (those of version 1 are 0 to 12), of TCP, and what it closes off (abstract unix sockets,
# signals). The largest version counts that is not above the kernel's.
_VERSIONS: Final = {
    1: (0x1FFF, 0, 0), 2: (0x3FFF, 0, 0), 3: (0x7FFF, 0, 0), 4: (0x7FFF, 3, 0), 5: (0xFFFF, 3, 0), 6: (0xFFFF, 3, 3),
}  # fmt: skip
_SIGNALS, _SIGNALS_VERSION = 2, 6
LIBRARIES: Final = _EXECUTE | _READ_FILE | _READ_DIRECTORY
PROCESSES: Final = _READ_FILE | _READ_DIRECTORY
OWN: Final = (
    PROCESSES | _WRITE_FILE | _TRUNCATE | _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_FILE | _MAKE_SOCKET | _REFER
)  # fmt: skip


@functools.cache
def version() -> int:
    """Of the kernel's Landlock; 0 = it has none, or it is not switched on."""
    return max(0, int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)))


@functools.cache
def _libc() -> Any:
    lib = ctypes.CDLL(None, use_errno=True)
    lib.syscall.restype = ctypes.c_long
    return lib


def close_signals() -> None:
    """This thread and its children, for ever, send no signals to others, where the kernel can: ahead of restrict(), and around children that are made
    before that. It needs no_new_privs or CAP_SYS_ADMIN. Raises OSError."""
    if version() < _SIGNALS_VERSION:
        return
    rules = _call(_CREATE, struct.pack("QQQ", 0, 0, _SIGNALS), ctypes.c_size_t(24), 0)
    try:
        _call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def restrict(allowed: Iterable[tuple[str, int]], *, signals: bool = True) -> None:
    """This thread and its children, for ever: (directory, what may be done in it and below). Directories that are not there are left out. No TCP, no
    signals to others and no abstract sockets of others, where the kernel can. signals: false = close_signals() was called, and what was
    made since goes on to get signals. Without Landlock nothing happens. It needs no_new_privs. Raises OSError."""
    if not version():
        return
    files, *others = _VERSIONS[max(known for known in _VERSIONS if known <= version())]
    if not signals:
        others[1] &= ~_SIGNALS
    # struct landlock_ruleset_attr, as long as the kernel knows it.
    words = struct.pack("QQQ", files, *others)[: 24 if version() >= _SIGNALS_VERSION else 16 if others[0] else 8]
    rules = _call(_CREATE, words, ctypes.c_size_t(len(words)), 0)
    try:
        for path, rights in allowed:
            _allow(rules, path, rights & files)
        _call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # struct landlock_path_beneath_attr, packed.
        _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, directory), 0)
    finally:
        os.close(directory)


def _call(number: int, *arguments: Any) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno() or errno.EIO
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
