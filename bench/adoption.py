"""How long a new daemon needs until it serves, with so many guests of a daemon that was killed; every one of them is found running."""

from __future__ import annotations

import subprocess
import time
from statistics import median
from typing import Final

from bench.figure import Figure
from bench.lab import START_SECONDS, Daemon, Lab, Unavailable, kernel

GUESTS: Final = (1, 10, 50, 100)
MEMORY: Final = 4 << 20
PEER: Final = "the same daemon without guests"


def measure(lab: Lab) -> list[Figure]:
    figures = []
    alone: list[float] = []
    for guests in (0, *(GUESTS[:2] if lab.quick else GUESTS)):
        lab.say(f"adoption of {guests} guests")
        seconds = _restarts(lab, guests)
        if not guests:
            alone = seconds
            continue
        figures.append(
            Figure(
                f"from the daemon's start to serving, {guests} guest{'s' if guests > 1 else ''} adopted", "s", median(seconds), len(seconds),
                PEER, median(alone), median(seconds) / median(alone), min(seconds) / max(alone), max(seconds) / min(alone),
                note="all found running, after kill -9", samples={"hvd": seconds, "alone": alone},
            )
        )  # fmt: skip
    return figures


def _restarts(lab: Lab, guests: int) -> list[float]:
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with lab.daemon() as daemon:
            with daemon.client() as client:
                for number in range(guests):
                    client.run_guest(name=f"g{number}", kernel=kernel("echo.elf"), backend="emulation", memory_bytes=MEMORY)
                before = {guest.name: guest.host_pid for guest in client.guests()}
            processes.append(daemon.process)
            return [_restart(daemon, processes, before) for _ in range(lab.runs(5))]
    finally:
        for process in processes[1:]:
            process.terminate()
            process.wait(START_SECONDS)


def _restart(daemon: Daemon, processes: list[subprocess.Popen[bytes]], before: dict[str, int]) -> float:
    processes[-1].kill()
    processes[-1].wait(START_SECONDS)
    began = time.monotonic()
    processes.append(subprocess.Popen(daemon.process.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    with daemon.client() as client:
        if not client.wait_ready(START_SECONDS):
            raise Unavailable("the daemon does not come up again")
        seconds = time.monotonic() - began
        after = {guest.name: guest.host_pid for guest in client.guests() if guest.state == guest.RUNNING}
    if after != before:
        raise Unavailable(f"{len(after)} of {len(before)} guests were adopted")
    return seconds
