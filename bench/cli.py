"""What a user waits for at the prompt: `hvctl --help` and `hvctl list`."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import Final

from bench.figure import Figure, compared, in_turns
from bench.lab import SMALL_MEMORY, Lab, Unavailable, kernel

GUESTS: Final = 5
MOST_SECONDS: Final = 60.0


def measure(lab: Lab) -> list[Figure]:
    lab.say("hvctl at the prompt")
    with lab.daemon() as daemon, daemon.client() as client:
        for _ in range(GUESTS):
            client.run_guest(
                kernel=kernel("ticker.elf"), backend="emulation", engine="native", memory_bytes=SMALL_MEMORY
            )
        commands = {
            "hvctl --help": daemon.hvctl("--help"),
            "python": [sys.executable, "-c", "pass"],
            "hvctl list": daemon.hvctl("list"),
            "grpc": [sys.executable, "-c", "import grpc"],
        }
        ways = {
            name: lambda command=command: _seconds(command, daemon.environment) for name, command in commands.items()
        }
        samples = in_turns(ways, lab.runs(15))
    return [
        compared("hvctl --help", "s", samples["hvctl --help"], samples["python"], "python -c pass"),
        compared("hvctl list", "s", samples["hvctl list"], samples["grpc"], "python -c 'import grpc'", note=f"{GUESTS} guests"),
    ]  # fmt: skip


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    """Its end is waited for, not asked for now and then: subprocess.run() with a timeout sleeps up to 50 ms between two looks."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        end = os.pidfd_open(process.pid)
        try:
            over, _, _ = select.select([end], [], [], MOST_SECONDS)
            ended = time.perf_counter()
        finally:
            os.close(end)
            if process.poll() is None:
                process.kill()
    if not over or process.returncode:
        raise Unavailable(f"{command!r} ended with {process.returncode}" if over else f"{command!r} does not end")
    return ended - began
