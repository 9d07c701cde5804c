"""Files of a trace session: blocks as StreamTrace sends them, one after the other, in files of which the oldest goes when all are full.

A file is MAGIC and then messages (StreamTraceResponse), each behind its length as a varint, as protobuf's delimited form has it. The first
message of each file is a header, and a symbol is told anew in each: every file can be read alone (client/hvctl/sdk/trace_files.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError
from hvapi.record import RECORD_BYTES
from hvapi.trace_file import MAGIC, MOST_BYTES, framed
from hvapi.v1 import trace_pb2

SUFFIX = ".hvtrace"
Block = trace_pb2.StreamTraceResponse


def files_of(directory: Path) -> list[Path]:
    """The oldest first."""
    return sorted(directory.glob(f"*{SUFFIX}"))


class FileSink:
    """Writes into a directory of its own. Must be closed. For one thread at a time."""

    def __init__(self, directory: Path, max_bytes: int, files: int, header: Callable[[list[int]], Block]) -> None:
        """header: the first message of a file, told how many records of each guest the earlier files had or told as lost. Raises OSError."""
        self._directory = directory
        self._file_bytes = max_bytes // files
        self._files = files
        self._header = header
        self._number = 0
        self._descriptor = -1
        self._size = 0
        self._earlier_bytes: list[int] = []  # of the files before the present one, as far as they are kept
        self._written: list[int] = []
        self._owed: dict[int, int] = {}  # guest -> records that could not be written, and nobody was told yet
        self._next_file()

    def close(self) -> None:
        """What was lost last is told if there is room now."""
        for guest, lost in list(self._owed.items()):
            try:
                self._append(framed(Block(guest=guest, lost=lost)))
            except OSError:
                break
            del self._owed[guest]
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, block: Block) -> None:
        """All of it, or an OSError and nothing; then its records are owed as lost, and the next that is written tells so."""
        records = len(block.records) // RECORD_BYTES
        try:
            if self._descriptor < 0 or self._size >= self._file_bytes:
                self._next_file()
            owed = self._owed.get(block.guest, 0)
            if owed:
                told = Block()
                told.CopyFrom(block)
                told.lost += owed
                self._append(framed(told))
            else:
                self._append(framed(block))
        except OSError:
            self._owed[block.guest] = self._owed.get(block.guest, 0) + records + block.lost
            raise
        self._owed.pop(block.guest, None)
        while len(self._written) <= block.guest:
            self._written.append(0)
        self._written[block.guest] += records + block.lost + owed

    @property
    def file_number(self) -> int:
        """Changes with each new file: symbols are to be told anew."""
        return self._number

    @property
    def stored_bytes(self) -> int:
        """Of all files that are kept."""
        return sum(self._earlier_bytes) + self._size

    def _append(self, data: bytes) -> None:
        try:
            done = 0
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(data)

    def _next_file(self) -> None:
        """Raises OSError; the next write tries again then."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        for path in files_of(self._directory)[: -(self._files - 1)]:
            path.unlink(missing_ok=True)
        if self._size:
            self._earlier_bytes = [*self._earlier_bytes, self._size][-(self._files - 1) :]
        self._number += 1
        path = self._directory / f"{self._number:08d}{SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._size = 0
        try:
            self._append(MAGIC + framed(self._header(list(self._written))))
        except OSError:
            os.close(self._descriptor)
            self._descriptor = -1
            path.unlink(missing_ok=True)
            raise


class Tail:
    """Reads messages from a file that may still grow. What is damaged ends it: `damaged` says so."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._buffer = b""
        self._begun = False
        self.damaged = False

    def read(self, most: int) -> Iterator[Block]:
        """The whole messages among the next so many bytes."""
        self._buffer += self._file.read(most)
        at = 0
        if not self._begun:
            if len(self._buffer) < len(MAGIC):
                return
            at, self._begun = len(MAGIC), True
            self.damaged = not self._buffer.startswith(MAGIC)
        while not self.damaged and (place := _length(self._buffer, at)) is not None:
            length, begin = place
            if length > MOST_BYTES:
                self.damaged = True
            elif begin + length > len(self._buffer):
                break
            else:
                try:
                    yield Block.FromString(self._buffer[begin : begin + length])
                except DecodeError:
                    self.damaged = True
                at = begin + length
        self._buffer = self._buffer[at:]


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """A varint and where it ends; None = not all of it is there."""
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
        if shift > 35:
            return MOST_BYTES + 1, at
    return None
