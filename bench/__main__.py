"""`python -m bench [NAME...] [--json FILE] [--quick]`: measures and prints a markdown table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from bench import (
    adoption,
    boot,
    cli,
    compute,
    container,
    daemon_memory,
    exit_cost,
    firmware,
    host,
    linux_ops,
    linux_pv,
    memory,
    nano,
    network,
    paravirt,
    rewriting,
    rpc,
    scrape,
    smallest,
    snapshot,
    syscall_trace,
    trace,
    trace_cost,
    trap,
    virtio_blk,
)
from bench.figure import Figure, table
from bench.lab import Lab, Unavailable, lab

FIGURES: Final[dict[str, Callable[[Lab], Iterable[Figure]]]] = {
    "compute": compute.measure,
    "boot": boot.measure,
    "smallest": smallest.measure,
    "memory": memory.measure,
    "rpc": rpc.measure,
    "trace": trace.measure,
    "trace-cost": trace_cost.measure,
    "syscall-trace": syscall_trace.measure,
    "cli": cli.measure,
    "scrape": scrape.measure,
    "firmware": firmware.measure,
    "virtio-blk": virtio_blk.measure,
    "snapshot": snapshot.measure,
    "exit-cost": exit_cost.measure,
    "network": network.measure,
    "trap": trap.measure,
    "nano": nano.measure,
    "rewriting": rewriting.measure,
    "paravirt": paravirt.measure,
    "linux-ops": linux_ops.measure,
    "linux-pv": linux_pv.measure,
    "container": container.measure,
    "adoption": adoption.measure,
    "daemon-memory": daemon_memory.measure,
}


def main() -> int:
    """Exit status 1 when something that was asked for could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(FIGURES)} (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--quick", action="store_true", help="few, short runs: shows that it works, no figures to publish"
    )
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    machine, before = host.line(), host.description()
    figures: list[Figure] = []
    problems: list[str] = []
    with lab(options.quick) as place:
        for name in options.names or FIGURES:
            try:
                for figure in FIGURES[name](place):  # what was measured before a problem counts
                    figures.append(figure)
            except Unavailable as problem:
                problems.append(f"{name}: {problem}")
    print(f"{machine}\n\n{table(figures)}" + ("\n\nA quick run: not for publication." if options.quick else ""))
    for text in problems:
        print(f"\nNot measured: {text}")
    if options.json:
        document = {"machine": before, "figures": [figure.document() for figure in figures], "problems": problems}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
