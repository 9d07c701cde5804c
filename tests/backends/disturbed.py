"""A side that is disturbed all the time, as a guest is by those who look at it and move it; it must not notice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from stream_guest import SECONDS, Outcome, Program, Side
from stream_kernel import RAM, STREAMS, USER, Paging

from hvd.board.vcpu import CensusCommand, DebugCause, Exit, Watchpoint

PAUSES: Final = (0.0003, 0.001, 0.004)  # seconds
MOST_BREAKPOINTS: Final = 64
LOOKED_AT: Final = 6000  # bytes of the streams' code that may have breakpoints
# After so many stops in a row a debugger has seen enough: with breakpoints in a loop a stream would not end.
MOST_STOPS: Final = 2000


class Disturbed(Side):
    """Rewriting, with a debugger's breakpoints, watchpoints and steps, the census, states that are read, stored and restored,
    and moves to emulation and back. counts: how often each came."""

    def __init__(self, name: str, directory: Path, paging: Paging, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._breakpoints: frozenset[int] = frozenset()
        self._watchpoints: frozenset[Watchpoint] = frozenset()
        self._stops = 0
        self._timer = False
        self._moved = False
        super().__init__(name, directory, paging)
        other = directory / "elsewhere"
        other.mkdir()
        self._elsewhere = Side("emulation", other, paging)
        # Each with its share.
        self._disturbances: dict[Callable[[], None], int] = {
            self._debug: 5, self._take_census: 4, self._save_and_restore: 4, self._look: 4, self._change_memory: 1, self._move: 2,
        }  # fmt: skip

    def close(self) -> None:
        super().close()
        self._elsewhere.close()

    def kick_after(self, timer: int, seconds: float) -> float:
        return self.random.choice(PAUSES)

    def run(self, programs: Sequence[Program], timer: int = 0, seconds: float = SECONDS) -> Outcome:
        self._timer = bool(timer)
        try:
            return super().run(programs, timer, seconds)
        finally:
            self._detach()
            if self._moved:
                self._change_sides()

    def reopen(self) -> None:
        self._breakpoints, self._watchpoints = frozenset(), frozenset()
        if self._moved:
            self._change_sides()
        super().reopen()

    def interrupted(self) -> None:
        (chosen,) = self.random.choices(list(self._disturbances), list(self._disturbances.values()))
        chosen()

    def stopped(self, exit_: Exit) -> bool:
        assert self.vcpu
        cause = DebugCause(exit_.value)
        self.counts[cause.name] += 1
        self._stops += 1
        if self._stops > MOST_STOPS:
            self._detach()
            return True
        step = cause is not DebugCause.STEP or self.random.random() < 0.3
        self.vcpu.set_debug(self._breakpoints, self._watchpoints, step=step)
        return True

    def _detach(self) -> None:
        assert self.vcpu
        self._breakpoints, self._watchpoints, self._stops = frozenset(), frozenset(), 0
        self.vcpu.set_debug(frozenset(), frozenset(), step=False)

    def _debug(self) -> None:
        assert self.vcpu
        if self._breakpoints:
            self._detach()
            return
        count, here = self.random.choice((1, 20, MOST_BREAKPOINTS * 3 // 4)), self.vcpu.registers()["rip"]
        near = {here + self.random.randrange(60) for _ in range(count // 4)}
        self._breakpoints = frozenset(near | {STREAMS + self.random.randrange(LOOKED_AT) for _ in range(count)})
        if self.random.random() < 0.5:
            watched = Watchpoint(USER + self.random.randrange(0x9000), self.random.choice((1, 4, 64)), read=True, write=True)
            self._watchpoints = frozenset({watched})
        self.vcpu.set_debug(self._breakpoints, self._watchpoints, step=False)
        self.counts["debugger"] += 1

    def _take_census(self) -> None:
        if self._moved:
            return
        assert self.vcpu
        command = self.random.choice(list(CensusCommand))
        self.vcpu.rewritten(command)
        self.counts["census"] += 1

    def _save_and_restore(self) -> None:
        assert self.vcpu
        self.vcpu.restore(self.vcpu.save())
        self.vcpu.set_debug(self._breakpoints, self._watchpoints, step=False)
        self.counts["restored"] += 1

    def _look(self) -> None:
        assert self.vcpu
        self.vcpu.registers()
        self.vcpu.set_fpu(self.vcpu.fpu())
        self.counts["looked at"] += 1

    def _change_memory(self) -> None:
        assert self.vcpu
        self.vcpu.memory_changed(0, RAM)

    def _move(self) -> None:
        """Not with a timer, which stays where it is: it is the board's."""
        if self._timer:
            return
        assert self.vcpu
        self._detach()
        state, memory = self.vcpu.save(), self.memory.read(0, RAM)
        self._change_sides()
        self.memory.write(0, memory)
        self.vcpu.memory_changed(0, RAM)
        self.vcpu.restore(state)
        self.board.start_clock()
        self.counts["moved"] += 1

    def _change_sides(self) -> None:
        other = self._elsewhere
        self.vcpu, other.vcpu = other.vcpu, self.vcpu
        self.memory, other.memory = other.memory, self.memory
        self.board, other.board = other.board, self.board
        self._moved = not self._moved
