"""What a million calls leave in the daemon's memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from bench.figure import Figure
from bench.lab import SMALL_MEMORY, Lab, kernel
from bench.rpc import _load

CALLS: Final = int(os.environ.get("BENCH_CALLS") or 1_000_000)
WARM_CALLS: Final = 20_000
CLIENTS: Final = 16


def _resident(pid: int) -> float:
    return float(int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def measure(lab: Lab) -> list[Figure]:
    calls = CALLS // (100 if lab.quick else 1)
    lab.say(f"memory after {calls} calls")
    with lab.daemon(options=("--call-rate", "1000000")) as daemon, daemon.client() as client:
        guest = client.run_guest(kernel=kernel("ticker.elf"), backend="emulation", engine="native", memory_bytes=SMALL_MEMORY)
        asyncio.run(_load(daemon.endpoint, guest.name, CLIENTS, WARM_CALLS // CLIENTS))
        before = _resident(daemon.process.pid)
        asyncio.run(_load(daemon.endpoint, guest.name, CLIENTS, calls // CLIENTS))
        after = _resident(daemon.process.pid)
    grown = (after - before) / (1 << 20)
    return [
        Figure(
            f"daemon's resident memory after {calls:,} calls of {CLIENTS} clients", "bytes", after, 1,
            f"after the first {WARM_CALLS:,}", before, after / before, after / before, after / before, note=f"{grown:+.1f} MiB",
        )
    ]  # fmt: skip
