"""A hundred containers at a time: to start, to look at, to stop; what each costs in memory, and what is left afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hvapi.v1 import guest_pb2
from hvctl.sdk import Client

from bench.figure import Figure, alone, compared
from bench.lab import Daemon, Lab, Unavailable, pss

MANY: Final = 100
IN_FLIGHT: Final = 4
LOOKS: Final = 30
# Ends with 3 when it is asked to.
SCRIPT: Final = "trap 'exit 3' TERM; sleep 1000 & wait"
CODE: Final = 3


def measure(lab: Lab, daemon: Daemon, client: Client) -> list[Figure]:
    many = 10 if lab.quick else MANY
    names = [f"crowd-{number}" for number in range(many)]
    _life(client, "crowd-warm")
    before = _size(daemon)
    lab.say(f"{many} containers")
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        began = time.perf_counter()
        guests = list(pool.map(lambda name: _start(client, name), names))
        started = time.perf_counter() - began
        during = _size(daemon)
        monitors = [float(pss(guest.monitor_pid)) for guest in guests]
        inits = [float(pss(guest.host_pid)) for guest in guests]
        figures = _looks(daemon, client, many)
        began = time.perf_counter()
        ends = list(pool.map(lambda name: _stop(client, name), names))
        stopped = time.perf_counter() - began
        list(pool.map(lambda name: client.delete_guest(name=f"guests/{name}"), names))
    wrong = [end for end in ends if (end.reason, end.exit_code) != ("EXITED", CODE)]
    if wrong:
        raise Unavailable(f"{len(wrong)} of {many} did not end with {CODE}: {wrong[0].status_message}")
    after = _size(daemon)
    each = (during[0] - before[0]) / many
    growth = f"daemon: {before[1]} descriptors before, {during[1]} with them, {after[1]} after their deletion"
    return [
        alone(f"{many} containers created and started", "s", [started], note=f"{IN_FLIGHT} at a time, {started / many * 1e3:.0f} ms each"),
        alone(f"{many} containers stopped", "s", [stopped], note=f"{IN_FLIGHT} at a time, SIGTERM; all {many} ended with {CODE}"),
        alone(f"memory (PSS) of the monitor (conmon), {many} of them", "bytes", [sum(monitors) / many]),
        alone("- what the daemon takes besides for each", "bytes", [each]),
        alone("- the container's own first process", "bytes", [sum(inits) / many], note="busybox sh; not hvd's"),
        compared(f"memory (PSS) of the daemon after {many} containers", "bytes", [float(after[0])], [float(before[0])], "before them", note=growth),
        *figures,
    ]  # fmt: skip


def _looks(daemon: Daemon, client: Client, many: int) -> list[Figure]:
    def timed(look: Callable[[], int]) -> list[float]:
        times = []
        for _ in range(LOOKS):
            began = time.perf_counter()
            if look() != many:
                raise Unavailable(f"there should be {many} guests")
            times.append(time.perf_counter() - began)
        return times

    def shell(*words: str) -> list[float]:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            daemon.run_hvctl(*words)
            times.append(time.perf_counter() - began)
        return times

    def stats() -> int:
        with client.watch_stats() as stream:
            return len(next(stream).stats)

    return [
        alone(f"ListGuests, {many} containers", "s", timed(lambda: len(list(client.guests()))), note="p50, by the SDK"),
        alone(f"WatchStats to its first figures, {many} containers", "s", timed(stats), note="p50, by the SDK; reads some 20 files of each"),
        alone(f"hvctl list, {many} containers", "s", shell("list")),
        alone(f"hvctl stats --count 1, {many} containers", "s", shell("stats", "--count", "1")),
    ]  # fmt: skip


def _start(client: Client, name: str) -> guest_pb2.Guest:
    container = guest_pb2.ContainerConfig(command=["sh", "-c", SCRIPT])
    client.create_guest(guest_id=name, guest=guest_pb2.Guest(image="images/box", engine="runc", container=container))
    return client.start_guest(name=f"guests/{name}")


def _stop(client: Client, name: str) -> guest_pb2.Guest:
    client.stop_guest(name=f"guests/{name}")
    return client.wait_guest(name=f"guests/{name}", timeout=60)


def _life(client: Client, name: str) -> None:
    _start(client, name)
    _stop(client, name)
    client.delete_guest(name=f"guests/{name}")


def _size(daemon: Daemon) -> tuple[int, int]:
    """The daemon's memory and open descriptors."""
    pid = daemon.process.pid
    return pss(pid), len(os.listdir(f"/proc/{pid}/fd"))
