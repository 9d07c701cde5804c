"""Memory: of one guest's runner, of each of many, and of the daemon that has them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hvapi.v1 import guest_pb2

from bench.echo import serving
from bench.figure import Figure, alone, compared
from bench.lab import SMALL_MEMORY, Daemon, Lab, Unavailable, end, kernel, parent, pss, qemu, read_until

GUEST: Final = "ticker.elf"  # 16 MiB, mostly asleep
READY: Final = b"\n"  # it has said its first line
MANY: Final = 50
PEER: Final = "qemu-system-i386 process, same guest"


def measure(lab: Lab) -> list[Figure]:
    many = 10 if lab.quick else MANY
    path = kernel(GUEST)
    with lab.daemon() as daemon:
        lab.say("memory of one runner")
        own, templates = zip(*(_runner_and_template(daemon, path) for _ in range(lab.runs(3))), strict=True)
        lab.say(f"memory of {many} runners and the daemon")
        without = pss(daemon.process.pid)
        each = _runners(daemon, path, many)
        busy = _daemon_with(daemon, path, many)
    with serving(lab.new_directory("echo")) as server:
        empty = pss(server.pid)
    mean = sum(each) / len(each)
    figures: list[Figure] = []
    try:
        program = qemu("i386")
    except Unavailable as missing:
        figures += [alone("memory (PSS) of one runner", "bytes", own, note=str(missing))]
        figures += [alone(f"memory (PSS) of each of {many} runners", "bytes", [mean], note=str(missing))]
    else:
        with _qemus(program, path, 1) as peers:
            beside = [float(pss(peers[0].pid))] * len(own)
        with _qemus(program, path, many) as peers:
            each_beside = sum(pss(peer.pid) for peer in peers) / many
        figures += [compared("memory (PSS) of one runner", "bytes", own, beside, PEER)]
        figures += [compared(f"memory (PSS) of each of {many} runners", "bytes", [mean], [each_beside], PEER)]
    empty_server = "an empty grpc.aio server"
    return [
        *figures,
        alone("- and of the template that it was forked from", "bytes", templates, note="one for all runners"),
        compared("memory (PSS) of the daemon, no guest", "bytes", [without], [empty], empty_server),
        compared(f"memory (PSS) of the daemon, {many} guests", "bytes", [busy], [empty], empty_server),
    ]


@contextlib.contextmanager
def _guests(daemon: Daemon, path: Path, number: int) -> Iterator[list[guest_pb2.Guest]]:
    """So many guests that have all said their first line."""
    with daemon.client() as client:
        guests = [
            client.run_guest(kernel=path, backend="emulation", engine="native", memory_bytes=SMALL_MEMORY)
            for _ in range(number)
        ]
        for guest in guests:
            with client.console(guest.name, replay_bytes=4096, read_only=True, timeout=60) as console:
                next(iter(console))
        yield guests
        for guest in guests:
            client.delete_guest(name=guest.name, force=True)


def _runners(daemon: Daemon, path: Path, number: int) -> list[float]:
    with _guests(daemon, path, number) as guests:
        return [float(pss(guest.host_pid)) for guest in guests]


def _runner_and_template(daemon: Daemon, path: Path) -> tuple[float, float]:
    with _guests(daemon, path, 1) as (guest,):
        return float(pss(guest.host_pid)), float(pss(parent(guest.host_pid)))


def _daemon_with(daemon: Daemon, path: Path, number: int) -> float:
    with _guests(daemon, path, number):
        return float(pss(daemon.process.pid))


@contextlib.contextmanager
def _qemus(program: str, path: Path, number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    command = [
        program, "-accel", "tcg", "-m", str(SMALL_MEMORY >> 20), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(path),
    ]  # fmt: skip
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr)
        for _ in range(number)
    ]
    try:
        for process in started:
            read_until(process, READY)
        yield started
    finally:
        for process in started:
            end(process)
