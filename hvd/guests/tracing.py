"""The records of several guests as one stream of blocks: what StreamTrace sends and a session writes to its files."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from hvapi.record import FLAG_STACK, RECORD_BYTES
from hvapi.v1 import trace_pb2

from hvd.backends.contract import Backend, Capability
from hvd.errors import HvdError
from hvd.guests.lifecycle import GuestLife
from hvd.guests.supervisor import Supervisor
from hvd.images.symbol_table import SymbolTable, read_symbols
from hvd.trace.filter import Filter
from hvd.trace.points import BY_ID, Point
from hvd.trace.ring import MOST_RECORDS
from hvd.trace.session import GuestTrace, TraceSwitch

POLL_SECONDS = 0.01
BLOCK_RECORDS = 1000
# A stream of several guests that has nothing to send says once more until when it has sent everything.
SETTLE_NS = 250_000_000
# Of one guest in a row, so that a busy one does not starve the others of the same stream.
BLOCKS_IN_A_ROW = 8
# The same of a stream that is being stopped: more than a ring holds.
LAST_BLOCKS = MOST_RECORDS // BLOCK_RECORDS
# Addresses of one guest whose names were told; beyond, they are told again.
MOST_TOLD = 1 << 16
_FLAGS_OFFSET = 18
Block = trace_pb2.StreamTraceResponse
CountLost = Callable[[str, str, int], None]


class GuestsTrace:
    """One stream or session. Must be closed."""

    def __init__(self, supervisor: Supervisor, switch: TraceSwitch, request: trace_pb2.StreamTraceRequest) -> None:
        """Raises HvdError GUEST_NOT_FOUND, REQUEST_INVALID, TRACE_UNAVAILABLE, CAPABILITY_MISSING, FIELD_INVALID, DISK_FULL."""
        self.lives = _named(supervisor, request.names)
        backends = _unique(supervisor.backend(life.guest.backend) for life in self.lives)
        self._switch = switch
        self._points = points_of(backends)
        self._warnings = list(_warnings(request, backends))
        wanted = Filter(
            request.kinds,
            request.reasons,
            (point for point, _ in self._points.values()),
            addresses=[(each.first, each.last) for each in request.addresses],
            pids=request.pids,
            min_duration_ns=request.min_duration.ToNanoseconds(),
            stacks=request.stacks,
        )
        # Of a guest that does not run, the next run is waited for.
        self._first_runs = [life.run + (not _goes_on(life)) for life in self.lives]
        self._symbols = [_Names(supervisor.symbol_files(life.guest)) if request.symbols or request.stacks else None for life in self.lives]
        self._traces: dict[int, GuestTrace] = {}
        try:
            for index, life in enumerate(self.lives):
                self._traces[index] = GuestTrace(life.directory, wanted, switch)
        except BaseException:
            self.close()
            raise

    async def begin(self) -> None:
        """Recording is on when this returns. Raises HvdError TRACE_UNAVAILABLE, DISK_FULL, TRACE_UNREADABLE."""
        for life in self.lives:
            await self._switch.settled(life.directory)
        for trace in self._traces.values():
            trace.check()
        for names in self._symbols:
            if names is not None:
                await names.load()

    def header(self) -> trace_pb2.TraceHeader:
        header = trace_pb2.TraceHeader(
            guests=[life.guest.name for life in self.lives],
            points=[message_of(point, who) for point, who in self._points.values()],
            warnings=self._warnings,
        )
        header.monotonic_epoch.FromNanoseconds(time.time_ns() - time.monotonic_ns())
        return header

    def forget_symbols(self) -> None:
        """Names are told anew: the reader is another."""
        for names in self._symbols:
            if names is not None:
                names.told.clear()

    async def blocks(self, count_lost: CountLost, reader: str, stop: asyncio.Event | None = None) -> AsyncIterator[Block]:
        """Until the last guest has ended or is deleted, or what there was when `stop` was set has been read. count_lost: told uid, reader,
        and how many records were missed. Raises HvdError DISK_FULL, TRACE_UNREADABLE."""
        traces = self._traces
        unsettled = 0  # since when nothing was said of what was sent
        while traces:
            began = time.monotonic_ns()
            idle, last = True, stop is not None and stop.is_set()
            for index, trace in list(traces.items()):
                life = self.lives[index]
                # Asked before reading: what was recorded before the end is then read.
                over = last or life.deleted or (life.run >= self._first_runs[index] and not _goes_on(life))
                for _ in range(LAST_BLOCKS if last else BLOCKS_IN_A_ROW):
                    records, lost, found = trace.read(BLOCK_RECORDS)
                    if not found:
                        break
                    idle = False
                    if lost:
                        count_lost(life.guest.uid, reader, lost)
                    if records or lost:
                        names = self._symbols[index]
                        yield Block(guest=index, records=records, lost=lost, symbols=names.of(records) if names else {})
                else:
                    if not last:
                        continue
                if over:
                    traces.pop(index).close()
            if len(self.lives) > 1 and (not idle or (unsettled and began - unsettled > SETTLE_NS)):
                unsettled = 0 if idle else began
                yield Block(settled_ns=began)
            if idle and traces:
                await asyncio.sleep(POLL_SECONDS)

    def close(self) -> None:
        while self._traces:
            self._traces.popitem()[1].close()


class _Names:
    """Symbols of one guest's addresses, each told once."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._table = SymbolTable([])
        self.told: set[int] = set()

    async def load(self) -> None:
        for path in self._files:
            if table := await asyncio.to_thread(_table_of, path):
                self._table = table
                return

    def of(self, records: bytes) -> dict[int, str]:
        if not self._table or not records:
            return {}
        words = memoryview(records).cast("Q")
        found = set(words[3::8].tolist())  # rip; of a piece of a call stack the first address
        flags = records[_FLAGS_OFFSET::RECORD_BYTES]
        for index, flag in enumerate(flags):
            if flag & FLAG_STACK:
                found.update(words[index * 8 + 4 : index * 8 + 8].tolist())
        fresh = found - self.told
        if not fresh:
            return {}
        if len(self.told) > MOST_TOLD:
            self.told.clear()
        self.told |= fresh
        named = {address: self._table.name_of(address) for address in fresh}
        return {address: name for address, name in named.items() if name}


