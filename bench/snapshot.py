"""Snapshot and restore beside a plain copy of as many bytes: from memory to the same file system and back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from hvctl.sdk import Client

from bench.figure import Figure, compared, in_turns
from bench.lab import MIB, NATIVE, Daemon, Lab, kernel

IN_USE: Final = (32, 256, 1024)  # MiB of the guest's memory that are not zero
CHUNK: Final = 1 << 20
NAME: Final = "guests/full"
TO_DISK: Final = "dd of as many bytes from memory to that file system, fsync"
FROM_DISK: Final = "dd of as many bytes from that file system to memory"


def measure(lab: Lab) -> Iterator[Figure]:
    with lab.daemon() as daemon, daemon.client() as client:
        for mebibytes in IN_USE[:2] if lab.quick else IN_USE:
            yield from _of(lab, daemon, client, mebibytes)


def _of(lab: Lab, daemon: Daemon, client: Client, mebibytes: int) -> Iterator[Figure]:
    lab.say(f"snapshot and restore of {mebibytes} MiB in use")
    client.run_guest(
        name="full", kernel=kernel("spin.elf"), backend=NATIVE[1], engine=NATIVE[3], memory_bytes=(mebibytes + 16) * MIB
    )
    for chunk in range(mebibytes):
        client.write_memory(name=NAME, address=(8 + chunk) * MIB, data=os.urandom(CHUNK))
    directory = lab.new_directory("copies")  # of the file system on which the daemon's state is
    source, copy = Path(f"/dev/shm/hvd-bench-{os.getpid()}"), directory / "copy"
    source.write_bytes(os.urandom(CHUNK) * mebibytes)
    paused: list[float] = []

    def snapshot() -> float:
        client.delete_snapshot(name=f"{NAME}/snapshots/one", allow_missing=True)
        start = time.perf_counter()
        client.snapshot_guest(name=NAME, snapshot_id="one")
        seconds = time.perf_counter() - start
        paused.append(_paused_seconds(directory.parent))
        return seconds

    def restore() -> float:
        start = time.perf_counter()
        client.restore_guest(snapshot=f"{NAME}/snapshots/one")
        return time.perf_counter() - start

    try:
        runs = lab.runs(7)
        taken = in_turns({"own": snapshot, "peer": lambda: _dd(source, copy, "conv=fsync")}, runs)
        back = in_turns({"own": restore, "peer": lambda: _dd(copy, source)}, runs)
    finally:
        source.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        client.delete_guest(name=NAME, force=True)
    stood = f"the guest stood still for {median(paused) * 1000:.0f} ms"
    yield compared(f"snapshot, {mebibytes} MiB in use", "s", taken["own"], taken["peer"], TO_DISK, note=stood)
    yield compared(f"restore, {mebibytes} MiB in use", "s", back["own"], back["peer"], FROM_DISK, note="ends the guest, starts a runner")


def _dd(source: Path, target: Path, *options: str) -> float:
    start = time.perf_counter()
    subprocess.run(["dd", f"if={source}", f"of={target}", "bs=1M", *options], check=True, capture_output=True, timeout=600)
    return time.perf_counter() - start


def _paused_seconds(lab_directory: Path) -> float:
    """Of the last snapshot, from the daemon's log."""
    newest = max(lab_directory.glob("daemon-*/log"), key=lambda log: log.stat().st_mtime_ns)  # others have measured before
    log = newest.read_text(encoding="utf-8", errors="replace")
    line = [line for line in log.splitlines() if "snapshot taken" in line][-1]
    word = next(word for word in line.split() if "paused_ms=" in word)
    return float(json.loads(word.partition("paused_ms=")[2])) / 1000
