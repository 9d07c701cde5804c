"""Trace sessions that go on without a client: each writes its records to files of its own below the state directory.

A session ends when it is stopped, when its guests are deleted, or with the daemon; its files stay until it is deleted. A full disk loses its
records and nothing else: the session says so, counts them, and goes on when there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
from google.protobuf import json_format
from hvapi.record import RECORD_BYTES
from hvapi.v1 import trace_pb2

from hvd.errors import HvdError
from hvd.guests.supervisor import Supervisor
from hvd.guests.tracing import GuestsTrace
from hvd.trace.session import TraceSwitch
from hvd.trace.sink import Block, FileSink, Tail, files_of

log = structlog.get_logger()

PREFIX = "traces/"
MOST_SESSIONS = 64
DEFAULT_BYTES, LEAST_BYTES, MOST_BYTES = 64 << 20, 1 << 20, 1 << 40
DEFAULT_FILES, LEAST_FILES, MOST_FILES = 4, 2, 100
_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RECORD = "session.json"
_READ_BYTES = 1 << 18
Session = trace_pb2.TraceSession


class _Running:
    """One session: its message, and the task that writes it."""

    def __init__(self, message: Session, directory: Path) -> None:
        self.message = message
        self.directory = directory
        self.task: asyncio.Task[None] | None = None
        self.stop = asyncio.Event()
        self.stop_reason = ""
        self._fresh = asyncio.Event()

    def changed(self) -> None:
        self._fresh.set()
        self._fresh = asyncio.Event()

    async def change(self) -> None:
        await self._fresh.wait()

    @property
    def is_over(self) -> bool:
        return self.message.state == Session.STOPPED

    def keep(self) -> None:
        """Raises OSError."""
        path = self.directory / _RECORD
        new = path.with_name(f"{_RECORD}.new")
        new.write_text(json_format.MessageToJson(self.message))
        new.rename(path)


class TraceSessions:
    """Those of one daemon."""

    def __init__(self, directory: Path, supervisor: Supervisor, switch: TraceSwitch, count_lost: Callable[[str, str, int], None]) -> None:
        self._directory = directory
        self._supervisor, self._switch = supervisor, switch
        self._count_lost = count_lost
        self._sessions: dict[str, _Running] = {}

    def load(self) -> None:
        """What earlier daemons left; what was under way has ended with them. One odd folder never stops the daemon."""
        for path in sorted(self._directory.glob(f"*/{_RECORD}")):
            try:
                message = json_format.Parse(path.read_text(), Session(), ignore_unknown_fields=True)
            except (OSError, ValueError, json_format.ParseError) as error:
                log.warning("a trace session cannot be read", path=str(path), error=str(error))
                continue
            session = _Running(message, path.parent)
            if not session.is_over:
                self._end(session, "the daemon ended")
            self._sessions[message.name] = session

    async def start(self, request: trace_pb2.StartTraceRequest) -> Session:
        """Recording is on when this returns. Raises HvdError NAME_INVALID, NAME_TAKEN, FIELD_INVALID, TOO_MANY_TRACES, DISK_FULL,
        DIRECTORY_UNUSABLE, and as GuestsTrace does."""
        name = PREFIX + (request.trace_id or f"t-{secrets.token_hex(4)}")
        if _ID.fullmatch(name.removeprefix(PREFIX)) is None:
            raise HvdError("NAME_INVALID", what="trace", name=request.trace_id[:80])
        if name in self._sessions:
            raise HvdError("NAME_TAKEN", what="trace", name=request.trace_id)
        if sum(not session.is_over for session in self._sessions.values()) >= MOST_SESSIONS:
            raise HvdError("TOO_MANY_TRACES", limit=MOST_SESSIONS)
        max_bytes = _within("max_bytes", request.max_bytes or DEFAULT_BYTES, LEAST_BYTES, MOST_BYTES)
        files = _within("files", request.files or DEFAULT_FILES, LEAST_FILES, MOST_FILES)
        trace = GuestsTrace(self._supervisor, self._switch, request.what)
        try:
            what = trace_pb2.StreamTraceRequest()
            what.CopyFrom(request.what)
            del what.names[:]
            what.names.extend(life.guest.name for life in trace.lives)
            message = Session(name=name, what=what, state=Session.RUNNING, max_bytes=max_bytes, files=files)
            message.create_time.GetCurrentTime()
            for life in trace.lives:
                message.guests.add(name=life.guest.name)
            session = _Running(message, self._directory / name.removeprefix(PREFIX))
            self._sessions[name] = session  # before anything is waited for: the name is taken
            try:
                await trace.begin()
                header = trace.header()
                sink = await asyncio.to_thread(_make, session, lambda earlier: _file_header(header, earlier))
            except BaseException:
                del self._sessions[name]
                raise
        except BaseException:
            trace.close()
            raise
        session.task = asyncio.create_task(self._write(session, trace, sink))
        return message

    def get(self, name: str) -> Session:
        """Raises HvdError TRACE_NOT_FOUND."""
        return self._found(name).message

    def all(self) -> list[Session]:
        """By name."""
        return [session.message for _, session in sorted(self._sessions.items())]

    async def stop(self, name: str) -> Session:
        """What was recorded before is in its files when this returns. Raises HvdError TRACE_NOT_FOUND."""
        session = self._found(name)
        await self._finish(session, "stopped")
        return session.message

    async def delete(self, name: str, allow_missing: bool) -> None:
        """Raises HvdError TRACE_NOT_FOUND."""
        if allow_missing and name not in self._sessions:
            return
        session = self._found(name)
        await self._finish(session, "deleted")
        self._sessions.pop(name, None)
        session.changed()
        await asyncio.to_thread(shutil.rmtree, session.directory, ignore_errors=True)

    async def close(self) -> None:
        """The daemon ends."""
        for session in self._sessions.values():
            await self._finish(session, "the daemon ended")

    async def read(self, name: str, follow: bool) -> AsyncIterator[list[Block]]:
        """What its files hold, then what comes, if that is wanted; the first block has the header. Records that rotation took away before
        they could be read are `lost`. Raises HvdError TRACE_NOT_FOUND, TRACE_FILE_DAMAGED."""
        session = self._found(name)
        reading = _Reading()
        path: Path | None = None
        while self._sessions.get(name) is session:
            change = asyncio.ensure_future(session.change())
            over = session.is_over  # asked before looking: what was written before the end is then seen
            try:
                path = await asyncio.to_thread(_after, session.directory, path)
                if path is not None:
                    async for blocks in self._read_file(session, path, reading, follow):
                        yield blocks
                    continue
                if over or not follow:
                    return
                await change
            finally:
                change.cancel()

    async def _read_file(self, session: _Running, path: Path, reading: _Reading, follow: bool) -> AsyncIterator[list[Block]]:
        """To its end; of the newest one, the end of the session."""
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:  # rotated away meanwhile
            return
        with file:
            tail = Tail(file)
            while True:
                change = asyncio.ensure_future(session.change())
                try:
                    # In this order: what was written before these were so is then seen.
                    over = session.is_over or not follow
                    newest = await asyncio.to_thread(_after, session.directory, path) is None
                    blocks = await asyncio.to_thread(lambda: list(tail.read(_READ_BYTES)))
                    if tail.damaged:
                        raise HvdError("TRACE_FILE_DAMAGED", path=path)
                    at_end = not blocks and file.tell() >= os.fstat(file.fileno()).st_size
                    if fresh := reading.take(blocks):
                        yield fresh
                    elif at_end and (over or not newest):
                        return
                    elif at_end:
                        await change
                finally:
                    change.cancel()

    # --- inside

    async def _write(self, session: _Running, trace: GuestsTrace, sink: FileSink) -> None:
        message, file_number, failing = session.message, sink.file_number, ""
        reason = "its guests have ended"
        try:
            async for block in trace.blocks(self._count_lost, "file", session.stop):
                guest = message.guests[block.guest]
                records, lost = len(block.records) // RECORD_BYTES, block.lost
                try:
                    await asyncio.to_thread(sink.write, block)
                except OSError as error:
                    trace.forget_symbols()
                    self._count_lost(trace.lives[block.guest].guest.uid, "file", records)
                    records, lost = 0, records + lost
                    if not failing:
                        log.warning("a trace session cannot be written", session=message.name, error=str(error))
                    failing = f"it cannot be written ({error.strerror}): records are lost until it can"
                else:
                    failing = ""
                    if sink.file_number != file_number:
                        file_number = sink.file_number
                        trace.forget_symbols()
                guest.records += records
                guest.lost += lost
                message.records += records
                message.lost += lost
                message.status_message = failing
                message.bytes = sink.stored_bytes
                session.changed()
            if session.stop.is_set():
                reason = session.stop_reason
        except HvdError as error:
            reason = error.message
        except Exception as error:  # no session ends the daemon
            log.exception("a trace session ends", session=message.name)
            reason = f"internal error: {error!r}"
        trace.close()
        await asyncio.to_thread(sink.close)
        self._end(session, f"{reason}; {failing}" if failing else reason)

    async def _finish(self, session: _Running, reason: str) -> None:
        if session.task is not None and not session.is_over:
            session.stop_reason = session.stop_reason or reason
            session.stop.set()
            await asyncio.shield(session.task)

    def _end(self, session: _Running, reason: str) -> None:
        session.message.state = Session.STOPPED
        session.message.status_message = reason
        session.message.end_time.FromNanoseconds(time.time_ns())
        session.message.bytes = _bytes_of(session.directory)
        try:
            session.keep()
        except OSError as error:  # a full disk: it is told anew by the next daemon
            log.warning("a trace session's end cannot be kept", session=session.message.name, error=str(error))
        session.changed()

    def _found(self, name: str) -> _Running:
        try:
            return self._sessions[name]
        except KeyError:
            raise HvdError("TRACE_NOT_FOUND", name=name.removeprefix(PREFIX)[:80]) from None


class _Reading:
    """What one reader of a session has got, over all files."""

    def __init__(self) -> None:
        self._header: trace_pb2.TraceHeader | None = None
        self._got: dict[int, int] = {}

    def take(self, blocks: list[Block]) -> list[Block]:
        """Blocks for the reader: one header only, and what rotation took as lost."""
        made: list[Block] = []
        for block in blocks:
            if block.HasField("header"):
                earlier = block.header.earlier
                if self._header is None:
                    self._header = block.header
                    made.append(block)
                for guest, count in enumerate(earlier):
                    if (gone := count - self._got.get(guest, 0)) > 0:
                        made.append(Block(guest=guest, lost=gone))
                    self._got[guest] = count
                continue
            self._got[block.guest] = self._got.get(block.guest, 0) + len(block.records) // RECORD_BYTES + block.lost
            made.append(block)
        return made


def _make(session: _Running, header: Callable[[list[int]], Block]) -> FileSink:
    directory = session.directory
    try:
        directory.mkdir(mode=0o700, parents=True)
        session.keep()
        return FileSink(directory, session.message.max_bytes, session.message.files, header)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HvdError("DISK_FULL", directory=directory.parent, what="a trace session") from error
        raise HvdError("DIRECTORY_UNUSABLE", directory=directory, problem=error.strerror) from error


def _file_header(header: trace_pb2.TraceHeader, earlier: list[int]) -> Block:
    block = Block(header=header)
    del block.header.earlier[:]
    block.header.earlier.extend(earlier)
    return block


def _after(directory: Path, path: Path | None) -> Path | None:
    """The oldest file that is newer than this one."""
    return next((each for each in files_of(directory) if path is None or each.name > path.name), None)


def _bytes_of(directory: Path) -> int:
    total = 0
    for path in files_of(directory):
        with contextlib.suppress(OSError):  # rotated away meanwhile
            total += path.stat().st_size
    return total


def _within(field: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise HvdError("FIELD_INVALID", field=field, value=value, problem="is out of range", remedy=f"use {least} to {most}")
    return value
