"""The time that a comparison has, and what becomes of it: so many seconds in all, whatever the machine's load, and what was cut to keep to them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

# The shortest time in which a single step may fail to answer, however little is left.
LEAST_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done, at the most."""

    turns: int
    seconds: float  # in all, without the end: guests and images are deleted after it
    sample: float  # seconds that the operations of one measurement are to take
    least_sample: float  # ... if there is little time
    kernel_ms: int
    boot: float  # seconds that a guest may say nothing while it boots
    doubtful_boot: float  # ... of a kernel that is known not to bear its backend


FULL: Final = Effort(9, 270.0, 0.25, 0.05, 20, 60.0, 12.0)
QUICK: Final = Effort(3, 46.0, 0.06, 0.01, 5, 20.0, 4.0)


class Budget:
    """Counts down. cuts: what was left out, as sentences."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._ends = clock() + seconds
        self.cuts: list[str] = []

    def left(self, share: float = 1.0) -> float:
        """Seconds until so much of all of it is over; negative = it is."""
        return self._ends - (1.0 - share) * self.seconds - self._clock()

    def limit(self, seconds: float, share: float = 1.0) -> float:
        """So many, or as many as there are."""
        return max(LEAST_SECONDS, min(seconds, self.left(share)))

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done within costs nothing: it is done once, and not by a comparison."""
        began = self._clock()
        try:
            yield
        finally:
            self._ends += self._clock() - began

    def sample(self, effort: Effort, measurements: int, overhead: float, share: float) -> float:
        """Seconds for the operations of one of so many measurements, each of which takes `overhead` besides: so that two turns fit."""
        return min(effort.sample, max(effort.least_sample, self.left(share) / (2 * measurements) - overhead))

    def turns(self, most: int, share: float, what: str, said: Callable[[str], None]) -> Iterator[int]:
        """0, 1, ..: as many as fit, by what the longest has taken until then; of the first nothing is known."""
        longest = 0.0
        for turn in range(most):
            if self.left(share) < longest or self.left(share) <= 0:
                self.cuts.append(f"{what}: {turn} of {most} turns")
                said(f"{self.cuts[-1]}, since time is up")
                return
            said(f"{what}, turn {turn + 1} of {most}")
            began = self._clock()
            yield turn
            longest = max(longest, self._clock() - began)
