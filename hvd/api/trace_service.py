"""TraceService: crossings as they happen, their counts, and what can be traced."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NoReturn

from hvapi.v1 import trace_pb2, trace_pb2_grpc

from hvd.backends.contract import Backend, Capability
from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.lifecycle import GuestLife
from hvd.guests.supervisor import Supervisor
from hvd.runner import directory as names
from hvd.trace.counters import Counters, read_counters
from hvd.trace.points import BY_ID, Point
from hvd.trace.session import Filter, GuestTrace, TraceSwitch

POLL_SECONDS = 0.01
BLOCK_RECORDS = 1000
# Of one guest in a row, so that a busy one does not starve the others of the same stream.
BLOCKS_IN_A_ROW = 8


class TraceService(trace_pb2_grpc.TraceServiceServicer):
    def __init__(
        self, supervisor: Supervisor, switch: TraceSwitch, count_lost: Callable[[str, str, int], None] = lambda *_: None
    ) -> None:
        """count_lost: told the guest's uid, the kind of reader and how many records it missed."""
        self._supervisor = supervisor
        self._switch = switch
        self._count_lost = count_lost

    async def StreamTrace(
        self, request: trace_pb2.StreamTraceRequest, context: Any
    ) -> AsyncIterator[trace_pb2.StreamTraceResponse]:
        lives = self._named(request.names)
        backends = _unique(self._supervisor.backend(life.guest.backend) for life in lives)
        points = _points(backends)
        wanted = Filter(request.kinds, request.reasons, (point for point, _ in points.values()))
        traces: dict[int, GuestTrace] = {}
        # Of a guest that does not run, the next run is waited for.
        first_runs = [life.run + (not _goes_on(life)) for life in lives]
        try:
            for index, life in enumerate(lives):
                traces[index] = GuestTrace(life.directory, wanted, self._switch)
            for life in lives:
                await self._switch.settled(life.directory)
            for trace in traces.values():
                trace.check()
            header = trace_pb2.TraceHeader(
                guests=[life.guest.name for life in lives],
                points=[_message(point, who) for point, who in points.values()],
            )
            header.monotonic_epoch.FromNanoseconds(time.time_ns() - time.monotonic_ns())
            yield trace_pb2.StreamTraceResponse(header=header)
            while traces:
                idle = True
                for index, trace in list(traces.items()):
                    life = lives[index]
                    # Asked before reading: what was recorded before the end is then read.
                    over = life.deleted or (life.run >= first_runs[index] and not _goes_on(life))
                    for _ in range(BLOCKS_IN_A_ROW):
                        records, lost, found = trace.read(BLOCK_RECORDS)
                        if not found:
                            break
                        idle = False
                        if lost:
                            self._count_lost(life.guest.uid, "stream", lost)
                        if records or lost:
                            yield trace_pb2.StreamTraceResponse(guest=index, records=records, lost=lost)
                    else:
                        continue
                    if over:
                        traces.pop(index).close()
                if idle and traces:
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            for trace in traces.values():
                trace.close()

    def _named(self, wanted: Iterable[str]) -> list[GuestLife]:
        """The guests of a stream: those named, whether or not they run, or all that run. Raises HvdError when one of
        them could never give a record, or none is running.
        """
        lives = _unique(self._supervisor.get(name) for name in wanted)
        if not lives:
            lives = [life for life in self._supervisor if life.is_alive and _traces(self._supervisor, life)]
            if not lives:
                raise HvdError(
                    "REQUEST_INVALID",
                    problem="no guest that can be traced is running",
                    remedy="start one, or name guests",
                )
            return lives
        for life in lives:
            if not _traces(self._supervisor, life):
                _explain(self._supervisor.backend(life.guest.backend))
        return lives

    async def SummarizeTrace(self, request: trace_pb2.SummarizeTraceRequest, context: Any) -> trace_pb2.TraceSummary:
        life = self._supervisor.get(request.name)
        counters = _counters(life)
        points = {point.id: point for point in self._supervisor.backend(life.guest.backend).trace_points}
        summary = trace_pb2.TraceSummary()
        for number, counter in sorted(counters.points.items(), key=lambda item: (-item[1].count, item[0])):
            point = points.get(number)
            summary.rows.add(
                kind=point.kind.label if point else "unknown",
                reason=point.name if point else f"point-{number}",
                count=counter.count,
                total_ns=counter.total_ns,
                max_ns=counter.max_ns,
            )
            summary.total = (summary.total + counter.count) & 0xFFFFFFFFFFFFFFFF
        return summary

    async def ListTracePoints(
        self, request: trace_pb2.ListTracePointsRequest, context: Any
    ) -> trace_pb2.ListTracePointsResponse:
        backends = [self._supervisor.backend(request.backend)] if request.backend else self._supervisor.backends.all()
        return trace_pb2.ListTracePointsResponse(
            points=[_message(point, who) for point, who in _points(backends).values()]
        )


def _explain(backend: Backend) -> NoReturn:
    """Raises HvdError: why its guests cannot be traced."""
    if (problem := backend.limitations.get(Capability.TRACE)) is not None:
        raise HvdError("TRACE_UNAVAILABLE", problem=problem, remedy="see docs/containers.md, Tracing")
    raise HvdError("CAPABILITY_MISSING", backend=backend.name, capability=Capability.TRACE.value)


def _goes_on(life: GuestLife) -> bool:
    """Does it run, or will it in a moment?"""
    return life.is_alive or life.restarts


def _traces(supervisor: Supervisor, life: GuestLife) -> bool:
    return Capability.TRACE in supervisor.backend(life.guest.backend).capabilities


def _counters(life: GuestLife) -> Counters:
    """Of the guest's last run. Raises HvdError GUEST_WRONG_STATE when it never ran, COUNTERS_UNREADABLE."""
    try:
        descriptor = os.open(life.directory / names.COUNTERS, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HvdError(
            "GUEST_WRONG_STATE",
            name=life.guest.name,
            state=model.state_name(life.guest),
            verb="trace summary",
            needed="a guest that runs or ran on this boot",
            remedy="start it first",
        ) from None
    try:
        return read_counters(descriptor)
    finally:
        os.close(descriptor)


def _points(backends: Iterable[Backend]) -> dict[tuple[str, int], tuple[Point, list[str]]]:
    """Every point of these backends once, with the backends whose own it is (none = it is everybody's)."""
    found: dict[tuple[str, int], tuple[Point, list[str]]] = {}
    for backend in backends:
        for point in backend.trace_points:
            owners = found.setdefault((point.name, point.id), (point, []))[1]
            if point.id not in BY_ID:
                owners.append(backend.name)
    return found


def _message(point: Point, backends: list[str]) -> trace_pb2.TracePoint:
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
