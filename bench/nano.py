"""Nanobenchmarks (guests/nano.c): what single operations of a kernel cost under each way of executing it, beside QEMU's translator."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from hvctl.compare.kernels import KernelNatively, KernelUnderQemu
from hvctl.compare.workloads import KERNEL, KERNEL_NATIVE, KERNELS, NANO
from hvctl.compare.workloads import costs as reported

from bench.figure import Figure, compared
from bench.lab import Lab, Unavailable, kernel, qemu
from hvd.backends import all_backends

# Row of guests/nano.c -> what it is; in their order.
OPERATIONS: Final = {workload.name: workload.title for workload in NANO}
# Backends whose guests are IA-32 kernels on the same board, and the engines that are measured.
WAYS: Final = (("emulation", "native"), ("trap", ""), ("rewriting", ""), ("paravirt", ""))
MILLISECONDS: Final = 40
PEER: Final = "qemu-system-i386 -accel tcg, same guest"


def measure(lab: Lab) -> Iterator[Figure]:
    path, program = kernel(KERNEL), qemu("i386")
    append = f"ms={MILLISECONDS // (8 if lab.quick else 1)}"
    ways = list(available())
    native = KernelNatively(kernel(KERNEL_NATIVE))
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in ("native", *dict(ways), PEER)}
    for turn in range(-1, lab.runs(5)):  # the first turn warms up
        lab.say(f"nanobenchmarks, turn {turn + 1}")
        for name, engine in ways:
            found = costs(lab.run_guest(kernel_for(name), append, name, engine).console)
            samples[name] += [found] if turn >= 0 else []
        found = {name: cost.seconds for name, cost in native.run(append).costs.items()}
        samples["native"] += [found] if turn >= 0 else []
        found = under_qemu(program, path, append)
        samples[PEER] += [found] if turn >= 0 else []
    for workload in NANO:
        natively = all(workload.name in run for run in samples["native"])
        for name in (*(["native"] if natively else []), *dict(ways)):
            own, beside = ([run[workload.name] for run in samples[side]] for side in (name, PEER))
            yield compared(f"{workload.title}: {name}", "us", own, beside, PEER, note=workload.natively if name == "native" else "")


def kernel_for(backend: str) -> Path:
    """The same source, as it is built for a backend. Raises Unavailable."""
    return kernel(KERNELS.get(backend, (KERNEL,))[0])


def available() -> Iterator[tuple[str, str]]:
    backends = all_backends()
    for name, engine in WAYS:
        if name in backends and backends[name].probe().available:
            yield name, engine


def costs(console: str, wanted: Collection[str] = OPERATIONS) -> dict[str, float]:
    """Seconds of each operation. Raises Unavailable."""
    found = {name: cost.seconds for name, cost in reported(console).items()}
    if missing := set(wanted) - found.keys():
        raise Unavailable(f"nano.elf did not say {sorted(missing)} but {console[-300:]!r}")
    return found


def under_qemu(program: str, path: Path, append: str) -> dict[str, float]:
    """Raises HvctlError."""
    return {name: cost.seconds for name, cost in KernelUnderQemu(program, path).run(append).costs.items()}
