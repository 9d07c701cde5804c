"""What a user waits for at the prompt: `hvctl --help` and `hvctl list`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Final

from bench.figure import Figure, compared, in_turns
from bench.lab import SMALL_MEMORY, Lab, kernel

GUESTS: Final = 5


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
    began = time.perf_counter()
    subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=60
    )  # fmt: skip
    return time.perf_counter() - began
