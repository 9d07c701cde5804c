"""What a container has used: from its control groups, and from its network namespace by way of its init."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from hvd.backends.container.cgroup.limits import effects
from hvd.backends.usage import DiskUsage, NetworkUsage, Pressure, Usage
from hvd.cgroup.files import number, table, text
from hvd.cgroup.hierarchy import Hierarchy, hierarchy

# Version 1 says "none" by a number near the largest: a whole number of pages below 2**63.
_NO_LIMIT = 1 << 62


@functools.cache
def _here() -> Hierarchy:
    """Asked once: the list of mounts grows with the containers."""
    return hierarchy()


def usage(uid: str, init: int, found: Hierarchy | None = None) -> Usage | None:
    """None when it has no control groups (any more). init: its first process."""
    found = found or _here()
    if not any(directory.is_dir() for directory in found.directories(uid)):
        return None
    user, system = _cpu_seconds(found, uid)
    resident, charged, memory_limit = _memory(found, uid)
    pids = found.directory("pids", uid)
    return Usage(
        user_seconds=user,
        system_seconds=system,
        resident_bytes=resident,
        charged_bytes=charged,
        memory_limit_bytes=memory_limit,
        pids=number(pids, "pids.current") if pids is not None else None,
        pids_limit=number(pids, "pids.max"),
        effects=effects(found, uid),
        pressure=_pressure(found.unified_directory(uid)),
        disks=_disks(found, uid),
        networks=_networks(init),
    )


def _cpu_seconds(found: Hierarchy, uid: str) -> tuple[float, float]:
    directory = found.version_1.get("cpuacct")
    if directory is not None:
        group = found.directory("cpuacct", uid)
        return number(group, "cpuacct.usage_user") / 1e9, number(group, "cpuacct.usage_sys") / 1e9
    # There without any controller of version 2.
    times = table(found.unified_directory(uid), "cpu.stat")
    return times.get("user_usec", 0) / 1e6, times.get("system_usec", 0) / 1e6


def _memory(found: Hierarchy, uid: str) -> tuple[int | None, int | None, int]:
    """Resident, charged, limit."""
    group = found.directory("memory", uid)
    if group is None:
        return None, None, 0
    stat = table(group, "memory.stat")
    if "memory" in found.version_1:
        limit = number(group, "memory.limit_in_bytes")
        resident = stat.get("total_rss", 0) + stat.get("total_mapped_file", 0)
        return resident, number(group, "memory.usage_in_bytes"), limit if limit < _NO_LIMIT else 0
    resident = stat.get("anon", 0) + stat.get("file_mapped", 0)
    return resident, number(group, "memory.current"), number(group, "memory.max")


def charged(uid: str) -> tuple[int, int]:
    """What it is charged for memory, and the limit; 0 = none."""
    _, bytes_, limit = _memory(_here(), uid)
    return bytes_ or 0, limit


def _pressure(group: Path | None) -> dict[str, Pressure]:
    """Lines "some avg10=0.00 ... total=MICROSECONDS"; kernels differ in whether cpu has "full"."""
    found = {}
    for resource in ("cpu", "memory", "io"):
        totals = {
            line.split()[0]: int(line.rpartition("total=")[2])
            for line in text(group, f"{resource}.pressure").splitlines()
            if line.rpartition("total=")[2].isdigit()
        }
        if totals:
            found[resource] = Pressure(totals.get("some", 0) / 1e6, totals.get("full", 0) / 1e6)
    return found


def _disks(found: Hierarchy, uid: str) -> dict[str, DiskUsage]:
    rows: dict[str, dict[str, int]] = {}
    if "blkio" in found.version_1:
        group = found.directory("blkio", uid)
        for kind in ("bytes", "ios"):
            name = {"bytes": "blkio.throttle.io_service_bytes", "ios": "blkio.throttle.io_serviced"}[kind]
            for line in text(group, name).splitlines():
                words = line.split()  # "8:0 Read 4096"; at the end "Total 4096"
                if len(words) == 3 and words[1] in ("Read", "Write") and words[2].isdigit():
                    rows.setdefault(words[0], {})[f"{words[1][0].lower()}{kind}"] = int(words[2])
    else:
        for line in text(found.directory("io", uid), "io.stat").splitlines():
            device, *pairs = line.split() or [""]
            values = (pair.partition("=") for pair in pairs)
            rows[device] = {key: int(value) for key, _, value in values if value.isdigit()}
    return {
        _device_name(device): DiskUsage(
            row.get("rbytes", 0), row.get("wbytes", 0), row.get("rios", 0), row.get("wios", 0)
        )
        for device, row in rows.items()
        if any(row.values())
    }


def _device_name(number_of_it: str) -> str:
    """ "vda" of "254:0"; the numbers when there is no such device (any more)."""
    try:
        return Path(os.readlink(f"/sys/dev/block/{number_of_it}")).name
    except OSError:
        return number_of_it


def _networks(init: int) -> dict[str, NetworkUsage]:
    """proc(5), /proc/PID/net/dev. Nothing when its network is the host's: then what went through is not its own alone."""
    try:
        if os.stat(f"/proc/{init}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            return {}
        lines = Path(f"/proc/{init}/net/dev").read_text("ascii").splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        fields = [int(word) for word in rest.split()]
        if name.strip() != "lo" and len(fields) >= 12:
            found[name.strip()] = NetworkUsage(fields[0], fields[1], fields[3], fields[8], fields[9], fields[11])
    return found
