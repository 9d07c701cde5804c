"""The daemon's metrics: everything that counts is told here, everything that shows figures asks here."""

from __future__ import annotations

import asyncio
import functools
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from hvapi.v1 import guest_pb2
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily

from hvd.config import version
from hvd.errors import HvdError
from hvd.guests.events import EventLog
from hvd.guests.model import ALIVE, Guest
from hvd.metrics.crossings import HandlingTimes
from hvd.metrics.families import Points, daemon_families, guest_families
from hvd.metrics.meter import GuestView, Meter, Reading, UsageSource, view_of
from hvd.trace.points import BY_ID

# The guests there are, each with its directory. Called in the event loop.
GuestSource = Callable[[], Iterable[tuple[guest_pb2.Guest, Path]]]
_OPERATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)

# Ends of which no exit record tells: the guest's process was killed, or whatever there was of it is gone.
_UNRECORDED = frozenset({"RUNNER_CRASHED", "RUNNER_OUT_OF_MEMORY", "MONITOR_GONE"})


def _is_lost(guest: guest_pb2.Guest) -> bool:
    return guest.state == Guest.LOST or (guest.state == Guest.FAILED and guest.reason in _UNRECORDED)


class Snapshot:
    """Series at one moment, in the shape that prometheus_client's encoders take."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


class Metrics:
    """guests: where they come from. available: backend -> does it run here. points: trace points of a backend by number.
    core_version: of the C parts. usage: Backend.usage, by the backend's name.
    """

    def __init__(
        self,
        guests: GuestSource,
        available: Callable[[], Mapping[str, bool]] = dict,
        points: Points = lambda backend: BY_ID,
        core_version: str = "",
        usage: UsageSource = lambda backend, directory: None,
    ) -> None:
        self._guests = guests
        self._available = available
        # Asked for each series of each guest, and they never change.
        self.points: Points = functools.cache(points)
        self._build = {"version": version(), "core_version": core_version, "python": platform.python_version()}
        self._meter = Meter(usage)
        self._handling = HandlingTimes()
        self._own = CollectorRegistry(auto_describe=True)
        # The daemon's own process, by the names that every exporter has for them: process_cpu_seconds_total, ...
        ProcessCollector(registry=self._own)
        self._operations = Histogram(
            "hvd_operation_duration_seconds",
            "Duration of API calls; of a stream, until its end.",
            ["method", "code"],
            registry=self._own,
            buckets=_OPERATION_BUCKETS,
        )
        # Looking a series up costs more than counting in it; methods and codes are few.
        self._operation = functools.cache(self._operations.labels)
        self._adopted = self._counter("hvd_guests_adopted", "Guests found running at the daemon's start.", "backend")
        self._lost = self._counter(
            "hvd_guests_lost", "Guests whose process was gone without an exit record.", "backend"
        )
        self._trace_lost: dict[str, dict[str, int]] = {}
        # An older reading must not be noted after a newer one, nor a guest's after it was forgotten.
        self._noting = asyncio.Lock()

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self._own)

    # --- what counts ---

    def observe_operation(self, method: str, code: str, seconds: float) -> None:
        """The end of an API call: "/hvd.v1.GuestService/GetGuest", the gRPC code's name."""
        self._operation(method.lstrip("/"), code).observe(seconds)

    def trace_lost(self, uid: str, sink: str, records: int) -> None:
        """A reader of the guest's trace has missed so many records. sink: what kind of reader."""
        sinks = self._trace_lost.setdefault(uid, {})
        sinks[sink] = sinks.get(sink, 0) + records

    def adoption_finished(self) -> None:
        """Call it once, when the daemon has looked after all guests of its predecessor."""
        for guest, _ in self._guests():
            if guest.state in ALIVE:
                self._adopted.labels(guest.backend).inc()
            elif _is_lost(guest):
                self._lost.labels(guest.backend).inc()

    async def follow(self, events: EventLog) -> None:
        """Watches guests come and go until cancelled. Begin it after adoption_finished(), without an await between."""
        states = {guest.uid: guest.state for guest, _ in self._guests()}
        position = events.position
        while True:
            try:
                batch, position = await events.after(position)
            except HvdError:  # more than the log keeps: what was missed is not counted
                position = events.position
                states = {guest.uid: guest.state for guest, _ in self._guests()}
                continue
            for event in batch:
                guest = event.guest
                if event.type == guest_pb2.GuestEvent.DELETED:
                    states.pop(guest.uid, None)
                    # Here, not only when somebody asks for metrics: perhaps nobody ever does.
                    async with self._noting:
                        self._forget_gone()
                    continue
                was, states[guest.uid] = states.get(guest.uid), guest.state
                if guest.state == was:
                    continue
                if _is_lost(guest):
                    self._lost.labels(guest.backend).inc()
                if guest.state not in ALIVE:
                    await self._note_end(guest.uid)

    async def _note_end(self, uid: str) -> None:
        """The last figures of a run, before its page is written anew or removed."""
        ended = [view_of(guest, directory) for guest, directory in self._guests() if guest.uid == uid]
        async with self._noting:
            self._handling.observe(await asyncio.to_thread(self._meter.read, ended))

    # --- what shows ---

    async def readings(self, names: Collection[str] = ()) -> list[Reading]:
        """All guests, or those with these names ("guests/a" or "a"), by name. Raises HvdError GUEST_NOT_FOUND."""
        views = self._views()
        if names:
            wanted = {name.removeprefix("guests/") for name in names}
            for absent in sorted(wanted - {view.name for view in views}):
                raise HvdError("GUEST_NOT_FOUND", name=absent[:100])
            views = [view for view in views if view.name in wanted]
        return await asyncio.to_thread(self._meter.read, views)

    async def snapshot(self, names: Collection[str] = ()) -> Snapshot:
        """All series, or only those of the named guests. Raises HvdError GUEST_NOT_FOUND."""
        async with self._noting:
            self._forget_gone()
            readings = await self.readings(names)
            return await asyncio.to_thread(self._families, readings, bool(names), dict(self._available()))

    def _views(self) -> list[GuestView]:
        return sorted((view_of(*each) for each in self._guests()), key=lambda view: view.name)

    def _forget_gone(self) -> None:
        present = {guest.uid for guest, _ in self._guests()}
        self._meter.forget_all_but(present)
        self._handling.forget_all_but(present)
        for gone in self._trace_lost.keys() - present:
            del self._trace_lost[gone]

    def _families(self, readings: Sequence[Reading], only_guests: bool, available: Mapping[str, bool]) -> Snapshot:
        self._handling.observe(readings)
        families = [*guest_families(readings, self.points), self._trace_lost_family(readings)]
        if not only_guests:
            sums = self._handling.sums()
            families += daemon_families(readings, sums, available, self._build, self.points)
            families += self._own.collect()
        return Snapshot([family for family in families if family.samples])

    def _trace_lost_family(self, readings: Sequence[Reading]) -> Metric:
        lost = CounterMetricFamily(
            "hvd_trace_records_lost",
            "Trace records overwritten before a reader had them, by kind of reader.",
            labels=["guest", "sink"],
        )
        for reading in readings:
            for sink, records in dict(self._trace_lost.get(reading.guest.uid, {})).items():
                lost.add_metric([reading.guest.name, sink], records)
        return lost
