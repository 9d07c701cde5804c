"""A whole comparison."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hvctl.compare.budget import FULL, QUICK
from hvctl.compare.collect import Collector, Say
from hvctl.compare.images import GUESTS
from hvctl.compare.workloads import COMMAND, NANO, PROGRAMS, Workload
from hvctl.sdk import Client
from hvctl.sdk.names import image_name

GROUPS: Final[Mapping[str, Sequence[Workload]]] = {"programs": PROGRAMS, "nano": NANO}


def compared(
    client: Client,
    scratch: Path,
    say: Say,
    *,
    quick: bool = False,
    backends: Sequence[str] = (),
    image: str | None = None,
    command: Sequence[str] = (),
    guests: Path | None = None,
) -> dict[str, Any]:
    """The document. Raises HvctlError."""
    began = time.monotonic()
    collector = Collector(client, QUICK if quick else FULL, guests or GUESTS, scratch, say, backends)
    if image:
        collector.command(image_name(image), command)
        groups: Mapping[str, Sequence[Workload]] = {"command": (COMMAND,)}
    else:
        collector.programs()
        collector.kernels()
        groups = GROUPS
    return collector.table.document(
        groups,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        quick=quick,
        cut=collector.budget.cuts,
        command=[*command],
        image=image or "",
        machine=machine(),
    )


def machine() -> dict[str, Any]:
    """Where it was measured."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]}
