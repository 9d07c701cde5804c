"""How long a new daemon needs to adopt so many guests of a daemon that was killed; every one of them is found running."""

from __future__ import annotations

import json
import subprocess
import tempfile
from statistics import median
from typing import Any, Final

from bench.figure import Figure
from bench.lab import START_SECONDS, Daemon, Lab, Unavailable, kernel

GUESTS: Final = (1, 10, 50, 100)
MEMORY: Final = 4 << 20
PEER: Final = "one guest"


def measure(lab: Lab) -> list[Figure]:
    figures = []
    one: list[float] = []
    for guests in GUESTS[:2] if lab.quick else GUESTS:
        lab.say(f"adoption of {guests} guests")
        seconds = _restarts(lab, guests)
        one = one or seconds
        figures.append(
            Figure(
                f"adoption of {guests} guest{'s' if guests > 1 else ''} after kill -9 of the daemon", "s", median(seconds), len(seconds),
                PEER, median(one), median(seconds) / median(one), min(seconds) / max(one), max(seconds) / min(one),
                note="from the daemon's own log; all found running as before", samples={"hvd": seconds, "one": one},
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
    arguments: Any = daemon.process.args
    with tempfile.TemporaryFile() as log:
        processes.append(subprocess.Popen([*arguments, "--log-format", "json"], stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        with daemon.client() as client:
            if not client.wait_ready(START_SECONDS):
                raise Unavailable("the daemon does not come up again")
            after = {guest.name: guest.host_pid for guest in client.guests() if guest.state == guest.RUNNING}
        log.seek(0)
        lines = [json.loads(line) for line in log.read().splitlines() if line.startswith(b"{")]
    if after != before:
        raise Unavailable(f"{len(after)} of {len(before)} guests were adopted")
    return float(next(line["seconds"] for line in lines if line["event"] == "guests adopted"))
