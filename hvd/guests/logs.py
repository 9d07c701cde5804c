"""The console log of a guest: k8s-file lines in console.log and, older, console.log.1 and so on, written by the guest's own
process.

    2026-11-23T12:00:00.000000000+00:00 stdout F text

F = a whole line, P = a piece whose line goes on. The log is read here, whole or followed across rotations; plain
blocking file access, so callers on the event loop go through asyncio.to_thread.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Container, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from hvd.runner import directory as names
from hvd.runner.directory import LogPosition

_CHUNK = 1 << 16
# A line longer than this is no line of ours: take it in pieces.
_MOST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    time_ns: int  # CLOCK_REALTIME
    stream: str
    text: bytes  # with its line end, if it has one

    @property
    def whole(self) -> bool:
        return self.text.endswith(b"\n")


class _Parser:
    """Remembers the last second, since a log has many lines of each."""

    def __init__(self) -> None:
        self._second = b""
        self._epoch = 0
        self._last = 0

    def parse(self, raw: bytes) -> Line:
        fields = raw.split(b" ", 3)
        if len(fields) == 4 and fields[2] in (b"F", b"P") and (moment := self._time(fields[0])) is not None:
            self._last = moment
            return Line(
                moment, fields[1].decode("ascii", "replace"), fields[3] + b"\n" if fields[2] == b"F" else fields[3]
            )
        # Torn by a crash or a full disk: shown as it is, rather than lost.
        return Line(self._last, "stdout", raw + b"\n")

    @property
    def stamp(self) -> bytes:
        """The time of the last line, as it stands in the log."""
        seconds, nanoseconds = divmod(self._last, 1_000_000_000)
        return b"%s.%09d+00:00" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanoseconds)

    def _time(self, text: bytes) -> int | None:
        second, fraction = text[:19], text[20:29]
        if second != self._second:
            try:
                date, _, clock = second.decode("ascii").partition("T")
                year, month, day = (int(part) for part in date.split("-"))
                hour, minute, seconds = (int(part) for part in clock.split(":"))
                self._epoch = calendar.timegm((year, month, day, hour, minute, seconds)) * 1_000_000_000
            except ValueError:
                return None
            self._second = second
        digits = fraction.partition(b"+")[0].rstrip(b"Z")
        return self._epoch + int(digits.ljust(9, b"0")) if digits.isdigit() else self._epoch


def log_names(directory: Path) -> list[str]:
    """The files of a log, the oldest first."""
    try:
        present = set(os.listdir(directory))
    except FileNotFoundError:  # the guest is being deleted
        return []
    older = map(names.older_log, range(names.MOST_LOG_FILES - 1, -1, -1))
    return [name for name in (*older, names.LOG) if name in present]


def opened_files(directory: Path, until: contextlib.ExitStack) -> list[int]:
    """The same, open for reading until then, each once whatever names it has."""
    while True:
        with contextlib.ExitStack() as opened:
            found: list[int] = []
            try:
                for name in log_names(directory):
                    descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
                    opened.callback(os.close, descriptor)
                    if not any(os.path.sameopenfile(descriptor, other) for other in found):
                        found.append(descriptor)
                # A rotation in between may have hidden one.
                seen = [_identity(directory / name) for name in log_names(directory)]
            except FileNotFoundError:
                continue
            if list(dict.fromkeys(seen)) == [_identity(descriptor) for descriptor in found]:
                until.push(opened.pop_all())
                return found


def _identity(file: Path | int) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


class LogReader:
    """One reader's way through a log; `read` goes on where the last call ended."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None
        self._rest = b""
        self._parser = _Parser()
        self._pending: Generator[bytes, None, None] | None = None
        # Held while a thread reads: whoever awaits that may be cancelled, and closes meanwhile.
        self._reading = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """At once, or by the thread that reads as soon as it has read. Nothing is to be read afterwards."""
        self._closed = True
        if self._reading.acquire(blocking=False):
            try:
                if self._pending is not None:
                    self._pending.close()
                self._pending = None
                self._close_file()
            finally:
                self._reading.release()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Iterator[bytes]]:
        """What there is to read now, for one call."""
        try:
            with self._reading:
                if self._closed:
                    yield iter(())
                    return
                if self._pending is None:
                    self._pending = self.raw_lines()
                yield self._pending
        finally:
            if self._closed:
                self.close()

    def _next(self) -> tuple[int, bool] | None:
        """The file that follows the one being read, opened, and whether it does so directly: False when rotations were faster than the
        reader. None = there is none yet."""
        while True:
            with contextlib.ExitStack() as opened:
                files = opened_files(self._directory, opened)
                place = -1
                if self._file is not None:
                    own = os.fstat(self._file)
                    place = next((n for n, each in enumerate(files) if os.path.sameopenfile(each, self._file)), -1)
                    if place < 0 and (own.st_nlink or not files):
                        if not files:
                            return None
                        continue  # it got another name while they were looked up
                if place + 1 == len(files):
                    return None
                return os.dup(files[place + 1]), self._file is None or place >= 0

    def has_news(self) -> bool:
        """Is there anything that was not read yet? Quick: asked again and again by those who follow."""
        try:
            present = _identity(self._directory / names.LOG)
        except FileNotFoundError:
            present = None
        if self._file is None:
            return present is not None or bool(log_names(self._directory))
        if os.fstat(self._file).st_size > os.lseek(self._file, 0, os.SEEK_CUR):
            return True
        return present is not None and present != _identity(self._file)

    def raw_lines(self) -> Generator[bytes, None, None]:
        """What there is now and was not read yet, without line ends; a last line that is not complete waits for the
        next call.
        """
        while True:
            # Asked before reading: what was written before the rotation is then read to its end.
            follows = self._next()
            try:
                while self._file is not None and (block := os.read(self._file, _CHUNK)):
                    lines = (self._rest + block).split(b"\n")
                    self._rest = lines.pop()
                    yield from lines
                    if len(self._rest) > _MOST_LINE:
                        yield self._rest
                        self._rest = b""
                if follows is None:
                    return
                if self._rest:
                    yield self._rest
                    self._rest = b""
                descriptor, is_next = follows
                if not is_next:
                    yield b"%s stderr F hvd: output is missing here: it was written faster than it was read" % self._parser.stamp
                self._close_file()
                self._file, follows = descriptor, None
            finally:
                if follows is not None:
                    os.close(follows[0])

    def read(self, most_lines: int, most_bytes: int) -> list[Line]:
        """The next lines, up to these bounds (the last may exceed most_bytes); empty = all is read."""
        lines: list[Line] = []
        size = 0
        with self._turn() as pending:
            for raw in pending:
                lines.append(self._parser.parse(raw))
                size += len(raw)
                if len(lines) >= most_lines or size >= most_bytes:
                    return lines
            self._pending = None
        return lines

    def read_tail(self, lines: int) -> list[Line]:
        """All there is now, but only the last so many lines; a line in pieces counts once."""
        kept: deque[list[bytes]] = deque(maxlen=lines)
        begun: list[bytes] = []
        with self._turn() as pending:
            for raw in pending:
                begun.append(raw)
                # The tag is the third word; a torn line counts as whole.
                if raw.split(b" ", 3)[2:3] != [b"P"]:
                    kept.append(begun)
                    begun = []
            self._pending = None
        if begun and lines:
            kept.append(begun)
        return [self._parser.parse(raw) for group in kept for raw in group]


