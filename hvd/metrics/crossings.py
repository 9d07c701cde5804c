"""How long crossings took to handle, over all guests: a histogram per backend and reason, without a guest label.

It must not shrink when a guest is deleted or starts anew, so what guests of the past had counted is kept as a sum.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from hvd.metrics.meter import Reading
from hvd.trace.counters import BUCKETS, PointCounter
from hvd.trace.points import BY_ID, Kind

# Their duration is the time until something happened to the guest, not the time that handling them took.
_NOT_HANDLED = frozenset(point.id for point in BY_ID.values() if point.kind is Kind.HALT)

# Backend and trace point.
Key = tuple[str, int]


@dataclass(slots=True)
class Handling:
    """Timed crossings of one kind."""

    total_ns: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)  # not cumulative

    def add(self, counter: PointCounter) -> None:
        self.total_ns += counter.total_ns
        self.buckets = [have + more for have, more in zip(self.buckets, counter.histogram, strict=True)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """The last reading of one run of a guest."""

    backend: str
    start_ns: int
    points: dict[int, PointCounter]


class HandlingTimes:
    """Sums over guests, present and past. Thread-safe."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._past: dict[Key, Handling] = {}
        self._lock = threading.Lock()

    def observe(self, readings: Iterable[Reading]) -> None:
        """Take note of guests. One whose page was begun anew has started anew."""
        with self._lock:
            for reading in readings:
                if reading.counters is None:
                    continue
                earlier = self._seen.get(reading.guest.uid)
                if earlier is not None and earlier.start_ns != reading.counters.start_ns:
                    self._retire(earlier)
                self._seen[reading.guest.uid] = _Seen(
                    reading.guest.backend, reading.counters.start_ns, reading.counters.points
                )

    def forget_all_but(self, uids: set[str]) -> None:
        """The other guests are gone: add them to the past."""
        with self._lock:
            for uid in self._seen.keys() - uids:
                self._retire(self._seen.pop(uid))

    def sums(self) -> dict[Key, Handling]:
        """Every pair of backend and trace point that was ever timed."""
        with self._lock:
            sums = {key: Handling(past.total_ns, past.buckets) for key, past in self._past.items()}
            for seen in self._seen.values():
                _add(sums, seen)
            return sums

    def _retire(self, seen: _Seen) -> None:
        _add(self._past, seen)


def _add(sums: dict[Key, Handling], seen: _Seen) -> None:
    for point, counter in seen.points.items():
        if point not in _NOT_HANDLED and any(counter.histogram):
            sums.setdefault((seen.backend, point), Handling()).add(counter)
