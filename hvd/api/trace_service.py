"""TraceService: crossings as they happen, sessions that go on without a client, counts, and what can be traced."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from hvapi.v1 import trace_pb2, trace_pb2_grpc

from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.lifecycle import GuestLife
from hvd.guests.supervisor import Supervisor
from hvd.guests.trace_sessions import TraceSessions
from hvd.guests.tracing import CountLost, GuestsTrace, message_of, points_of
from hvd.runner import directory as names
from hvd.trace.counters import BUCKET_NS, Counters, PointCounter, read_counters
from hvd.trace.session import TraceSwitch


class TraceService(trace_pb2_grpc.TraceServiceServicer):
    def __init__(self, supervisor: Supervisor, switch: TraceSwitch, sessions: TraceSessions, count_lost: CountLost = lambda *_: None) -> None:
        """count_lost: told the guest's uid, the kind of reader and how many records it missed."""
        self._supervisor = supervisor
        self._switch = switch
        self._sessions = sessions
        self._count_lost = count_lost

    async def StreamTrace(
        self, request: trace_pb2.StreamTraceRequest, context: Any
    ) -> AsyncIterator[trace_pb2.StreamTraceResponse]:
        trace = GuestsTrace(self._supervisor, self._switch, request)
        try:
            await trace.begin()
            yield trace_pb2.StreamTraceResponse(header=trace.header())
            async for block in trace.blocks(self._count_lost, "stream"):
                yield block
        finally:
            trace.close()

    async def StartTrace(self, request: trace_pb2.StartTraceRequest, context: Any) -> trace_pb2.TraceSession:
        return await self._sessions.start(request)

    async def GetTrace(self, request: trace_pb2.GetTraceRequest, context: Any) -> trace_pb2.TraceSession:
        return self._sessions.get(request.name)

    async def ListTraces(self, request: trace_pb2.ListTracesRequest, context: Any) -> trace_pb2.ListTracesResponse:
        return trace_pb2.ListTracesResponse(traces=self._sessions.all())

    async def StopTrace(self, request: trace_pb2.StopTraceRequest, context: Any) -> trace_pb2.TraceSession:
        return await self._sessions.stop(request.name)

    async def DeleteTrace(self, request: trace_pb2.DeleteTraceRequest, context: Any) -> empty_pb2.Empty:
        await self._sessions.delete(request.name, request.allow_missing)
        return empty_pb2.Empty()

    async def ReadTrace(self, request: trace_pb2.ReadTraceRequest, context: Any) -> AsyncIterator[trace_pb2.ReadTraceResponse]:
        async for blocks in self._sessions.read(request.name, request.follow):
            yield trace_pb2.ReadTraceResponse(blocks=blocks)

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
                p50_ns=_percentile(counter, 50),
                p90_ns=_percentile(counter, 90),
                p99_ns=_percentile(counter, 99),
            )
            summary.total = (summary.total + counter.count) & 0xFFFFFFFFFFFFFFFF
        return summary

    async def ListTracePoints(
        self, request: trace_pb2.ListTracePointsRequest, context: Any
    ) -> trace_pb2.ListTracePointsResponse:
        backends = [self._supervisor.backend(request.backend)] if request.backend else self._supervisor.backends.all()
        return trace_pb2.ListTracePointsResponse(
            points=[message_of(point, who) for point, who in points_of(backends).values()]
        )


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


def _percentile(counter: PointCounter, percent: int) -> int:
    """The upper bound of the histogram's bucket in which it lies, or the longest, if that is less."""
    timed = sum(counter.histogram)
    if not timed:
        return 0
    below = 0
    for count, bound in zip(counter.histogram, BUCKET_NS, strict=False):
        below += count
        if below * 100 >= timed * percent:
            return min(bound, counter.max_ns)
    return counter.max_ns
