"""What the paravirtual ABI gains (docs/paravirtualisation.md): the nanobenchmark's operations by its means, beside the other ways and a bare
signal."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Final

from bench.figure import Figure, compared
from bench.lab import Lab, Unavailable, compiled
from bench.nano import OPERATIONS, available, costs, kernel_for

MILLISECONDS: Final = 40
# Row, beside which backend, and the goal.
FIGURES: Final = (
    ("cli", "trap", "<= 0.01"), ("sti-cli", "trap", "<= 0.01"), ("sti-cli", "rewriting", "<= 2"), ("pte-batch", "trap", "<= 0.1"),
    ("pte-batch", "rewriting", ""), ("system-call", "rewriting", "<= 1"), ("system-call", "trap", ""),
    ("program-int", "rewriting", "<= 1"), ("page-fault", "rewriting", "<= 1"),
    ("page-fault", "trap", ""), ("pte-change", "rewriting", "<= 1"), ("context-switch", "rewriting", "<= 1"), ("context-switch", "trap", ""),
    ("in", "trap", ""), ("cr-write", "trap", ""), ("divide-error", "rewriting", ""), ("kernel-compute", "rewriting", "<= 1"),
)  # fmt: skip


def measure(lab: Lab) -> Iterator[Figure]:
    ways = dict(available())
    if not {"paravirt", "trap", "rewriting"} <= ways.keys():
        raise Unavailable("backends paravirt, trap and rewriting do not all run here: `hvctl doctor` says why")
    signals = compiled(lab.new_directory("native"), "signals", "-O2")
    append = f"ms={MILLISECONDS // (8 if lab.quick else 1)}"
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in ("paravirt", "trap", "rewriting")}
    bare: list[float] = []
    for turn in range(-1, lab.runs(5)):  # the first turn warms up
        lab.say(f"paravirt, turn {turn + 1}")
        for name, runs in samples.items():
            found = costs(lab.run_guest(kernel_for(name), append, name, ways[name]).console)
            runs += [found] if turn >= 0 else []
        done = subprocess.run([str(signals), "signal"], capture_output=True, text=True, timeout=120, check=True)
        picoseconds = next(int(words[1]) for line in done.stdout.splitlines() if (words := line.split())[0] == "signal")
        bare += [picoseconds * 1e-12] if turn >= 0 else []
    null = [run["hypercall"] for run in samples["paravirt"]]
    signal = "a bare signal and its return"
    yield compared("paravirt: a null hypercall", "us", null, bare, signal, target="<= 0.5", note="an exit of /dev/kvm is not measured")
    for row, beside, target in FIGURES:
        own, theirs = ([run[row] for run in samples[name]] for name in ("paravirt", beside))
        yield compared(f"paravirt: {OPERATIONS[row]}", "us", own, theirs, f"the same guest under {beside}", target=target)
