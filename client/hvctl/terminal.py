"""A console on this terminal, or on plain files: what the guest writes to stdout, what is typed to the guest."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id
from hvctl.settings import Settings, say

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

    from hvctl.sdk import Console

DETACH = b"\x1d"  # ^], as telnet and virsh have it
STDIN, STDOUT = 0, 1
# A restarted daemon finds its guests within this time.
RECONNECT_SECONDS = 30.0
_ENDED = ("STOPPED", "FAILED", "LOST")


class Detached(Exception):
    """The viewer has let go; the guest goes on."""


def follow(settings: Settings, name: str, *, replay_bytes: int, read_only: bool = False, is_terminal: bool = True) -> guest_pb2.Guest:
    """Shows the console until the guest ends, and returns it as it ended. Raises Detached, or HvctlError.

    On two terminals the keyboard is raw and ^] detaches, unless the guest has no terminal (is_terminal); otherwise stdin
    is passed on as it is, and its end is that of the standard input of a container that was started with attach_stdin.
    When the daemon restarts, the console is attached again.
    """
    end = None if settings.timeout is None else time.monotonic() + settings.timeout
    raw = not read_only and is_terminal and os.isatty(STDIN) and os.isatty(STDOUT)
    attached = warned = False
    while True:
        left = None if end is None else max(0.001, end - time.monotonic())
        size = terminal_size() if os.isatty(STDOUT) else None
        console = settings.client.console(name, replay_bytes=replay_bytes, read_only=read_only, size=size, timeout=left)
        try:
            with console, _session(console, raw, read_only, announce=not attached) as keyboard:
                for frame in console.frames():
                    kind = frame.WhichOneof("frame")
                    if kind == "attached":
                        attached = True
                        keyboard.begin()
                    elif kind == "output":
                        write_all(STDOUT, frame.output)
                    elif kind == "warning":
                        warned = True
                        say(f"warning: {frame.warning}")
                    elif kind == "skipped_bytes":
                        say(f"{frame.skipped_bytes} bytes skipped here; `hvctl logs {guest_id(name)}` has them")
            if keyboard.detached:
                raise Detached
            if console.ended is not None:
                if not warned:
                    _warn(console.ended)
                return console.ended
            return _as_it_ended(settings, name, None)
        except HvctlError as error:
            if error.reason == "GUEST_WRONG_STATE":
                # It had ended before we came.
                return _as_it_ended(settings, name, error, show_log=not attached and replay_bytes > 0)
            if not attached or error.reason not in ("DAEMON_UNREACHABLE", "SHUTTING_DOWN"):
                raise
            say(f"lost the daemon; waiting {RECONNECT_SECONDS:.0f} s for it to come back")
            if not settings.client.wait_ready(RECONNECT_SECONDS):
                raise
            say(f"attached again; `hvctl logs {guest_id(name)}` has what was written meanwhile")
            replay_bytes = 0


def _warn(guest: guest_pb2.Guest) -> None:
    """Of a guest that ended before its viewers could be warned."""
    for condition in guest.conditions:
        if condition.type in ("SENSITIVE_INSTRUCTIONS", "NEGLECTED"):
            say(f"warning: {condition.message}")


def has_terminal(guest: guest_pb2.Guest) -> bool:
    """Is its console one? A container's is when it was asked for."""
    return guest.container.tty if guest.HasField("container") else True


def _as_it_ended(settings: Settings, name: str, error: HvctlError | None, show_log: bool = False) -> guest_pb2.Guest:
    from hvapi.v1 import guest_pb2

    guest = settings.client.get_guest(name=name)
    if guest_pb2.Guest.State.Name(guest.state) not in _ENDED:
        raise error or HvctlError.local("NOT_EXPLAINED", problem=f"the console of {guest_id(name)} was closed")
    if show_log:
        for response in settings.client.get_logs(name=name):
            for line in response.lines:
                write_all(STDOUT, line.text)
    return guest


def write_all(file: int, data: bytes) -> None:
    """os.write until everything is written. Raises HvctlError FILE_UNWRITABLE; BrokenPipeError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(file, view) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "stdout" if file == STDOUT else f"file descriptor {file}"
        raise HvctlError.local("FILE_UNWRITABLE", path=name, problem=error.strerror) from error


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal itself: LINES and COLUMNS, which a shell may export, do not follow it."""
    for file in (STDOUT, STDIN):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(file)
            if size.lines and size.columns:
                return size.lines, size.columns
    import shutil

    size = shutil.get_terminal_size()
    return size.lines, size.columns


_as_it_was: list[object] | None = None


def make_raw() -> None:
    """Stdin's terminal, until restore()."""
    global _as_it_was
    _as_it_was = termios.tcgetattr(STDIN)
    tty.setraw(STDIN, termios.TCSADRAIN)


def restore() -> bool:
    """Was there anything to be restored? A signal may come in the middle of whatever would call this: hvctl calls it at its end, too."""
    global _as_it_was
    if _as_it_was is None:
        return False
    termios.tcsetattr(STDIN, termios.TCSADRAIN, _as_it_was)  # type: ignore[arg-type]
    _as_it_was = None
    return True


class _Keyboard:
    """Passes stdin on from a thread of its own, from begin() until stop()."""

    def __init__(self, console: Console, raw: bool, enabled: bool, announce: bool) -> None:
        self.detached = False
        self._console, self._raw, self._enabled, self._announce = console, raw, enabled, announce
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC)
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self._raw:
            if self._announce:
                say("attached; ^] detaches")
            make_raw()
        if self._enabled and self._thread is None:
            self._thread = threading.Thread(target=self._read, name="stdin", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        if sys.stdin is None:  # closed from the beginning: the number may be something else's now
            self._console.end_input()
            return
        while True:
            try:
                ready, _, _ = select.select([STDIN, self._wake_reader], [], [])
                if self._wake_reader in ready:
                    return
                data = os.read(STDIN, 4096)
            except (OSError, ValueError):  # closed or not readable (a background job): nothing will be typed any more
                data = b""
            if not data:
                self._console.end_input()
                return
            before, detach, _ = data.partition(DETACH) if self._raw else (data, b"", b"")
            if before:
                self._console.write(before)
            if detach:
                self.detached = True
                self._console.close()
                return

    def stop(self) -> None:
        os.write(self._wake_writer, b".")
        self._console.close()  # a thread that waits in write() goes on
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        if restore():
            sys.stderr.write("\r\n" if self.detached else "")


@contextmanager
def _session(console: Console, raw: bool, read_only: bool, announce: bool) -> Iterator[_Keyboard]:
    """The keyboard and the window's size, put back as they were in the end."""
    keyboard = _Keyboard(console, raw, not read_only, announce)

    def resized(number: int, frame: FrameType | None) -> None:
        console.resize(*terminal_size())

    follows_size = os.isatty(STDOUT) and threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGWINCH, resized) if follows_size else None
    try:
        yield keyboard
    finally:
        if follows_size:
            signal.signal(signal.SIGWINCH, previous)
        keyboard.stop()
