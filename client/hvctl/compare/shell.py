"""A shell on somebody's console, as a program types at it: the small Linux's (guests/linux/init), under hvd or under QEMU."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from typing import Final, Protocol

from hvctl.sdk.client import Console
from hvctl.sdk.errors import HvctlError

PROMPT: Final = b"guest # "
_END: Final = b"hvd-compare-end "
# How much of a console is told when something went wrong.
_TOLD: Final = 300


class Line(Protocol):
    """A console: read() waits for more until the moment (time.monotonic), b"" = there is no more."""

    def read(self, until: float) -> bytes: ...

    def write(self, data: bytes) -> None: ...


class ConsoleLine:
    """A guest's console."""

    def __init__(self, console: Console) -> None:
        self._console, self._frames = console, iter(console)

    def read(self, until: float) -> bytes:
        # The frames wait for as long as it takes; whoever waits too long is detached.
        alarm = threading.Timer(max(0.0, until - time.monotonic()), self._console.close)
        alarm.start()
        try:
            return next(self._frames, b"")
        finally:
            alarm.cancel()

    def write(self, data: bytes) -> None:
        self._console.write(data)


class PipeLine:
    """The standard streams of a process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def read(self, until: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
        return os.read(self._process.stdout.fileno(), 65536) if ready else b""

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()


class Shell:
    """Commands, one after the other."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def wait(self, wanted: bytes, seconds: float) -> bytes:
        """What came, up to `wanted` and the rest of what came with it. Raises HvctlError when nothing comes for so long, or no more."""
        data = bytearray()
        while wanted not in data:
            until = time.monotonic() + seconds
            fresh = self._line.read(until)
            if not fresh:
                said = bytes(data[-_TOLD:]).decode(errors="replace").strip()
                what = f"it said nothing for {seconds:.0f} s" if time.monotonic() >= until else "its console ended"
                raise HvctlError.local("NOT_EXPLAINED", problem=f"{what} after {said!r}" if said else what)
            data += fresh
        return bytes(data)

    def run(self, command: str, seconds: float) -> tuple[str, int]:
        """What the command wrote, and its exit code. Raises HvctlError."""
        # In quotes, the mark is not in the echo of what is typed.
        self._line.write(f"{command}; echo hvd-compare''-end $?\n".encode())
        data = self.wait(_END, seconds)
        output, _, rest = data.partition(_END)
        while b"\n" not in rest:
            rest += self.wait(b"\n", seconds)
        text = output.decode(errors="replace").replace("\r", "")
        return text.partition("\n")[2], int(rest.split()[0])
