"""When a runner looks at its guest's console: a guest that waits is shown at once, one that goes on printing now and then."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from hvd.board.spec import MachineSpec
from hvd.runner import runner as module
from hvd.runner.directory import ExitRecord
from hvd.runner.runner import Ram, Runner

THR = 0x3F8
LATE = 60.0


class Console:
    """A runner in the present directory whose vcpu is the test: it writes, and waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = MachineSpec("m", "emulation", "", 1 << 20, "")
        self.runner = Runner(spec, no_vcpu, Ram.of(spec))
        self.runner.begin(spec, ExitRecord("."), lambda error, state="": None, None)
        self.shown = b""
        monkeypatch.setattr(self.runner, "_show", self._show)
        self.runner._drain_console()  # as run() does
        self.write(b"first")
        self.until(b"first")

    def _show(self, data: bytes) -> None:
        self.shown += data

    def write(self, data: bytes) -> None:
        for byte in data:
            self.runner._board.port_out(THR, 1, byte)

    def wait(self) -> None:
        """The guest, with HLT."""
        self.runner._board.console_rest()

    def until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + LATE / 2
        while self.shown != wanted and time.monotonic() < deadline:
            self.runner.post(lambda: None)  # no turn of the runner's waits long
            self.runner._turn()
        assert self.shown == wanted

    def next_look(self) -> float:
        """Seconds from the last one."""
        return self.runner._deadlines[self.runner._drain_console] - self.runner._console_looked


def no_vcpu(board: Any, memory: Any, cpuid: Any, engine: str) -> Any:
    raise AssertionError("nobody runs it")


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "CONSOLE_TRICKLE_SECONDS", LATE)
    return Console(monkeypatch)


def test_a_guest_that_goes_on_is_looked_at_later(console: Console) -> None:
    console.write(b".")
    for _ in range(3):
        console.runner.post(lambda: None)
        console.runner._turn()
    assert console.shown == b"first" and console.next_look() == LATE


def test_a_guest_that_waits_is_shown_though_it_was_looked_at_a_moment_ago(console: Console) -> None:
    for number in range(3):
        before = console.shown
        console.write(b"%d" % number)
        console.wait()
        console.until(before + b"%d" % number)


def test_two_looks_are_not_nearer_than_the_pause(console: Console) -> None:
    console.runner._console_looked = time.monotonic() + 1  # just now, whatever the host does meanwhile
    console.write(b".")
    console.wait()
    console.runner._turn()
    assert console.shown == b"first" and console.next_look() == pytest.approx(module.CONSOLE_PAUSE_SECONDS)


def test_a_flood_is_looked_at_soon(console: Console) -> None:
    flood = os.urandom(module.CONSOLE_TRICKLE)
    console.write(flood)
    console.wait()
    console.until(b"first" + flood)
    assert console.next_look() == pytest.approx(module.CONSOLE_PAUSE_SECONDS)
