"""Trap and emulate: native code beside the same code without a hypervisor, and its two dear things beside what they are made of."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hvctl.compare.kernels import KernelNatively
from hvctl.compare.workloads import KERNEL_NATIVE

from bench.figure import Figure, compared, in_turns
from bench.lab import Lab, Unavailable, compiled, kernel
from bench.nano import OPERATIONS, available, costs

MILLISECONDS: Final = 200
NATIVE: Final = "ms=20"  # of each of its rows; the process is interrupted less
_LINE = re.compile(r"^(\S+) (\d+) \d+$", re.MULTILINE)


def measure(lab: Lab) -> Iterator[Figure]:
    if "trap" not in dict(available()):
        raise Unavailable("backend trap does not run here: `hvctl doctor` says why")
    path = kernel("nano.elf")
    directory = lab.new_directory("native")
    bare = KernelNatively(kernel(KERNEL_NATIVE))
    signals = compiled(directory, "signals", "-O2")
    share = 8 if lab.quick else 1
    lab.say("trap: computing, traps and shadows beside the bare ones")

    def guest(row: str, backend: str = "trap", engine: str = "") -> float:
        append = f"ms={MILLISECONDS // share} only={list(OPERATIONS).index(row)}"
        return costs(lab.run_guest(path, append, backend, engine).console, (row,))[row]

    def native(program: Path, row: str) -> float:
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, check=True)
        return int(dict(_LINE.findall(done.stdout))[row]) * 1e-12

    def rates(row: str) -> tuple[list[float], list[float], list[float]]:
        samples = in_turns(
            {
                "own": lambda: 1 / guest(row),
                "bare": lambda: 1 / bare.run(NATIVE).costs[row].seconds,
                "emulation": lambda: 1 / guest(row, "emulation", "native"),
            },
            lab.runs(7),
        )
        return samples["own"], samples["bare"], samples["emulation"]

    for row, where in (("user-compute", "user mode"), ("kernel-compute", "the kernel")):
        own, natively, emulated = rates(row)
        yield compared(f"trap: computing in {where}", "turns/s", own, natively, "the same code in a process of the host", target=">= 0.95")
        yield compared(f"trap: computing in {where}, beside emulation", "turns/s", own, emulated, "backend emulation", target=">= 10")
    for row, what, bare_row, peer in (
        ("cli", "a trapped cli", "signal", "a bare signal and its return"),
        ("shadow-fill", "a shadow fill", "fill", "a bare fault, mmap of a page and return"),
    ):
        pair = in_turns({"own": lambda row=row: guest(row), "bare": lambda row=bare_row: native(signals, row)}, lab.runs(7))  # type: ignore[misc]
        yield compared(f"trap: {what}", "us", pair["own"], pair["bare"], peer, target="<= 1.5")
