"""Nanobenchmarks (guests/nano.c): what single operations of a kernel cost under each way of executing it, beside QEMU's translator."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from bench.figure import Figure, compared
from bench.lab import SMALL_MEMORY, Lab, Unavailable, kernel, qemu
from hvd.backends import all_backends

# Row of guests/nano.c -> what it is; in their order.
OPERATIONS: Final = {
    "system-call": "system call (int 0x80, iret)",
    "in": "in (port 0x80)",
    "cr-write": "write of CR0",
    "sti-cli": "sti, cli",
    "call-ret": "call, ret",
    "kernel-int": "int n in the kernel, iret",
    "cli": "cli",
    "shadow-fill": "first touch of a mapped page",
    "page-fault": "page fault that maps a page",
    "divide-error": "divide error",
    "pte-change": "page-table change, invlpg, touch",
    "pte-batch": "64 page-table entries written and flushed",
    "context-switch": "context switch (CR3, stack)",
    "hypercall": "a call that does nothing (base hypercall; of the paravirtual ABI)",
    "program-int": "int 0x80 of a program, iret",
    "copy-4k": "copy of 4 KiB",
    "kernel-compute": "computing in the kernel",
    "user-compute": "computing in user mode",
}
# Backends whose guests are IA-32 kernels on the same board, and the engines that are measured.
WAYS: Final = (("emulation", "native"), ("trap", ""), ("rewriting", ""), ("paravirt", ""))
# The same source, built for the paravirtual ABI.
KERNELS: Final = {"paravirt": "nano.pv.elf"}
MILLISECONDS: Final = 40
PEER: Final = "qemu-system-i386 -accel tcg, same guest"
_LINE = re.compile(r"^nano (\S+) (\d+) \d+$", re.MULTILINE)


def measure(lab: Lab) -> Iterator[Figure]:
    path, program = kernel("nano.elf"), qemu("i386")
    append = f"ms={MILLISECONDS // (8 if lab.quick else 1)}"
    ways = list(available())
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in (*dict(ways), PEER)}
    for turn in range(-1, lab.runs(5)):  # the first turn warms up
        lab.say(f"nanobenchmarks, turn {turn + 1}")
        for name, engine in ways:
            found = costs(lab.run_guest(kernel(KERNELS.get(name, "nano.elf")), append, name, engine).console)
            samples[name] += [found] if turn >= 0 else []
        found = under_qemu(program, path, append)
        samples[PEER] += [found] if turn >= 0 else []
    for operation, what in OPERATIONS.items():
        for name, _ in ways:
            own, beside = ([run[operation] for run in samples[side]] for side in (name, PEER))
            yield compared(f"{what}: {name}", "us", own, beside, PEER)


def available() -> Iterator[tuple[str, str]]:
    backends = all_backends()
    for name, engine in WAYS:
        if name in backends and backends[name].probe().available:
            yield name, engine


def costs(console: str, wanted: Collection[str] = OPERATIONS) -> dict[str, float]:
    """Seconds of each operation. Raises Unavailable."""
    found = {name: int(picoseconds) * 1e-12 for name, picoseconds in _LINE.findall(console.replace("\r", ""))}
    if missing := set(wanted) - found.keys():
        raise Unavailable(f"nano.elf did not say {sorted(missing)} but {console[-300:]!r}")
    return found


def under_qemu(program: str, path: Path, append: str) -> dict[str, float]:
    command = [
        program, "-accel", "tcg", "-m", str(SMALL_MEMORY >> 20), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(path), "-append", append,
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False)
    return costs(done.stdout.decode(errors="replace"))
