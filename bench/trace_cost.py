"""What tracing costs each kind of machine, how fast records travel, and how fast they may come without one being lost."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

from hvapi.record import RECORD_BYTES
from hvctl.sdk import Client

from bench.echo import BLOCK_RECORDS
from bench.figure import Figure, alone, compared, in_turns
from bench.lab import SMALL_MEMORY, Daemon, Lab, counters, end, kernel

# Backend -> test kernel, and crossings that take it some tenths of a second.
MACHINES: Final = {
    "emulation": ("ports.elf", 2_000_000), "trap": ("ports.elf", 100_000), "rewriting": ("ports.elf", 5_000_000),
    "paravirt": ("ports.pv.elf", 1_500_000),
}  # fmt: skip
DELIVERED: Final = 1_500_000
EVEN: Final = 250_000
POINT: Final = "port-out"
NAME: Final = "crossing"
SOCKET: Final = "the same bytes through a unix socket between two Python processes"
# What the guest counts to between two crossings, the slowest first.
GAPS: Final = (16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 0)
# The other end of SOCKET.
_SENDER: Final = """
import socket, sys
data, blocks = bytes(int(sys.argv[2])), int(sys.argv[3])
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen(1)
    print("ready", flush=True)
    connection, _ = server.accept()
    for _ in range(blocks):
        connection.sendall(data)
"""


def measure(lab: Lab) -> Iterator[Figure]:
    lab.say("the cost of tracing")
    less = 10 if lab.quick else 1
    with lab.daemon() as daemon, daemon.client() as client:
        found = {each.name.removeprefix("backends/"): each.available for each in client.list_backends().backends}
        machines = [name for name in MACHINES if found.get(name)]
        for backend in machines:
            lab.say(f"a crossing under {backend}, traced and not")
            count = MACHINES[backend][1] // less
            samples = in_turns(_ways(daemon, client, backend, count), lab.runs(5))
            per_record = median(on - off for on, off in zip(samples["on"], samples["off"], strict=True)) * 1e9
            yield compared(
                f"a crossing under {backend}, traced", "s", samples["on"], samples["off"], "the same crossing untraced",
                note=f"{per_record:.0f} ns a record; nobody reads them",
            )  # fmt: skip
        lab.say("records through the daemon, and bytes through a socket")
        samples = in_turns(
            {"stream": lambda: _delivered(daemon, client, DELIVERED // less), "bytes": lambda: _bytes(lab, DELIVERED // BLOCK_RECORDS)}, lab.runs(5)
        )
        yield compared("records through the daemon, not decoded", "records/s", samples["stream"], samples["bytes"], SOCKET)
        for backend in machines:
            lab.say(f"how fast records may come without loss under {backend}")
            rates = [_loss_free(daemon, client, backend, less) for _ in range(lab.runs(3))]
            yield alone(f"records without loss under {backend}", "records/s", rates, note="of a guest that crosses evenly; read, not decoded")


def _ways(daemon: Daemon, client: Client, backend: str, count: int) -> dict[str, Callable[[], float]]:
    return {
        "on": lambda: _run(daemon, client, backend, count, listened=True) / count,
        "off": lambda: _run(daemon, client, backend, count) / count,
    }


def _create(client: Client, backend: str, crossings: int, gap: int) -> str:
    guest = client.run_guest(
        name=NAME, kernel=kernel(MACHINES[backend][0]), backend=backend, memory_bytes=SMALL_MEMORY, append=f"n={crossings} gap={gap}", paused=True
    )  # fmt: skip
    return guest.uid


def _finish(daemon: Daemon, client: Client, uid: str) -> float:
    """Seconds from the guest's first instruction to its end, as a client sees that."""
    client.wait_guest(name=f"guests/{NAME}", timeout=300)
    seconds = (time.monotonic_ns() - counters(daemon.directory(uid)).first_instruction_ns) / 1e9
    client.delete_guest(name=f"guests/{NAME}")
    return seconds


def _run(daemon: Daemon, client: Client, backend: str, crossings: int, *, listened: bool = False) -> float:
    """listened: records are written, and a viewer that stands still does not disturb."""
    uid = _create(client, backend, crossings, 0)
    with contextlib.ExitStack() as stack:
        if listened:
            blocks = stack.enter_context(client.stream_trace(names=[f"guests/{NAME}"], reasons=[POINT]))
            next(iter(blocks))
        client.resume_guest(name=f"guests/{NAME}")
        return _finish(daemon, client, uid)


def _stream(client: Client, backend: str, crossings: int, gap: int) -> tuple[int, int, float, str]:
    """Records that came, records lost, seconds from the first block to the last, the guest's uid."""
    uid = _create(client, backend, crossings, gap)
    records = lost = 0
    first = last = time.perf_counter()
    for block in client.stream_trace(names=[f"guests/{NAME}"], reasons=[POINT]):
        if block.HasField("header"):
            client.resume_guest(name=f"guests/{NAME}")
            first = time.perf_counter()
        records += len(block.records) // RECORD_BYTES
        lost += block.lost
        last = time.perf_counter()
    return records, lost, last - first, uid


def _delivered(daemon: Daemon, client: Client, crossings: int) -> float:
    records, _, seconds, uid = _stream(client, "emulation", crossings, 0)
    _finish(daemon, client, uid)
    return records / seconds


def _loss_free(daemon: Daemon, client: Client, backend: str, less: int) -> float:
    """The highest rate on the ladder at which everything came, by bisection; rungs are factors of two. 0 = on none."""
    best = 0.0
    low, high = 0, len(GAPS)
    while low < high:
        rung = (low + high) // 2
        # Slow ones would take for ever: fewer will do.
        some = max(20_000, EVEN // max(1, GAPS[rung] >> 9)) // less
        records, lost, _, uid = _stream(client, backend, some, GAPS[rung])
        seconds = _finish(daemon, client, uid)
        if lost:
            high = rung
        else:
            low, best = rung + 1, max(best, records / seconds)
    return best


def _bytes(lab: Lab, blocks: int) -> float:
    """Records a second, if these bytes were some."""
    path = lab.new_directory("bytes") / "socket"
    size = BLOCK_RECORDS * RECORD_BYTES
    process = subprocess.Popen([sys.executable, "-c", _SENDER, str(path), str(size), str(blocks)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            began, came = time.perf_counter(), 0
            while data := connection.recv(size):
                came += len(data)
            return came / RECORD_BYTES / (time.perf_counter() - began)
    finally:
        end(process)
