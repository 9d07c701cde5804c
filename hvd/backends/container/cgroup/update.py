"""Limits of a running container, changed in its control groups.

The files are written, not `RUNTIME update` called: that knows no rates of disks, and says of a refused limit only that it
failed. Documentation/admin-guide/cgroup-v1/{memory,blkio-controller}.rst, cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from hvd.backends.container.cgroup.disk import disk_of
from hvd.backends.container.cgroup.limits import CPU_PERIOD_US
from hvd.backends.container_spec import LimitsSpec
from hvd.cgroup.files import number, table
from hvd.cgroup.hierarchy import Hierarchy
from hvd.errors import HvdError

# Field -> file of version 1, key of io.max of version 2.
_DISK = {
    "disk_read_bytes_per_second": ("blkio.throttle.read_bps_device", "rbps"),
    "disk_write_bytes_per_second": ("blkio.throttle.write_bps_device", "wbps"),
    "disk_read_operations_per_second": ("blkio.throttle.read_iops_device", "riops"),
    "disk_write_operations_per_second": ("blkio.throttle.write_iops_device", "wiops"),
}


def change(found: Hierarchy, uid: str, old: LimitsSpec, new: LimitsSpec, where: Path) -> None:
    """where: a file on the disk whose rates are limited. Raises HvdError LIMIT_BELOW_USE, LIMIT_REFUSED, RUNNER_GONE: then they
    are the old ones."""
    try:
        _change(found, uid, old, new, where)
    except HvdError:
        with contextlib.suppress(HvdError):  # what cannot be taken back was not changed
            _change(found, uid, new, old, where)
        raise


def count_disk(found: Hierarchy, uid: str, limits: LimitsSpec, where: Path) -> None:
    """Version 1 counts what groups read and write from the first rate on that a disk was given (blk-throttle): it is given the one
    that it has, or "none". where: a file on that disk. Nothing is counted on one that cannot have rates, as a tmpfs."""
    if "blkio" in found.version_1:
        with contextlib.suppress(HvdError):
            _rate(found, uid, "disk_read_bytes_per_second", limits.disk_read_bytes_per_second, where)


def _change(found: Hierarchy, uid: str, old: LimitsSpec, new: LimitsSpec, where: Path) -> None:
    # Memory first: it alone may be refused for what the container does.
    if new.memory_bytes != old.memory_bytes:
        _memory(found, uid, new.memory_bytes)
    if new.cpus != old.cpus:
        _cpus(found, uid, new.cpus)
    if new.pids != old.pids:
        _write(found, "pids", uid, "pids", {"pids.max": str(new.pids or "max")})
    for field in _DISK:
        if (rate := getattr(new, field)) != getattr(old, field):
            _rate(found, uid, field, rate, where)


def _memory(found: Hierarchy, uid: str, limit: int) -> None:
    directory = found.directory("memory", uid)
    if "memory" not in found.version_1:
        # The kernel takes any limit and kills until it is kept: asked beforehand what it could not reclaim.
        used = sum(table(directory, "memory.stat").get(name, 0) for name in ("inactive_anon", "active_anon", "unevictable"))
        if 0 < limit < used:
            raise HvdError("LIMIT_BELOW_USE", limit="memory_bytes", value=limit, used=used)
        # As at the start: no swap beyond the limit.
        values = {"memory.swap.max": "0" if limit else "max", "memory.max": str(limit or "max")}
        _write(found, "memory", uid, "memory_bytes", values)
        return
    text = str(limit or -1)
    # Memory with swap must never be less than memory: which of them is first depends on where it goes.
    names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if not limit or limit > number(directory, names[0]):
        names.reverse()
    _write(found, "memory", uid, "memory_bytes", dict.fromkeys(names, text))


def _cpus(found: Hierarchy, uid: str, cpus: float) -> None:
    quota = round(cpus * CPU_PERIOD_US)
    if "cpu" in found.version_1:
        values = {"cpu.cfs_period_us": str(CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota or -1)}
    else:
        values = {"cpu.max": f"{quota or 'max'} {CPU_PERIOD_US}"}
    _write(found, "cpu", uid, "cpus", values)


def _rate(found: Hierarchy, uid: str, field: str, rate: int, where: Path) -> None:
    number_of_it = disk_of(where)
    file, key = _DISK[field]
    if "blkio" in found.version_1:
        _write(found, "blkio", uid, field, {file: f"{number_of_it} {rate}"})  # 0 takes it away
    else:
        _write(found, "io", uid, field, {"io.max": f"{number_of_it} {key}={rate or 'max'}"})


def _write(found: Hierarchy, controller: str, uid: str, limit: str, values: dict[str, str]) -> None:
    directory = found.directory(controller, uid)
    if directory is None:
        raise HvdError("LIMIT_UNAVAILABLE", limit=limit, controller=controller)
    for name, text in values.items():
        # Swap is counted only by kernels that were told to.
        if ("memsw" in name or "swap" in name) and not (directory / name).exists():
            continue
        try:
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if not directory.exists():
                raise HvdError("RUNNER_GONE", problem="the container has ended") from error
            raise HvdError("LIMIT_UNAVAILABLE", limit=limit, controller=controller) from error
        try:
            os.write(descriptor, text.encode("ascii"))
        except OSError as error:
            if controller == "memory" and error.errno == errno.EBUSY:
                used = number(directory, "memory.usage_in_bytes")
                raise HvdError("LIMIT_BELOW_USE", limit=limit, value=text, used=used) from error
            problem = f"{name} = {text}: {error.strerror}"
            raise HvdError("LIMIT_REFUSED", limit=limit, problem=problem) from error
        finally:
            os.close(descriptor)