def read_before(position: LogPosition, size: int, streams: Container[str], since_ns: int = 0) -> bytes:
    """The last `size` bytes of output before a place in the log, of these streams, not older than since_ns
    (CLOCK_REALTIME). Raises OSError.
    """
    kept: list[bytes] = []
    total = 0
    parser = _Parser()
    for raw in _backwards(position):
        line = parser.parse(raw)
        if line.time_ns < since_ns or total >= size:
            break
        if line.stream in streams:
            kept.append(line.text)
            total += len(line.text)
    return b"".join(reversed(kept))[-size:] if size else b""


def read_end(directory: Path, size: int, streams: Container[str], since_ns: int = 0) -> bytes:
    """The same of all that is in a guest's log now. Raises OSError."""
    with contextlib.ExitStack() as opened:
        descriptors = opened_files(directory, opened)
        if not descriptors:
            return b""
        end = os.fstat(descriptors[-1]).st_size
        return read_before(LogPosition(tuple(descriptors), 0, end), size, streams, since_ns)


def _backwards(position: LogPosition) -> Iterator[bytes]:
    """The lines before the place, the last first, without line ends."""
    last = len(position.descriptors) - 1
    for index in range(last, -1, -1):
        descriptor = position.descriptors[index]
        start = position.begin if index == 0 else 0
        at = position.end if index == last else os.fstat(descriptor).st_size
        rest = b""  # of a line whose beginning has not been read yet
        while at > start:
            length = min(_CHUNK, at - start)
            at -= length
            first, *lines = (os.pread(descriptor, length, at) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line)
            rest = first
        if rest:
            yield rest
