"""The smallest guest: `hvctl run` of a kernel that says hello, to its first instruction and to the end."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Final

from hvctl.sdk import Client

from bench.figure import Figure, alone, compared, in_turns
from bench.lab import NATIVE, SMALL_MEMORY, Daemon, Lab, Unavailable, counters, kernel, qemu

NAME: Final = "smallest"
SECONDS: Final = 60
QEMU_EXIT: Final = 1  # isa-debug-exit: (code << 1) | 1
# What `hvctl run` does, step by step; each ends where the next begins. The peer has no such steps.
STEPS: Final = {
    "created": "hvctl starts, uploads, CreateGuest",
    "machine": "StartGuest to a machine: the runner starts",
    "first": "image loaded, translator up, to the first instruction",
    "ended": "the guest runs, to the record of its end",
    "exit": "hvctl learns of it and ends",
}


def measure(lab: Lab) -> list[Figure]:
    lab.say("smallest guest")
    path = kernel("hello.elf")
    steps: dict[str, list[float]] = {name: [] for name in STEPS}
    first: list[float] = []
    with lab.daemon() as daemon, daemon.client() as client:

        def own() -> tuple[float, float]:
            return _own(daemon, client, path, steps, first)

        output: dict[str, list[float]] = {"hvd": [], "qemu": []}

        def ended_of(who: str, times: tuple[float, float]) -> float:
            output[who].append(times[0])
            return times[1]

        ways = {"hvd": lambda: ended_of("hvd", own())}
        missing = ""
        try:
            program = qemu("i386")
            ways["qemu"] = lambda: ended_of("qemu", _qemu(program, path))
        except Unavailable as problem:
            missing = str(problem)
        samples = in_turns(ways, lab.runs(15))
    runs = len(samples["hvd"])
    first = first[-runs:]
    figures = [alone("smallest guest: hvctl run to the first instruction", "s", first)]
    figures += [alone(f"- {text}", "s", steps[name][-runs:]) for name, text in STEPS.items()]
    if missing:
        return [*figures, alone("smallest guest: hvctl run to exit", "s", samples["hvd"], note=missing)]
    peer = "qemu-system-i386 -kernel, same guest"
    outputs = (output["hvd"][-runs:], output["qemu"][-runs:])
    return [
        *figures,
        compared("smallest guest: to its first output", "s", *outputs, peer),
        compared("smallest guest: hvctl run to exit", "s", samples["hvd"], samples["qemu"], peer),
    ]


def _timed(command: list[str], environment: dict[str, str] | None, exit_code: int) -> tuple[int, float, float]:
    """CLOCK_MONOTONIC at the start in nanoseconds; seconds to the first output and to the exit."""
    started = time.monotonic_ns()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    said = os.read(process.stdout.fileno(), 1)
    output = time.monotonic_ns()
    rest, errors = process.communicate(timeout=SECONDS)
    said += rest
    ended = time.monotonic_ns()
    if process.returncode != exit_code or b"ok" not in said:
        raise Unavailable(f"{command!r} ended with {process.returncode} and said {said!r} {errors!r}")
    return started, (output - started) / 1e9, (ended - started) / 1e9


def _own(
    daemon: Daemon, client: Client, path: Path, steps: dict[str, list[float]], first: list[float]
) -> tuple[float, float]:
    epoch_ns = time.time_ns() - time.monotonic_ns()
    command = daemon.hvctl("run", *NATIVE, "--name", NAME, "--memory", str(SMALL_MEMORY), "--kernel", str(path))
    started, output, ended = _timed(command, daemon.environment, 0)
    guest = client.get_guest(name=f"guests/{NAME}")
    page = counters(daemon.directory(guest.uid))
    moments = {
        "created": guest.create_time.ToNanoseconds() - epoch_ns,
        "machine": page.start_ns,
        "first": page.first_instruction_ns,
        "ended": guest.end_time.ToNanoseconds() - epoch_ns,
        "exit": started + int(ended * 1e9),
    }
    before = started
    for name, moment in moments.items():
        steps[name].append((moment - before) / 1e9)
        before = moment
    first.append((page.first_instruction_ns - started) / 1e9)
    client.delete_guest(name=guest.name)
    return output, ended


def _qemu(program: str, path: Path) -> tuple[float, float]:
    command = [
        program, "-accel", "tcg", "-m", str(SMALL_MEMORY >> 20), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(path),
    ]  # fmt: skip
    return _timed(command, None, QEMU_EXIT)[1:]
