"""A vcpu without a processor: it returns the exits of a script, then runs nothing until it is kicked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, Exit, ExitReason, Vcpu

Step = Exit | Callable[["ScriptedVcpu"], Exit]


class ScriptedVcpu(Vcpu):
    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.steps = list(steps)
        self.answers: list[int] = []  # what PORT_IN and MMIO_READ were answered
        self.entries: list[EntryState] = []
        self.changed: list[tuple[int, int]] = []
        self.values = dict.fromkeys(("rax", "rbx", "rcx", "rsi", "rip", "cr0", "cr2", "cr3", "cr4", "efer", "cs"), 0)
        self.threads: set[int] = set()
        self.closed = False
        self._kicked = threading.Event()
        self._asked: Exit | None = None

    def create(self, board: HotBoard, memory: GuestMemory, cpuid: Any, engine: str) -> Vcpu:
        """For Machine: this vcpu."""
        return self

    def enter(self, state: EntryState) -> None:
        self.entries.append(state)
        self._asked = None

    def run(self) -> Exit:
        self.threads.add(threading.get_ident())
        if self._asked is not None:
            self.answers.append(self._asked.value)
            self._asked = None
        if self._kicked.is_set() or not self.steps:
            self._kicked.wait()
            self._kicked.clear()
            return Exit(ExitReason.INTERRUPTED)
        step = self.steps.pop(0)
        result = step if isinstance(step, Exit) else step(self)
        if result.reason in (ExitReason.PORT_IN, ExitReason.MMIO_READ):
            self._asked = result
        return result

    def kick(self) -> None:
        assert not self.closed, "a closed vcpu was kicked"
        self._kicked.set()

    def registers(self) -> dict[str, int]:
        return dict(self.values)

    def set_register(self, name: str, value: int) -> None:
        self.values[name] = value

    def inject(self, vector: int) -> None:
        raise AssertionError("nobody injects here")

    def memory_changed(self, address: int, length: int) -> None:
        self.changed.append((address, length))

    def close(self) -> None:
        self.closed = True


def port_in(port: int, size: int = 1) -> Exit:
    return Exit(ExitReason.PORT_IN, port, size, rip=0x1000, start_ns=1)


def port_out(port: int, value: int, size: int = 1, flags: int = 0) -> Exit:
    return Exit(ExitReason.PORT_OUT, port, size, value, rip=0x1000, start_ns=1, flags=flags)
