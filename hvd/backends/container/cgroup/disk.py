"""The disk whose rates a container's limits are about."""

from __future__ import annotations

import os
from pathlib import Path


def disk_of(where: Path, sys: Path = Path("/sys"), mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """ "MAJOR:MINOR" of the whole disk that a file is on: the kernel refuses the number of a partition (block/blk-cgroup.c,
    blkg_conf_open_bdev). One without a disk has the number of its file system."""
    number = os.stat(where).st_dev
    found = f"{os.major(number)}:{os.minor(number)}"
    if os.major(number) == 0:  # no device, as with btrfs, which has a number for each subvolume
        found = _source_of(found, mounts) or found
    device = sys / "dev" / "block" / found
    try:
        if (device / "partition").exists():
            return (device.resolve() / ".." / "dev").read_text("ascii").strip()
    except OSError:
        pass
    return found


def _source_of(number: str, mounts: Path) -> str:
    for line in mounts.read_text("utf-8", "replace").splitlines():
        # proc(5), /proc/PID/mountinfo: ... (3) major:minor ... - (9) type (10) source
        left, _, right = line.partition(" - ")
        source = right.split(" ")[1] if right else ""
        if left.split(" ")[2] == number and source.startswith("/dev/"):
            try:
                device = os.stat(source).st_rdev
            except OSError:
                continue
            return f"{os.major(device)}:{os.minor(device)}"
    return ""
