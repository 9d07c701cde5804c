"""Guest instruction rate of emulation against bare Unicorn, and what timer interrupts cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.figure import Figure, compared, in_turns
from bench.lab import ROOT, Lab, Unavailable, kernel

SECONDS = 300
BARE: Final = "bare Unicorn without hooks, same code"
UNTIMED: Final = "the same guest without a timer"
# What is computed: words of the command line, rounds.
LOOPS: Final = {"registers": ("", 150_000_000), "memory": ("memory=1 ", 40_000_000)}
TIMERS_HZ: Final = (100, 1000)
_CHECKSUM = re.compile(r"checksum 0x([0-9a-f]+)")


def measure(lab: Lab) -> list[Figure]:
    path = kernel("compute.elf")
    figures = []
    for loop, (words, rounds) in LOOPS.items():
        rounds //= 4 if lab.quick else 1
        figures.append(_rate(lab, path, loop, words, rounds))
    return [*figures, *_timers(lab, path)]


def _rate(lab: Lab, path: Path, loop: str, words: str, rounds: int) -> Figure:
    lab.say(f"instruction rate, loop over {loop}")
    command_line = f"{words}n={rounds}"
    instructions = _instructions(path, words, rounds)
    checksums: set[int] = set()

    def own() -> float:
        run = lab.run_guest(path, command_line)
        checksums.add(_checksum(run.console))
        return instructions / run.seconds

    def bare() -> float:
        answer = _bare(path, command_line)
        # print(format, rounds, memory, checksum)
        checksums.add(answer["stack"][3])
        return float(instructions / answer["seconds"])

    samples = in_turns({"own": own, "bare": bare}, lab.runs(7))
    if len(checksums) != 1:
        raise Unavailable(f"the two did not compute the same: {sorted(map(hex, checksums))}")
    return compared(
        f"instruction rate, loop over {loop}", "instructions/s", samples["own"], samples["bare"], BARE, target=">= 0.9",
        note=f"{instructions / 1e9:.2f}e9 instructions a run",
    )  # fmt: skip


def _instructions(path: Path, words: str, rounds: int) -> int:
    """Of a whole run, extrapolated from two short ones that are counted."""
    few, more = 10_000, 20_000
    least, most = (int(_bare(path, f"{words}n={n}", "--count")["instructions"]) for n in (few, more))
    per_round = (most - least) / (more - few)
    return round(least + (rounds - few) * per_round)


def _bare(path: Path, command_line: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.bare", str(path), command_line, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _checksum(console: str) -> int:
    found = _CHECKSUM.search(console)
    if found is None:
        raise Unavailable(f"the guest said no checksum but {console!r}")
    return int(found[1], 16)


def _timers(lab: Lab, path: Path) -> list[Figure]:
    lab.say("cost of a timer")
    words, rounds = LOOPS["registers"]
    rounds //= 4 if lab.quick else 1
    ticks: dict[str, int] = {}

    def way(name: str, option: str) -> Callable[[], float]:
        def run() -> float:
            done = lab.run_guest(path, f"{words}n={rounds}{option}")
            if option:
                ticks[name] = int(done.console.split(" ticks")[0])
            return done.seconds

        return run

    names = {f"{hz} Hz": f" timer={hz}" for hz in TIMERS_HZ}
    ways = {"without": way("without", "")} | {name: way(name, option) for name, option in names.items()}
    samples = in_turns(ways, lab.runs(7))
    return [
        compared(f"computation under a {name} timer", "s", samples[name], samples["without"], UNTIMED, note=f"{ticks[name]} ticks")
        for name in names
    ]  # fmt: skip
