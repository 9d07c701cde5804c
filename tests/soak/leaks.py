"""What is there of one daemon and its guests on this host: processes, mounts, control groups, namespaces, descriptors, files. Two
censuses that differ show a leak."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from hvd.cell.area import PROGRAM
from hvd.cgroup.hierarchy import hierarchy


def processes_below(directory: Path) -> set[int]:
    """Processes that work in the directory or have it in their command line."""
    found = set()
    where = os.fsencode(directory)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            cwd = os.fsencode(os.readlink(entry / "cwd"))
            if cwd == where or cwd.startswith(where + b"/") or where + b"/" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


def orphan_cells() -> set[int]:
    """Cells whose runner has gone: a cell dies with it."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if os.readlink(entry / "exe").startswith(str(PROGRAM)) and fields[0] != b"Z" and int(fields[1]) == 1:
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def descriptors(pid: int) -> Counter[str]:
    """Of a process, by kind: "socket", "pipe", "anon_inode:[eventfd]", "/memfd:", "file"."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        kinds[
            "/memfd:" if target.startswith("/memfd:") else "file" if target.startswith("/") else target.split(":[")[0]
        ] += 1
    return kinds


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mounts_below(directory: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]


def groups_of(uids: Iterable[str]) -> list[Path]:
    groups = hierarchy()
    return [path for uid in uids for path in groups.directories(uid) if path.exists()]


def named_after(uids: Iterable[str]) -> list[str]:
    """Network namespaces and trace instances with a guest's uid in their names. (Others of the host are other daemons'.)"""
    found = []
    for where in ("/run/netns", "/sys/kernel/tracing/instances"):
        with contextlib.suppress(OSError):
            found += [f"{where}/{name}" for name in os.listdir(where) if any(uid in name for uid in uids)]
    return found


def files_below(*directories: Path) -> set[str]:
    return {str(path) for directory in directories for path in directory.rglob("*")}
