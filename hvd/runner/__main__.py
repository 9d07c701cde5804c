"""`python -m hvd.runner DIRECTORY [READY-FD [CARDS]]`: runs the machine that DIRECTORY/machine.json describes.

CARDS descriptors behind READY-FD are those of its network cards, in their order (hvd.runner.inheritance).

To READY-FD one JSON line is written: {"ok": true, "state": RUNNING or PAUSED} when the guest runs, else {"error": REASON, "metadata": {..}} from
the table of hvd/errors.py. SIGTERM kills the guest. The process lives on when whoever started it dies.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from hvd.board import firmware
from hvd.board.machine import CreateVcpu, Machine
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError
from hvd.jail import inputs, namespaces, user
from hvd.jail.enter import CELL, PERFMON, Jail, enter, prepare_jail
from hvd.runner import ahead
from hvd.runner.directory import (
    EXIT,
    JAIL,
    MACHINE,
    PID,
    PROTOCOL,
    PROTOCOL_OLDEST,
    RUNNER_LOG,
    ExitRecord,
    own_pid,
    process_identity,
    read_json,
    write_json,
)
from hvd.runner.runner import Runner

# Of two processes of hvd the kernel should rather end a guest than the daemon.
OOM_SCORE_ADJUSTMENT = "300"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class ReadyPipe:
    """Where the parent waits for the guest's first instruction."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, error: HvdError | None, state: str = "") -> None:
        if self._fd is None:
            return
        answer: dict[str, Any] = {"ok": True, "state": state}
        if error is not None:
            answer = {"error": error.reason, "metadata": error.metadata}
        with contextlib.suppress(BrokenPipeError):  # the parent has gone; the guest stays
            os.write(self._fd, json.dumps(answer).encode() + b"\n")
        os.close(self._fd)
        self._fd = None


def detach(ready_fd: int | None, cards: int) -> None:
    """A process of its own: session, descriptors, signals."""
    with contextlib.suppress(PermissionError):  # it leads a group already
        os.setsid()
    kept = {0, 1, 2, *ahead.descriptors()}
    if ready_fd is not None:
        for fd in range(ready_fd, ready_fd + 1 + cards):
            os.set_inheritable(fd, False)
            kept.add(fd)
    kept |= namespaces.descriptors()
    for before, after in pairwise((*sorted(kept), os.sysconf("SC_OPEN_MAX"))):
        os.closerange(before + 1, after)
    os.umask(0o077)
    # Process 1 of a namespace gets no signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def introduce(name: str) -> None:
    """For ps, top and the out-of-memory killer."""
    with contextlib.suppress(OSError):  # nice to have
        with open("/proc/self/comm", "w", encoding="utf-8") as comm:
            comm.write(f"hvd:{name}"[:15])
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(OOM_SCORE_ADJUSTMENT)


def read_document() -> dict[str, Any]:
    """Raises HvdError RUNNER_START_FAILED."""
    document = read_json(MACHINE)
    if document is None:
        raise HvdError("RUNNER_START_FAILED", problem=f"{MACHINE} is missing or no JSON", log=RUNNER_LOG)
    return document


def read_spec(document: dict[str, Any]) -> MachineSpec:
    """Raises HvdError RUNNER_START_FAILED."""
    try:
        return MachineSpec.of(document)
    except TypeError as error:
        raise HvdError("RUNNER_START_FAILED", problem=f"{MACHINE}: {error}", log=RUNNER_LOG) from error


def find_vcpu(backend: str) -> CreateVcpu:
    """`create` of hvd.backends.BACKEND.vcpu. Raises HvdError BACKEND_UNAVAILABLE."""
    try:
        module = importlib.import_module(f"hvd.backends.{backend}.vcpu")
    except ImportError as error:
        raise HvdError("BACKEND_UNAVAILABLE", backend=backend, problem=str(error), remedy="run `make setup`") from error
    create: CreateVcpu = module.create
    return create


@functools.cache
def preload(backend: str) -> None:
    """Once, in the template or here: everything that a runner would import and load, even what it needs only once
    somebody talks to it. Raises HvdError BACKEND_UNAVAILABLE."""
    importlib.import_module("hvd.runner.control")
    importlib.import_module("hvd.runner.census")
    prepare_jail()
    create = find_vcpu(backend)
    load = getattr(sys.modules[create.__module__], "preload", None)
    if load is not None:
        load()


def lock_in(document: dict[str, Any], spec: MachineSpec, create_vcpu: CreateVcpu, machine: Machine) -> None:
    """From here on only what is open, and what is the guest's own. Raises HvdError RUNNER_START_FAILED."""
    if JAIL not in document:
        ahead.settle(machine, None)
        namespaces.drop()
        return
    preload(spec.backend)  # what it loads lies outside
    inputs.hold(path for path in (spec.kernel, spec.initrd, spec.snapshot) if path)
    jail = Jail.of(document[JAIL])
    child = ahead.settle(machine, jail.user)  # goes into the jail meanwhile
    if jail.user is not None:
        user.give(Path("."), jail.user)  # what was made here so far
    kept: frozenset[int] = getattr(sys.modules[create_vcpu.__module__], "KEPT_CAPABILITIES", CELL)
    if spec.engine == "breakpoint":
        kept |= {PERFMON}
    roms = [str(path) for path in firmware.directories()] if spec.boot != "kernel" else []
    enter(jail, kept if os.geteuid() == 0 else frozenset(), roms, child=child)


def prepare(ready: ReadyPipe) -> Runner:
    """Raises HvdError when there is no machine to be had."""
    try:
        record = ExitRecord(".")
        document = read_document()
        spec = read_spec(document)
        runner, ram = ahead.take(spec)  # first of all: what takes longest goes on meanwhile
        introduce(spec.name)
        write_json(PID, process_identity(own_pid()) | {"protocol": [PROTOCOL_OLDEST, PROTOCOL]})
        if os.path.exists(EXIT):  # whoever began this start has died, and the next one has called it off (hvd/guests/adoption.py)
            raise HvdError("RUNNER_START_FAILED", problem="the start was called off", log=RUNNER_LOG)
        create_vcpu = find_vcpu(spec.backend)
        runner = runner or Runner(spec, create_vcpu, ram)
        runner.begin(spec, record, ready, ram.ahead)
        lock_in(document, spec, create_vcpu, runner.machine)
        return runner
    except OSError as error:
        if error.errno in DISK_FULL:
            raise HvdError("DISK_FULL", directory=os.getcwd(), what=error.filename or "the guest's files") from error
        raise HvdError("RUNNER_START_FAILED", problem=str(error), log=RUNNER_LOG) from error


def main(arguments: list[str]) -> int:
    ready_fd = int(arguments[1]) if len(arguments) > 1 else None
    detach(ready_fd, int(arguments[2]) if len(arguments) > 2 else 0)
    os.chdir(arguments[0])
    ready = ReadyPipe(ready_fd)
    try:
        runner = prepare(ready)
    except HvdError as error:
        print(error, file=sys.stderr)
        ready(error)
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: runner.post(runner.kill))
    code = 0
    try:
        runner.run()
    except Exception as error:  # noqa: BLE001  a bug, or sockets that cannot be made: the log has it, the daemon sees LOST
        ready(HvdError("RUNNER_START_FAILED", problem=repr(error), log=RUNNER_LOG))
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stderr.flush()
    # The vcpu thread may still be inside the guest: nothing is left to be torn down in order.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
