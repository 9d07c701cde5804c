"""What a trace comes to: counts, times and percentiles of each trace point, and the addresses and call stacks that cause most.

    summary = TraceSummary()
    for event in decoder.decode_all(blocks):
        summary.add(event)
    for row in summary.rows(): ...
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hvctl.sdk.trace import TraceEvent

# Durations kept of each point, a fair sample of all: percentiles of more are estimates.
SAMPLE = 20_000
# Addresses and stacks counted; of a trace with more, those that came first.
MOST_PLACES = 100_000
PERCENTILES = (50, 90, 99)


@dataclass(slots=True)
class PointRow:
    guest: str
    kind: str
    point: str
    count: int = 0
    timed: int = 0
    total_ns: int = 0
    max_ns: int = 0
    sample: list[int] = field(default_factory=list)

    def percentile(self, percent: int) -> int:
        """By nearest rank; 0 when nothing was timed."""
        ordered = sorted(self.sample)
        return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))] if ordered else 0


@dataclass(slots=True)
class PlaceRow:
    """Crossings from one address, or by one call stack (then address is its innermost function's)."""

    guest: str
    address: int
    symbol: str
    stack: tuple[tuple[int, str], ...]
    count: int = 0
    total_ns: int = 0
    points: dict[str, int] = field(default_factory=dict)


class TraceSummary:
    """add() every event, in any order."""

    def __init__(self) -> None:
        self.records = 0
        self.lost: dict[str, int] = {}
        self.first_ns: int | None = None
        self.last_ns = 0
        self._points: dict[tuple[str, str], PointRow] = {}
        self._addresses: dict[tuple[str, int], PlaceRow] = {}
        self._stacks: dict[tuple[str, int, tuple[int, ...]], PlaceRow] = {}
        self._random = random.Random(0)  # the same trace has the same summary

    def add(self, event: TraceEvent) -> None:
        if event.lost:
            self.lost[event.guest] = self.lost.get(event.guest, 0) + event.lost
            return
        self.records += 1
        time_ns, duration = event.time_ns, event.duration_ns
        self.first_ns = time_ns if self.first_ns is None else min(self.first_ns, time_ns)
        self.last_ns = max(self.last_ns, time_ns + (duration or 0))
        row = self._points.get((event.guest, event.name))
        if row is None:
            row = self._points[event.guest, event.name] = PointRow(event.guest, event.kind, event.name)
        row.count += 1
        if duration is not None:
            row.timed += 1
            row.total_ns += duration
            row.max_ns = max(row.max_ns, duration)
            if len(row.sample) < SAMPLE:
                row.sample.append(duration)
            elif (at := self._random.randrange(row.timed)) < SAMPLE:
                row.sample[at] = duration
        if event.rip:
            self._place(self._addresses, (event.guest, event.rip), event, ())
        if event.stack:
            self._place(self._stacks, (event.guest, event.rip, event.stack), event, event.stack)

    def _place(self, places: dict[Any, PlaceRow], key: Any, event: TraceEvent, stack: tuple[int, ...]) -> None:
        place = places.get(key)
        if place is None:
            if len(places) >= MOST_PLACES:
                return
            named = tuple((address, event.symbols.get(address, "")) for address in stack)
            place = places[key] = PlaceRow(event.guest, event.rip, event.symbol, named)
        place.count += 1
        place.total_ns += event.duration_ns or 0
        place.points[event.name] = place.points.get(event.name, 0) + 1

    @property
    def seconds(self) -> float:
        """From the first crossing's beginning to the last one's end."""
        return (self.last_ns - self.first_ns) / 1e9 if self.first_ns is not None else 0.0

    def rows(self) -> list[PointRow]:
        """Those that took most time first."""
        return sorted(self._points.values(), key=lambda row: (-row.total_ns, -row.count, row.guest, row.point))

    def addresses(self, most: int = 10) -> list[PlaceRow]:
        """Those with most crossings first."""
        return sorted(self._addresses.values(), key=lambda place: (-place.count, -place.total_ns))[:most]

    def stacks(self, most: int = 10) -> list[PlaceRow]:
        """Those with most crossings first."""
        return sorted(self._stacks.values(), key=lambda place: (-place.count, -place.total_ns))[:most]

    def document(self, most: int = 10) -> dict[str, Any]:
        """For JSON."""
        return {
            "records": self.records,
            "lost": self.lost,
            "seconds": self.seconds,
            "points": [
                {"guest": row.guest, "kind": row.kind, "point": row.point, "count": row.count, "total_ns": row.total_ns, "max_ns": row.max_ns}
                | {f"p{percent}_ns": row.percentile(percent) for percent in PERCENTILES}
                for row in self.rows()
            ],
            "addresses": list(_documents(self.addresses(most))),
            "stacks": [
                place | {"stack": [{"address": address, "symbol": symbol} for address, symbol in row.stack]}
                for place, row in zip(_documents(self.stacks(most)), self.stacks(most), strict=True)
            ],
        }


def _documents(places: list[PlaceRow]) -> Iterator[dict[str, Any]]:
    for place in places:
        yield {
            "guest": place.guest, "address": place.address, "symbol": place.symbol, "count": place.count, "total_ns": place.total_ns,
            "points": place.points,
        }  # fmt: skip
