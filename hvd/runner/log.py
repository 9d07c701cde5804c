"""The console log of a guest: k8s-file lines, rotated, and never the guest's problem.

A log that cannot be written (full disk, I/O error, size limit) loses output, counts it, says so, and goes on when it
can.
"""

from __future__ import annotations

import contextlib
import os
import time
from itertools import pairwise

from hvd.runner.directory import LEAST_LOG_FILES, LogPosition, log_file_bytes

STDOUT, STDERR = b"stdout", b"stderr"
# A line without an end is cut here, or when nothing was added to it for so long.
LONGEST_LINE = 8192
PARTIAL_SECONDS = 0.1


class ConsoleLog:
    """console.log and, after rotations, console.log.1 and so on, so many files in all; each has at most its part of max_bytes
    (but at least 4 KiB). What runs before this one left is kept and counts.
    """

    def __init__(self, path: str, max_bytes: int, files: int = LEAST_LOG_FILES) -> None:
        self._path = path
        self._files = files
        self._most = log_file_bytes(max_bytes, files)
        self._fd: int | None = None
        self._size = 0
        # Where this run begins: offset in the file that was console.log then; None = nothing was opened yet.
        self._begin: int | None = None
        self._rotations = 0
        self._partial = b""  # of the console: a line whose end has not come
        self._failure = ""
        self.lost_bytes = 0  # since the last success
        # time.monotonic() at which flush() is due; None = nothing to flush.
        self.deadline: float | None = None

    @property
    def error(self) -> str:
        """Empty while the log can be written."""
        if not self._failure:
            return ""
        return f"the console log cannot be written ({self._failure}); {self.lost_bytes} bytes are lost so far"

    def console(self, data: bytes) -> None:
        """Output of the guest's console."""
        whole, newline, rest = (self._partial + data).rpartition(b"\n")
        self._partial = rest
        prefix = _prefix(STDOUT)
        block = b""
        if newline:
            block = prefix + b"F " + (b"\n" + prefix + b"F ").join(whole.split(b"\n")) + b"\n"
        while len(self._partial) > LONGEST_LINE:
            block += prefix + b"P " + self._partial[:LONGEST_LINE] + b"\n"
            self._partial = self._partial[LONGEST_LINE:]
        self.deadline = time.monotonic() + PARTIAL_SECONDS if self._partial else None
        if block:
            self._append(block)

    def message(self, text: bytes) -> None:
        """What the guest logged by a hypercall, one line of stderr for each of its lines."""
        prefix = _prefix(STDERR) + b"F "
        self._append(b"".join(prefix + line + b"\n" for line in text.rstrip(b"\n").split(b"\n")))

    def flush(self) -> None:
        """Write the line whose end has not come."""
        self.deadline = None
        if self._partial:
            block = _prefix(STDOUT) + b"P " + self._partial + b"\n"
            self._partial = b""
            self._append(block)

    def position(self) -> LogPosition:
        """The place behind all that was given to console() so far."""
        self.flush()
        older = range(min(self._rotations, self._files - 1), 0, -1)
        names = [*(f"{self._path}.{number}" for number in older), self._path]
        descriptors: list[int] = []
        try:
            self._open()
            for name in names:
                descriptors.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
            begin = (self._begin or 0) if self._rotations < len(names) else 0
            return LogPosition(tuple(descriptors), begin, os.fstat(descriptors[-1]).st_size)
        except OSError:  # it cannot be written, or somebody took it away: there is no log to speak of
            for descriptor in descriptors:
                os.close(descriptor)
            return LogPosition((), 0, 0)

    def close(self) -> None:
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # ---- files

    def _append(self, block: bytes) -> None:
        """Whole lines."""
        note = b""
        if self.lost_bytes:
            text = f"hvd: about {self.lost_bytes} bytes of the guest's output are missing here: {self._failure}\n"
            note = _prefix(STDERR) + b"F " + text.encode()
            block = note + block
        while block:
            try:
                self._open()
                room = self._most - self._size
                cut = len(block)
                if cut > room:
                    cut = block.rfind(b"\n", 0, max(room, 0)) + 1
                    if not cut and not self._size:
                        cut = block.find(b"\n") + 1  # one line longer than a file
                if not cut:
                    self._rotate()
                    continue
                self._write(block[:cut])
            except OSError as error:
                self._failure = os.strerror(error.errno or 0)
                self.lost_bytes += len(block) - len(note)
                return
            block = block[cut:]
            note = b""
            self._failure, self.lost_bytes = "", 0

    def _open(self) -> int:
        if self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(fd).st_size
                if self._begin is None:
                    size += _end_last_line(fd, size)
                    self._begin = size
            except OSError:
                os.close(fd)
                raise
            self._fd, self._size = fd, size
        return self._fd

    def _write(self, lines: bytes) -> None:
        fd = self._open()
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError:
            # No half lines: a reader takes the file apart line by line.
            os.ftruncate(fd, self._size)
            raise
        self._size += len(lines)

    def _rotate(self) -> None:
        rotate(self._path, self._files)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._size = 0
        self._rotations += 1
        self._open()


def rotate(path: str, files: int, newest: str = "") -> None:
    """Make room for a new file: `newest` (the log itself unless given) becomes the first of the older ones, the oldest goes."""
    names = [newest or path, *(f"{path}.{number}" for number in range(1, files))]
    for old, new in reversed(list(pairwise(names))):
        with contextlib.suppress(FileNotFoundError):  # not so many yet, or somebody took it away
            os.rename(old, new)


def _end_last_line(fd: int, size: int) -> int:
    """What an earlier run left may end in the middle of a line, the guest's (tag P) or, after a crash, the file's own:
    end it, so that this run begins with a line of its own. Returns how many bytes that took."""
    tail = os.pread(fd, LONGEST_LINE + 128, max(0, size - LONGEST_LINE - 128))
    if not tail:
        return 0
    ending = b"" if tail.endswith(b"\n") else b"\n"
    if tail.rstrip(b"\n").rpartition(b"\n")[2].split(b" ", 3)[2:3] == [b"P"]:
        ending += _prefix(STDOUT) + b"F \n"
    return os.write(fd, ending)


def _prefix(stream: bytes) -> bytes:
    """`2026-11-23T12:00:00.000000000+00:00 stdout `."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return b"%s.%09d+00:00 %s " % (stamp.encode(), nanoseconds, stream)
