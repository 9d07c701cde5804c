"""What a debugger does to a machine: it stops it, lets it go on, steps, and sets what stops it. In the vcpu thread.

A guest that a debugger has stopped is PAUSED: its clock stands, and only the debugger lets it go on. For others it stays
PAUSED while the debugger steps. When the debugger leaves, its breakpoints go with it, and the guest goes on, unless it was
paused when the debugger came and was never let go.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from hvapi.record import Record

from hvd.board.machine import Machine
from hvd.board.vcpu import DebugCause, Exit, Watchpoint
from hvd.errors import HvdError

MOST_WATCHED_BYTES = 1 << 20
ADDRESS_MASK = (1 << 64) - 1


class Why(enum.Enum):
    """Why the guest stands."""

    ATTACHED = 0
    STEP = 1
    BREAKPOINT = 2
    WATCHPOINT = 3
    INTERRUPT = 4  # the debugger asked for it
    PAUSED = 5  # somebody else paused the guest


@dataclass(frozen=True, slots=True)
class Stop:
    """address: of a breakpoint or of the watched access."""

    why: Why
    address: int = 0
    watchpoint: Watchpoint | None = None


class Debugger:
    """The one debugger of a machine, from attach() to detach()."""

    def __init__(self, machine: Machine, on_stop: Callable[[Stop], None]) -> None:
        """on_stop: the guest that went on stands again."""
        self.machine = machine
        self.breakpoints: set[int] = set()
        self.watchpoints: set[Watchpoint] = set()
        self.stop = Stop(Why.ATTACHED)
        self.running = False
        self._on_stop = on_stop
        self._stepping = False
        self._was_paused = False

    def attach(self) -> None:
        """Stops the guest. Raises HvdError DEBUGGER_ATTACHED, CAPABILITY_MISSING."""
        machine = self.machine
        if machine.debugger is not None:
            raise HvdError(
                "DEBUGGER_ATTACHED",
                name=machine.spec.name,
                problem="a guest has one debugger at a time",
                remedy="end the other one (`detach` in gdb) and repeat",
            )
        machine.vcpu.fpu()  # a vcpu that cannot be debugged says so
        self._was_paused = machine.state == "PAUSED"
        machine.pause()
        machine.board.tap(True)
        machine.set_debugger(self)

    def detach(self) -> None:
        """No error when the machine has ended or another debugger is there."""
        machine = self.machine
        if machine.debugger is not self:
            return
        machine.set_debugger(None)
        machine.board.tap(False)
        self.breakpoints.clear()
        self.watchpoints.clear()
        if machine.end is None:
            machine.vcpu.set_debug(frozenset(), frozenset(), step=False)
            if not self._was_paused:
                machine.go_on()

    def go(self, step: bool) -> None:
        """Let the guest go on, or execute one instruction; on_stop tells when it stands again."""
        if self.running or self.machine.debugger is not self:
            return
        self._was_paused = False
        self._stepping = step
        self._set(step)
        self.running = True
        self.machine.board.tapped()
        self.machine.go_on(as_paused=step)

    def interrupt(self) -> None:
        """Stop the guest; nothing happens when it stands."""
        self._stopped(Stop(Why.INTERRUPT))

    def crossings(self) -> tuple[list[Record], int]:
        """What was crossed since go(), as HotBoard.tapped()."""
        return self.machine.board.tapped()

    @property
    def stepped(self) -> bool:
        """Was the last go() a step?"""
        return self._stepping

    def insert(self, breakpoint_: int | Watchpoint) -> bool:
        """A linear address, or a range of them. False: no room for more."""
        if isinstance(breakpoint_, int):
            if len(self.breakpoints) >= self.machine.vcpu.most_breakpoints:
                return False
            self.breakpoints.add(breakpoint_)
            return True
        if len(self.watchpoints) >= self.machine.vcpu.most_watchpoints or not 1 <= breakpoint_.length <= MOST_WATCHED_BYTES:
            return False
        if breakpoint_.address + breakpoint_.length - 1 > ADDRESS_MASK:
            return False
        self.watchpoints.add(breakpoint_)
        return True

    def remove(self, breakpoint_: int | Watchpoint) -> None:
        """No error when it is not there."""
        if isinstance(breakpoint_, int):
            self.breakpoints.discard(breakpoint_)
        else:
            self.watchpoints.discard(breakpoint_)

    def _set(self, step: bool) -> None:
        self.machine.vcpu.set_debug(self.breakpoints, self.watchpoints, step)

    # ---- the machine's side

    def exited(self, exit_: Exit) -> None:
        """run() returned DEBUG."""
        cause = DebugCause(exit_.value)
        watchpoint = None
        if cause is DebugCause.WATCHPOINT:
            hit = (w for w in self.watchpoints if w.address <= exit_.address < w.address + w.length)
            watchpoint = next(hit, None)
        self._stopped(Stop(Why[cause.name], exit_.address, watchpoint))

    def paused(self) -> None:
        """Somebody paused the machine."""
        if self.running:
            self.running = False
            self.stop = Stop(Why.PAUSED)
            self._on_stop(self.stop)

    def check_resume(self) -> None:
        """Somebody wants the machine to go on. Raises HvdError DEBUGGER_ATTACHED when the guest stands for the debugger."""
        if not self.running or self._stepping:
            raise HvdError(
                "DEBUGGER_ATTACHED",
                name=self.machine.spec.name,
                problem="it has stopped the guest",
                remedy="let it go on there (`continue` or `detach` in gdb)",
            )

    def _stopped(self, stop: Stop) -> None:
        if not self.running:
            return
        self.running = False
        self.stop = stop
        self.machine.pause()
        self._on_stop(stop)
