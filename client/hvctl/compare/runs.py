"""Programs in sessions that are open: each run measured, and what it crossed counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from hvctl.compare.places import LOST, Crossings, Session
from hvctl.compare.result import Table
from hvctl.compare.workloads import Workload, cost
from hvctl.sdk.errors import HvctlError

# Of what a container crosses, more is run: there is more beside the work that is counted with it, the runtime's.
COUNTED_TIMES: Final = 4
# So often it is run, each time with a quarter of the operations, until all of its crossings could be counted.
COUNTING_TRIES: Final = 5
# A measurement is so many runs in a row, of which the program tells the quickest: whatever else the machine does hits some only.
SLICES: Final = 4


class Cannot(Protocol):
    def __call__(self, workloads: Sequence[Workload], place: str, error: HvctlError, /) -> None: ...


class Runs:
    """Programs in the sessions that are open."""

    def __init__(
        self, table: Table, cannot: Cannot, limit: Callable[[], float], sessions: dict[str, Session], program: str, command: Sequence[str] | None
    ) -> None:  # fmt: skip
        """limit: seconds that a run may take now. command: the user's; None = the workloads are the program's."""
        self._table, self._cannot, self._limit = table, cannot, limit
        self.sample = 0.0  # seconds that the operations of one measurement are to take
        self.sessions, self._program, self._command = sessions, program, command
        # What starting any program crosses, which is none of the workload's: from the turn that warms up.
        self._starting: dict[str, Crossings] = {}
        self._costs: dict[tuple[str, str], float] = {}  # seconds of an operation, of the turn that warmed up

    def _words(self, workload: Workload, number: int) -> list[str]:
        if self._command is not None:
            return [self._program, "run", *self._command]
        return [self._program, f"n={max(1, number // SLICES)}", f"s={SLICES}", workload.name]

    def _number(self, workload: Workload, place: str, times: int = 1) -> int:
        """So many operations fill the time of a measurement."""
        cost = self._costs.get((workload.name, place))
        if cost is None:
            return workload.first
        return min(max(int(self.sample * times / cost), workload.first), workload.most)

    def measure(self, turn: int, workload: Workload, place: str) -> None:
        session = self.sessions[place]
        try:
            if place not in self._starting and self._command is None:
                self._starting[place] = self._start(session)
            seconds, count, crossings = self._run(workload, place, session, self._number(workload, place))
            memory = session.usage().memory_bytes
        except HvctlError as error:
            self._cannot((workload,), place, error)
            return
        measured = self._table.of(workload.name, place)
        if not seconds:  # as it may be in a guest when it finds a better clock
            measured.reason = "" if measured.seconds else "the clock there stood still while it ran, and there was no time for another run"
            return
        measured.reason = ""
        if turn < 0:
            self._costs[workload.name, place] = seconds
        if crossings is not None and turn >= 0 and max(measured.seconds, default=0) < 0:  # what crossed while it warmed up is mostly the start's
            measured.crossings, measured.operations = [], 0
        measured.seconds[turn] = seconds
        measured.memory_bytes = max(measured.memory_bytes, memory)
        if crossings is not None:
            measured.crossings.append(crossings)
            measured.operations += count

    def count(self, workloads: Sequence[Workload], place: str, session: Session) -> list[Workload]:
        """The crossings alone. Returns those of which some were lost each time: nothing is told of them. Raises HvctlError."""
        for _ in range(COUNTING_TRIES):
            self._starting[place] = self._start(session)
            if LOST not in self._starting[place]:
                break
        else:
            return list(workloads)
        return [workload for workload in workloads if not self._count(workload, place, session)]

    def _count(self, workload: Workload, place: str, session: Session) -> bool:
        number = self._number(workload, place, COUNTED_TIMES)
        for _ in range(COUNTING_TRIES):
            _, count, crossings = self._run(workload, place, session, number)
            if crossings is None:
                return True
            if LOST not in crossings:
                measured = self._table.of(workload.name, place)
                measured.crossings.append(crossings)
                measured.operations += count
                return True
            number = max(1, number // 4)
        return False

    def _start(self, session: Session) -> Crossings:
        before = session.usage().crossings
        session.run([self._program, "n=1000", "nothing"], self._limit())
        after = session.usage().crossings
        return _less(after, before) if before is not None and after is not None else {}

    def _run(self, workload: Workload, place: str, session: Session, number: int) -> tuple[float, int, Crossings | None]:
        """Seconds of an operation, how many were made, what all of them crossed."""
        before = session.usage().crossings
        found = cost(session.run(self._words(workload, number), self._limit()), workload.name)
        after = session.usage().crossings
        if before is None or after is None:
            return found.seconds, found.operations, None
        return found.seconds, found.operations, _less(_less(after, before), self._starting.get(place, {}))


def _less(after: Crossings, before: Crossings) -> Crossings:
    return {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}