@functools.lru_cache(maxsize=4)
def _table_of(path: Path) -> SymbolTable:
    """Blobs never change."""
    return read_symbols(path)


def _named(supervisor: Supervisor, wanted: Iterable[str]) -> list[GuestLife]:
    """The guests of a stream: those named, whether or not they run, or all that run. Raises HvdError when one of
    them could never give a record, or none is running.
    """
    lives = _unique(supervisor.get(name) for name in wanted)
    if not lives:
        lives = [life for life in supervisor if life.is_alive and _can_be_traced(supervisor, life)]
        if not lives:
            raise HvdError(
                "REQUEST_INVALID",
                problem="no guest that can be traced is running",
                remedy="start one, or name guests",
            )
        return lives
    for life in lives:
        if not _can_be_traced(supervisor, life):
            _explain(supervisor.backend(life.guest.backend))
    return lives


def _explain(backend: Backend) -> NoReturn:
    """Raises HvdError: why its guests cannot be traced."""
    if (problem := backend.limitations.get(Capability.TRACE)) is not None:
        raise HvdError("TRACE_UNAVAILABLE", problem=problem, remedy="see docs/tracing.md, Containers")
    raise HvdError("CAPABILITY_MISSING", backend=backend.name, capability=Capability.TRACE.value)


def _warnings(request: trace_pb2.StreamTraceRequest, backends: list[Backend]) -> Iterable[str]:
    containers = any(Capability.CONTAINER in backend.capabilities for backend in backends)
    if request.stacks and containers:
        yield "there are no call stacks of containers"
    if request.pids and not containers:
        yield "none of these guests is a container: the choice of processes does nothing"


def _goes_on(life: GuestLife) -> bool:
    """Does it run, or will it in a moment?"""
    return life.is_alive or life.restarts


def _can_be_traced(supervisor: Supervisor, life: GuestLife) -> bool:
    return Capability.TRACE in supervisor.backend(life.guest.backend).capabilities


def points_of(backends: Iterable[Backend]) -> dict[tuple[str, int], tuple[Point, list[str]]]:
    """Every point of these backends once, with the backends whose own it is (none = it is everybody's)."""
    found: dict[tuple[str, int], tuple[Point, list[str]]] = {}
    for backend in backends:
        for point in backend.trace_points:
            owners = found.setdefault((point.name, point.id), (point, []))[1]
            if point.id not in BY_ID:
                owners.append(backend.name)
    return found


def message_of(point: Point, backends: list[str]) -> trace_pb2.TracePoint:
    return trace_pb2.TracePoint(
        id=point.id,
        name=point.name,
        kind=point.kind.label,
        arguments=[trace_pb2.TraceArgument(name=argument.name, format=argument.format) for argument in point.arguments],
        description=point.description,
        backends=backends,
    )


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
