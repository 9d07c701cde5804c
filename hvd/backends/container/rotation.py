"""Rotation of a container's log, which conmon writes and which outlives the daemon.

When the file has its --log-size-max, conmon makes a new console.log.tmp and renames it to console.log: what was in the
old file would be gone with its name. So it always has a second one, console.log.0. Whoever learns of the rename (inotify(7):
this daemon while it is there, otherwise the next one) makes an older file of that, as a VM's runner does
(hvd/runner/log.py), and gives the new file its second name. So the log is bounded whether or not a daemon is there; what
conmon writes and takes away in between is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import structlog

from hvd.runner.directory import LOG, log_file_bytes, older_log
from hvd.runner.log import rotate

log = structlog.get_logger()

_IN_MOVED_TO, _IN_IGNORED = 0x80, 0x8000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


def before_start(directory: Path, max_bytes: int, files: int) -> None:
    """conmon counts from its own start: a log that is half full begins a new file."""
    catch_up(directory, files)
    path = directory / LOG
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size >= log_file_bytes(max_bytes, files) // 2:
            rotate(str(path), files)
            os.unlink(directory / older_log(0))


def catch_up(directory: Path, files: int) -> None:
    """Whatever conmon has done: an older file of what was the log, and a second name for what is. Raises OSError."""
    path, held = directory / LOG, directory / older_log(0)
    while (present := _inode(path)) is not None:
        was = _inode(held)
        if was == present:
            return
        if was is not None:
            rotate(str(path), files, newest=str(held))
        os.link(path, held)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


class Watch:
    """Tells when the log of a guest's directory has been replaced: one inotify descriptor for all, since there are few."""

    _of: WeakKeyDictionary[asyncio.AbstractEventLoop, Watch] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError."""
        self._loop = loop
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _errno("inotify_init1")
        self._calls: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._descriptor, self._read)

    @classmethod
    def begin(cls, directory: Path, call: Callable[[], None]) -> Callable[[], None]:
        """call: when the log there was replaced. What ends it is returned. In the event loop; raises OSError."""
        loop = asyncio.get_running_loop()
        watch = cls._of.get(loop)
        if watch is None:
            watch = cls._of[loop] = cls(loop)
        number = watch._add(directory, call)
        return lambda: watch._remove(number)

    def _add(self, directory: Path, call: Callable[[], None]) -> int:
        number: int = _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _IN_MOVED_TO)
        if number < 0:
            raise _errno("inotify_add_watch")
        self._calls[number] = call
        return number

    def _remove(self, number: int) -> None:
        if self._calls.pop(number, None) is None:
            return
        _libc.inotify_rm_watch(self._descriptor, number)
        if not self._calls:
            self._of.pop(self._loop, None)
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        numbers: set[int] = set()
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if number < 0:  # so many that some were lost
                numbers |= self._calls.keys()
            elif mask & _IN_IGNORED:
                self._calls.pop(number, None)
            elif name == LOG.encode():
                numbers.add(number)
        for number in numbers:
            if (call := self._calls.get(number)) is not None:
                call()


class Rotation:
    """Of one container, while this daemon has it."""

    def __init__(self, directory: Path, files: int) -> None:
        self._directory, self._files = directory, files
        self._stop: Callable[[], None] | None = None
        try:
            self._stop = Watch.begin(directory, self._turn)
        except OSError as error:  # fs.inotify.max_user_instances: as without a daemon, then
            log.warning("rotations of a container's log are not seen", directory=str(directory), problem=str(error))
        self._turn()

    def _turn(self) -> None:
        try:
            catch_up(self._directory, self._files)
        except OSError as error:
            log.warning("a container's log cannot be rotated", directory=str(self._directory), problem=str(error))

    def end(self) -> None:
        """It writes no more, or this daemon leaves it."""
        self._turn()
        if self._stop is not None:
            self._stop()
            self._stop = None


def _errno(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
