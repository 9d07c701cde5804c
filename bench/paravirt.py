"""What the paravirtual ABI gains (docs/paravirtualisation.md): the nanobenchmark's operations by its means, beside the other ways and a bare
signal."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
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


def _told(program: Path, name: str, *arguments: str) -> float | str:
    """Seconds of what a program of bench/native measures; or why it cannot."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    for line in done.stdout.splitlines():
        if (words := line.split())[0] == name:
            return int(words[1]) * 1e-12
    return done.stderr.strip()[-200:] or f"exit code {done.returncode}"


def measure(lab: Lab) -> Iterator[Figure]:
    ways = dict(available())
    if not {"paravirt", "trap", "rewriting"} <= ways.keys():
        raise Unavailable("backends paravirt, trap and rewriting do not all run here: `hvctl doctor` says why")
    native = lab.new_directory("native")
    signals, kvm_exit = compiled(native, "signals", "-O2"), compiled(native, "kvm_exit", "-O2")
    append = f"ms={MILLISECONDS // (8 if lab.quick else 1)}"
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in ("paravirt", "trap", "rewriting")}
    bare: list[float] = []
    exits: list[float] = []
    why = ""
    for turn in range(-1, lab.runs(5)):  # the first turn warms up
        lab.say(f"paravirt, turn {turn + 1}")
        for name, runs in samples.items():
            found = costs(lab.run_guest(kernel_for(name), append, name, ways[name]).console)
            runs += [found] if turn >= 0 else []
        signal, one_exit = _told(signals, "signal", "signal"), _told(kvm_exit, "kvm-exit")
        if isinstance(signal, str):
            raise Unavailable(f"signals: {signal}")
        why = one_exit if isinstance(one_exit, str) else why
        bare += [signal] if turn >= 0 else []
        exits += [one_exit] if turn >= 0 and isinstance(one_exit, float) else []
    null = [run["hypercall"] for run in samples["paravirt"]]
    what = "paravirt: a null hypercall"
    yield compared(what, "us", null, bare, "a bare signal and its return", target="<= 0.5", note=f"/dev/kvm: {why}" if why else "")
    if len(exits) == len(null):
        hardware = re.search(r"^flags\b.* (vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        note = "" if hardware else "this /dev/kvm has no VT-x or AMD-V below it"
        yield compared(what, "us", null, exits, "an exit of /dev/kvm to its user, and back", note=note)
    for row, beside, target in FIGURES:
        own, theirs = ([run[row] for run in samples[name]] for name in ("paravirt", beside))
        yield compared(f"paravirt: {OPERATIONS[row]}", "us", own, theirs, f"the same guest under {beside}", target=target)
