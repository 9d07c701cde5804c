"""Guests that are no more than the files that metrics read: for tests of them, and for measuring a scrape (bench/scrape.py)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from hvapi.v1 import guest_pb2
from prometheus_client import generate_latest

from hvd.guests.events import EventLog
from hvd.metrics.metrics import Metrics
from hvd.trace import counters

Guest = guest_pb2.Guest


def page(points: dict[int, tuple[int, int, dict[int, int]]], start_ns: int = 1, **header: int) -> bytes:
    """A counters page. points: number -> count, total_ns, histogram by bucket."""
    fields = dict.fromkeys(counters.HEADER_FIELDS, 0) | {"start_ns": start_ns} | header
    data = bytearray(counters.COUNTERS_BYTES)
    counters.HEADER.pack_into(data, 0, counters.MAGIC, counters.VERSION, *fields.values())
    for number, (count, total_ns, histogram) in points.items():
        struct.pack_into("<3Q", data, counters.POINTS_OFFSET + number * 24, count, total_ns, 0)
        for bucket, hits in histogram.items():
            offset = counters.HISTOGRAM_OFFSET + (number * counters.BUCKETS + bucket) * 8
            struct.pack_into("<Q", data, offset, hits)
    return bytes(data)


@dataclass
class Host:
    """As much of a daemon as metrics need."""

    root: Path
    guests: list[Guest] = field(default_factory=list)
    events: EventLog = field(default_factory=EventLog)

    def __post_init__(self) -> None:
        self.metrics = Metrics(
            lambda: [(guest, self.root / guest.uid) for guest in self.guests],
            available=lambda: {"emulation": True, "kvm": False},
            core_version="1.2",
        )

    def add(self, name: str, counters_page: bytes = b"", state: int = Guest.RUNNING, **fields: object) -> Guest:
        guest = Guest(name=f"guests/{name}", uid=f"uid-{name}", backend="emulation", state=state, **fields)  # type: ignore[arg-type]
        guest.machine.memory_bytes = 64 << 20
        (self.root / guest.uid).mkdir()
        self.write(guest, counters_page)
        self.guests.append(guest)
        return guest

    def write(self, guest: Guest, counters_page: bytes) -> None:
        if counters_page:
            (self.root / guest.uid / "counters").write_bytes(counters_page)

    def change(self, guest: Guest, state: int) -> None:
        guest.state = state  # type: ignore[assignment]
        self.events.publish(guest_pb2.GuestEvent.CHANGED, guest, "changed")

    async def series(self, *names: str) -> dict[str, float]:
        """'name{label="value"}' -> value."""
        return series_of(generate_latest(await self.metrics.snapshot(names)).decode())


def series_of(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            assert series not in found, f"{series} is told twice"
            found[series] = float(value)
    return found
