"""Several guests' events in the order of time.

A crossing is recorded when it ends, under the time when it began; and guests are read in turn. So what comes is held back for a while:
until the daemon has said that everything of so long before has been sent. A crossing that took longer comes when it ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from hvctl.sdk.trace import TraceEvent

HOLD_NS = 200_000_000
# Held without waiting for the daemon's word: then half of them go, the oldest first.
MOST_HELD = 50_000


class TraceMerger:
    """add() events as they come; ready() gives those whose turn it is."""

    def __init__(self, hold_ns: int | None = HOLD_NS) -> None:
        """None: as many as can be held; for what ends soon."""
        self._hold_ns = hold_ns
        self._held: list[tuple[int, int, int, TraceEvent]] = []  # time, number, until when everything had been sent when it came
        self._fresh: list[TraceEvent] = []  # came since the daemon said so last
        self._number = 0

    def add(self, events: Iterable[TraceEvent]) -> None:
        self._fresh += events

    def ready(self, settled_ns: int = 0) -> Iterator[TraceEvent]:
        """settled_ns: of the block that came last."""
        if self._hold_ns is not None and settled_ns:
            self._hold(settled_ns)
            horizon = settled_ns - self._hold_ns
            while self._held and self._held[0][0] <= horizon:
                yield heapq.heappop(self._held)[3]
            # No guest makes others wait by a time that never comes.
            if late := sorted(entry for entry in self._held if entry[2] <= horizon):
                self._held = [entry for entry in self._held if entry[2] > horizon]
                heapq.heapify(self._held)
                yield from (entry[3] for entry in late)
        if len(self._held) + len(self._fresh) > MOST_HELD:
            self._hold(settled_ns)
            for _ in range(MOST_HELD // 2):
                yield heapq.heappop(self._held)[3]

    def _hold(self, settled_ns: int) -> None:
        for event in self._fresh:
            heapq.heappush(self._held, (event.time_ns, self._number, settled_ns, event))
            self._number += 1
        self._fresh.clear()

    def rest(self) -> Iterator[TraceEvent]:
        """Nothing more comes."""
        self._hold(0)
        while self._held:
            yield heapq.heappop(self._held)[3]
