"""What a guest may be after each verb: the state machine of docs/survival.md as a table, and one guest's place in it.

A verb whose daemon died under it may have been done or not: the model then holds every state that is possible, and the next look at
the guest says which it was. A state that is not among them is a failure.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass, field

STOPPED, RUNNING, PAUSED, STOPPING, STARTING, FAILED = "STOPPED", "RUNNING", "PAUSED", "STOPPING", "STARTING", "FAILED"
ENDED = frozenset({STOPPED, FAILED})
ALIVE = frozenset({RUNNING, PAUSED})
WRONG = "GUEST_WRONG_STATE"

# verb -> state before -> state after, or the reason of the refusal
TABLE: dict[str, dict[str, str]] = {
    "start": {STOPPED: RUNNING, FAILED: RUNNING, RUNNING: RUNNING, PAUSED: PAUSED},
    "pause": {STOPPED: WRONG, FAILED: WRONG, RUNNING: PAUSED, PAUSED: PAUSED},
    "resume": {STOPPED: WRONG, FAILED: WRONG, RUNNING: RUNNING, PAUSED: RUNNING},
    "reset": {STOPPED: WRONG, FAILED: WRONG, RUNNING: RUNNING, PAUSED: PAUSED},
    "stop": {STOPPED: STOPPED, FAILED: FAILED, RUNNING: STOPPED, PAUSED: STOPPED},
    "kill": {STOPPED: STOPPED, FAILED: FAILED, RUNNING: STOPPED, PAUSED: STOPPED},
    "snapshot": {STOPPED: WRONG, FAILED: WRONG, RUNNING: RUNNING, PAUSED: PAUSED},
    "restore": {STOPPED: RUNNING, FAILED: RUNNING, RUNNING: RUNNING, PAUSED: RUNNING},
    # kill -9 of its process, by somebody else
    "crash": {STOPPED: STOPPED, FAILED: FAILED, RUNNING: FAILED, PAUSED: FAILED},
}
# What else a verb that was cut short may leave, besides the states before and after.
BETWEEN: dict[str, frozenset[str]] = {
    "start": frozenset({STARTING, FAILED}),
    "restore": frozenset({STARTING, FAILED, STOPPED}),
    "stop": frozenset({STOPPING, RUNNING}),  # a paused guest is resumed to hear that it shall end
}
# Why a guest may have FAILED here: killed by the soak, or a start that was cut short by the daemon's death.
FAILURES = frozenset({"RUNNER_CRASHED", "MONITOR_GONE", "EXECUTION_ERROR", "START_INTERRUPTED", "CONTAINER_FAILED"})
_TICK = re.compile(rb"tick (\d+)\b")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of guest. exit_code: of one that ends by itself. restarts: its policy is ON_FAILURE."""

    backend: str
    program: str
    args: tuple[str, ...] = ()
    exit_code: int | None = None
    restarts: bool = False
    ticks: bool = False

    @property
    def is_container(self) -> bool:
        return self.backend == "container"

    def verbs(self) -> list[str]:
        most = ["start"] * 4 + ["pause", "resume", "stop", "kill", "crash", "delete", "delete-force", "logs"]
        return [*most, "exec", "copy"] if self.is_container else [*most, "reset", "memory", "registers", "snapshot", "restore"]


@dataclass(slots=True)
class Model:
    """One guest, as it must be."""

    name: str
    kind: Kind
    uid: str = ""
    states: set[str] = field(default_factory=lambda: {STOPPED})
    exists: bool | None = True  # None: its creation or deletion was cut short
    # Of its present run, once seen: process and start time, which no death of the daemon may change.
    run: tuple[int, str] | None = None
    snapshots: set[str] = field(default_factory=set)
    gaps: bool = False  # a reset or a restored snapshot made its log jump
    deaths_survived: int = 0

    def expect(self, verb: str) -> dict[str, str]:
        """state that it may be in -> what the verb does then"""
        return {state: TABLE[verb][state] for state in self.states}

    def done(self, verb: str) -> None:
        """It succeeded: from one of the states in which it can."""
        after = {new for new in self.expect(verb).values() if new != WRONG}
        if not after:
            raise AssertionError(f"{self.name}: {verb} succeeded though it was {self.states}")
        if verb in ("start", "restore", "crash", "kill", "stop"):
            self.run = self.run if verb == "start" and self.states <= ALIVE else None
        self.states = after
        self._mortal()

    def refused(self, verb: str, reason: str) -> None:
        if reason != WRONG or (WRONG not in self.expect(verb).values() and self.kind.exit_code is None):
            raise AssertionError(f"{self.name}: {verb} was refused with {reason} though it was {self.states}")
        self.states = {state for state, new in self.expect(verb).items() if new == WRONG} or {STOPPED}

    def cut_short(self, verb: str) -> None:
        """The daemon died under it: done or not, or half."""
        self.states |= {new for new in self.expect(verb).values() if new != WRONG} | BETWEEN.get(verb, frozenset())
        if verb in BETWEEN or verb in ("kill", "crash"):
            self.run = None
        self._mortal()

    def _mortal(self) -> None:
        if self.kind.exit_code is not None and self.states & {RUNNING, STARTING, STOPPING}:
            self.states.add(STOPPED)
        if self.kind.restarts and FAILED in self.states:
            self.states |= {STARTING, RUNNING}
            self.run = None

    def seen(self, state: str, reason: str, exit_code: int, run: tuple[int, str]) -> None:
        """It is looked at. Raises AssertionError when it cannot be so."""
        assert state in self.states, f"{self.name} ({self.kind}) is {state} ({reason}), not one of {sorted(self.states)}"
        if state == FAILED:
            assert reason in FAILURES, f"{self.name}: FAILED with {reason}"
        if state == STOPPED and self.kind.exit_code is not None and reason == "EXITED" and exit_code not in (137, 143):
            assert exit_code == self.kind.exit_code, f"{self.name} ended with {exit_code}, not {self.kind.exit_code}"
        if state in ALIVE:
            assert self.run in (None, run), f"{self.name} runs as {run}, was {self.run}: it did not survive"
            self.run = run
        else:
            self.run = None
        if state in (STOPPING, STARTING):  # on its way
            self.states = {state, STOPPED, FAILED, RUNNING}
        else:
            self.states = {state}
        self._mortal()

    def choose(self, chance: random.Random) -> str:
        verb = chance.choice(self.kind.verbs())
        return verb if verb != "restore" or self.snapshots else "start"

    def check_log(self, log: bytes) -> int:
        """Every tick of each run is there, once and in order. Returns their number."""
        ticks = [int(found) for found in _TICK.findall(log)]
        if not self.gaps:
            jumps = [(a, b) for a, b in itertools.pairwise(ticks) if b not in (a + 1, 0)]
            assert not jumps, f"{self.name}: its log jumps: {jumps[:5]}"
        return len(ticks)
