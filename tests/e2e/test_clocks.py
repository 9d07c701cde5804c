"""A guest's clocks (docs/snapshots.md): they stand together while it is paused, and go on together after a restore, under whatever backend."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import pytest
from real_daemon import SECONDS, RealDaemon, kernel

from hvd.backends.paravirt.backend import BACKEND as PARAVIRT
from hvd.backends.rewriting.backend import BACKEND as REWRITING
from hvd.backends.trap.backend import BACKEND as TRAP
from hvd.cell import process

PM_TIMER_HZ = 3_579_545
TICK_HZ = 100
AWAY_SECONDS = 0.6  # for so long a guest is not there; a clock that went on meanwhile is found by that
RATIO = 0.02
BACKENDS = {"trap": TRAP, "rewriting": REWRITING, "paravirt": PARAVIRT}
LINE = re.compile(rb"clock: (\d+) tsc=0x(\w+):0x(\w+) timer=(\d+) ticks=(\d+) backwards=(\d+) apart=(\d+)\r?\n(?:clock: page=0x(\w+):0x(\w+)\r?\n)?")


class Clocks(NamedTuple):
    """As the guest tells them at one moment, in seconds."""

    tsc: float
    timer: float
    ticks: float
    page: float  # paravirtual time; 0 where there is none


class Guest:
    """clock.elf, and what it tells."""

    def __init__(self, daemon: RealDaemon, name: str, tsc_hz: int, *, paged: bool = False) -> None:
        self.daemon, self.name, self.tsc_hz, self.paged = daemon, name, tsc_hz, paged
        self.first: Clocks | None = None

    def ask(self) -> Clocks:
        seen = b""
        with self.daemon.client() as client, client.console(f"guests/{self.name}", timeout=SECONDS) as console:
            console.write(b"?")
            for output in console:
                seen += output
                if (match := LINE.search(seen)) and bool(match[8]) == self.paged:
                    break
            else:
                pytest.fail(f"no answer: {seen!r}")
        _, high, low, timer, ticks, backwards, apart = match.groups()[:7]
        assert (int(backwards), int(apart)) == (0, 0), "backwards, or another one at CPL 3"
        page = (int(match[8], 16) << 32 | int(match[9], 16)) / 1e9 if self.paged else 0
        return Clocks((int(high, 16) << 32 | int(low, 16)) / self.tsc_hz, int(timer) / PM_TIMER_HZ, int(ticks) / TICK_HZ, page)

    def check(self) -> None:
        """All have gone on as far as the others since the first time."""
        now = self.ask()
        assert now.ticks <= now.timer + AWAY_SECONDS / 4, now  # not more than time for; what was owed at one time comes later
        if self.first is None:
            self.first = now
            return
        gone = Clocks(*(after - before for after, before in zip(now, self.first, strict=True)))
        assert gone.timer > 0
        most = AWAY_SECONDS / 4 + RATIO * gone.timer
        assert abs(gone.tsc - gone.timer) < most, gone
        if self.paged:
            assert abs(gone.page - gone.timer) < most, gone


def _tsc_hz(backend: str) -> int:
    return 10**9 if backend == "emulation" else process.tsc_hz()


def _start(daemon: RealDaemon, backend: str) -> Guest:
    if backend in BACKENDS and not (found := BACKENDS[backend].probe()).available:
        pytest.skip(f"{found.reason}; {found.remedy}")
    name = f"clock-{backend}"
    paged = backend == "paravirt"
    daemon.ok("run", "-d", "--name", name, "--backend", backend, "--kernel", kernel("clock.pv.elf" if paged else "clock.elf"), "--memory", "8M")
    guest = Guest(daemon, name, _tsc_hz(backend), paged=paged)
    guest.check()
    return guest


@pytest.mark.parametrize("backend", ["emulation", *BACKENDS])
def test_clocks_stand_together(daemon: RealDaemon, backend: str) -> None:
    """Paused, and restored where it was."""
    guest = _start(daemon, backend)
    daemon.ok("pause", guest.name)
    time.sleep(AWAY_SECONDS)
    daemon.ok("resume", guest.name)
    guest.check()
    daemon.ok("snapshot", guest.name, "one")
    guest.check()
    time.sleep(AWAY_SECONDS)
    daemon.ok("restore", guest.name, "one")
    guest.check()


def test_clocks_go_on_under_another_backend(daemon: RealDaemon) -> None:
    """From rewriting to emulation and back, twice."""
    guest = _start(daemon, "rewriting")
    daemon.ok("snapshot", guest.name, "0")
    for number, backend in enumerate(("emulation", "rewriting", "emulation", "rewriting")):
        time.sleep(AWAY_SECONDS / 2)
        daemon.ok("restore", guest.name, str(number), "--backend", backend)
        guest.check()
        daemon.ok("snapshot", guest.name, str(number + 1))


def test_a_paused_guest_is_saved_as_it_stands(daemon: RealDaemon) -> None:
    guest = _start(daemon, "rewriting")
    daemon.ok("pause", guest.name)
    time.sleep(AWAY_SECONDS)
    daemon.ok("snapshot", guest.name, "one")
    daemon.ok("restore", guest.name, "one", "--backend", "emulation")
    daemon.ok("resume", guest.name)
    guest.check()
