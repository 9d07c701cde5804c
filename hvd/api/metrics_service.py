"""hvd.v1.MetricsService: the figures of /metrics over gRPC, and a line per guest again and again."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvapi.v1 import guest_pb2, metrics_pb2, metrics_pb2_grpc
from prometheus_client import Metric, generate_latest

from hvd.backends.usage import Usage
from hvd.errors import HvdError
from hvd.metrics.families import kind_of
from hvd.metrics.meter import Reading
from hvd.metrics.metrics import Metrics, Snapshot
from hvd.trace.points import Kind

LEAST_INTERVAL, DEFAULT_INTERVAL = 0.1, 1.0

# grpc.aio's context; nothing of it is used here.
_Context = Any


class MetricsService(metrics_pb2_grpc.MetricsServiceServicer):
    """Errors are HvdError; the server's interceptor makes a Status of them."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    async def GetMetrics(
        self, request: metrics_pb2.GetMetricsRequest, context: _Context
    ) -> metrics_pb2.GetMetricsResponse:
        snapshot = await self.metrics.snapshot(request.names)
        return await asyncio.to_thread(_response, snapshot, request.as_text)

    async def WatchStats(
        self, request: metrics_pb2.WatchStatsRequest, context: _Context
    ) -> AsyncIterator[metrics_pb2.WatchStatsResponse]:
        interval = _interval(request)
        earlier: dict[str, _Moment] = {}
        first = True
        while True:
            began = time.monotonic()
            readings = await self._readings(request.names, first)
            first = False
            moments = {reading.guest.uid: _Moment.of(reading) for reading in readings}
            response = metrics_pb2.WatchStatsResponse(
                stats=(
                    self._stats(reading, moments[reading.guest.uid], earlier.get(reading.guest.uid))
                    for reading in readings
                )
            )
            response.time.GetCurrentTime()
            yield response
            earlier = moments
            # The pace counts from the reading: a slow reader gets fewer lines, not a backlog.
            await asyncio.sleep(max(0.0, began + interval - time.monotonic()))

    async def _readings(self, names: Collection[str], first: bool) -> list[Reading]:
        """A guest that was named must be there at the start; one that is deleted later merely drops out."""
        if first or not names:
            return await self.metrics.readings(names)
        wanted = {name.removeprefix("guests/") for name in names}
        return [reading for reading in await self.metrics.readings() if reading.guest.name in wanted]

    def _stats(self, reading: Reading, moment: _Moment, earlier: _Moment | None) -> metrics_pb2.GuestStats:
        guest, counters = reading.guest, reading.counters
        by_kind: dict[str, int] = defaultdict(int)
        for number, counter in counters.points.items() if counters else ():
            by_kind[kind_of(self.metrics.points, guest.backend, number)] += counter.count
        stats = metrics_pb2.GuestStats(
            name=f"guests/{guest.name}",
            backend=guest.backend,
            state=guest.state,
            cpu_seconds=reading.cpu.total,
            memory_resident_bytes=reading.resident or 0,
            memory_limit_bytes=reading.memory_limit,
            exits=moment.exits,
            hypercalls=by_kind[Kind.HYPERCALL.label],
            exits_by_kind={kind: count for kind, count in by_kind.items() if count},
        )
        _add_devices(stats, reading)
        if reading.usage is not None:
            _add_usage(stats, reading.usage)
        if earlier is not None and (seconds := moment.time - earlier.time) > 0:
            # A guest that was started anew counts from zero.
            stats.cpu_ratio = max(0.0, moment.cpu - earlier.cpu) / seconds
            stats.exits_per_second = max(0, moment.exits - earlier.exits) / seconds
            for resource, waited in moment.waited.items():
                ratio = (waited - earlier.waited.get(resource, waited)) / seconds
                stats.pressure_ratios[resource] = min(1.0, max(0.0, ratio))
        return stats


def _add_devices(stats: metrics_pb2.GuestStats, reading: Reading) -> None:
    counters, usage = reading.counters, reading.usage
    for disk in counters.disks.values() if counters else ():
        stats.disk_read_bytes += disk["read_bytes"]
        stats.disk_write_bytes += disk["written_bytes"]
    for card in counters.nics.values() if counters else ():
        stats.network_receive_bytes += card["received_bytes"]
        stats.network_transmit_bytes += card["transmitted_bytes"]
    for device in usage.disks.values() if usage else ():
        stats.disk_read_bytes += device.read_bytes
        stats.disk_write_bytes += device.written_bytes
    for interface in usage.networks.values() if usage else ():
        stats.network_receive_bytes += interface.received_bytes
        stats.network_transmit_bytes += interface.transmitted_bytes


def _add_usage(stats: metrics_pb2.GuestStats, usage: Usage) -> None:
    stats.memory_charged_bytes = usage.charged_bytes or 0
    stats.pids, stats.pids_limit = usage.pids or 0, usage.pids_limit
    stats.limit_effects.CopyFrom(guest_pb2.LimitEffects(**dataclasses.asdict(usage.effects)))


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the next line's rates are computed from."""

    time: float
    cpu: float
    exits: int
    waited: Mapping[str, float]  # resource -> seconds

    @classmethod
    def of(cls, reading: Reading) -> _Moment:
        points = reading.counters.points.values() if reading.counters else ()
        waited = {name: each.some for name, each in reading.usage.pressure.items()} if reading.usage else {}
        return cls(time.monotonic(), reading.cpu.total, sum(point.count for point in points), waited)


def _interval(request: metrics_pb2.WatchStatsRequest) -> float:
    if not request.HasField("interval"):
        return DEFAULT_INTERVAL
    seconds = request.interval.seconds + request.interval.nanos / 1e9
    if not LEAST_INTERVAL <= seconds <= 3600:
        raise HvdError(
            "FIELD_INVALID",
            field="interval",
            value=f"{seconds:g} s",
            problem="is out of range",
            remedy=f"use {LEAST_INTERVAL:g} to 3600 s",
        )
    return seconds


def _response(snapshot: Snapshot, as_text: bool) -> metrics_pb2.GetMetricsResponse:
    if as_text:
        return metrics_pb2.GetMetricsResponse(text=generate_latest(snapshot).decode())
    return metrics_pb2.GetMetricsResponse(families=_families(snapshot.families))


def _families(families: Sequence[Metric]) -> list[metrics_pb2.MetricFamily]:
    return [
        metrics_pb2.MetricFamily(
            name=family.name,
            help=family.documentation,
            type=family.type,
            samples=(
                metrics_pb2.MetricSample(name=sample.name, labels=sample.labels, value=sample.value)
                for sample in family.samples
            ),
        )
        for family in families
    ]
