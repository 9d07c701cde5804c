"""Limits as the OCI runtime takes them (runtime-spec, config-linux.md, "Control groups"), and what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd.backends.container.cgroup.disk import disk_of
from hvd.backends.container_spec import LimitsSpec
from hvd.backends.usage import Effects
from hvd.cgroup.files import number, table
from hvd.cgroup.hierarchy import Hierarchy, hierarchy
from hvd.cgroup.processes import oom_kills
from hvd.errors import HvdError

CPU_PERIOD_US = 100_000
# Which controller each limit needs: on version 1 and on version 2.
_CONTROLLERS = {
    "memory_bytes": ("memory", "memory"),
    "cpus": ("cpu", "cpu"),
    "pids": ("pids", "pids"),
    "disk_read_bytes_per_second": ("blkio", "io"),
    "disk_write_bytes_per_second": ("blkio", "io"),
    "disk_read_operations_per_second": ("blkio", "io"),
    "disk_write_operations_per_second": ("blkio", "io"),
}
_DISK = {
    "disk_read_bytes_per_second": "throttleReadBpsDevice",
    "disk_write_bytes_per_second": "throttleWriteBpsDevice",
    "disk_read_operations_per_second": "throttleReadIOPSDevice",
    "disk_write_operations_per_second": "throttleWriteIOPSDevice",
}


def check(limits: LimitsSpec, found: Hierarchy) -> None:
    """Raises HvdError LIMIT_UNAVAILABLE: one that is asked for needs a controller that this host does not have."""
    for field, (first, second) in _CONTROLLERS.items():
        if getattr(limits, field) and first not in found.version_1 and second not in found.version_2:
            raise HvdError("LIMIT_UNAVAILABLE", limit=field, controller=second)


def counts_swap(found: Hierarchy) -> bool:
    """Kernels that do not have no file to limit it, and a runtime that is told to fails."""
    if "memory" in found.version_1:
        return (found.version_1["memory"] / "memory.memsw.limit_in_bytes").exists()
    return Path("/proc/swaps").exists()


def resources(limits: LimitsSpec, where: Path, groups: Hierarchy | None = None) -> dict[str, Any]:
    """linux.resources. where: a file on the disk whose rates are limited. groups: absent = this host's."""
    found: dict[str, Any] = {}
    if limits.memory_bytes:
        found["memory"] = {"limit": limits.memory_bytes}
        if counts_swap(groups or hierarchy()):
            found["memory"]["swap"] = limits.memory_bytes  # no more of it: a limit that swaps is none
    if limits.cpus:
        found["cpu"] = {"quota": round(limits.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US}
    if limits.pids:
        found["pids"] = {"limit": limits.pids}
    major, minor = map(int, disk_of(where).split(":"))
    block = {
        key: [{"major": major, "minor": minor, "rate": getattr(limits, field)}]
        for field, key in _DISK.items()
        if getattr(limits, field)
    }
    if block:
        found["blockIO"] = block
    return found


def effects(found: Hierarchy, uid: str) -> Effects:
    """Zeroes where the host does not tell."""
    memory, pids, cpu = (found.directory(name, uid) for name in ("memory", "pids", "cpu"))
    hits = number(memory, "memory.failcnt") if "memory" in found.version_1 else table(memory, "memory.events").get("max", 0)
    throttled = table(cpu, "cpu.stat")
    return Effects(
        oom_kills=oom_kills(found, uid),
        memory_limit_hits=hits,
        pids_limit_hits=table(pids, "pids.events").get("max", 0),
        cpu_throttled_periods=throttled.get("nr_throttled", 0),
        # Nanoseconds in version 1, microseconds in version 2.
        cpu_throttled_seconds=throttled.get("throttled_time", 0) / 1e9 or throttled.get("throttled_usec", 0) / 1e6,
    )
