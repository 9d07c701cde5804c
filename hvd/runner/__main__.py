"""`python -m hvd.runner DIRECTORY [READY-FD [CARDS]]`: runs the machine that DIRECTORY/machine.json describes.

CARDS descriptors behind READY-FD are those of its network cards, in their order (hvd.runner.inheritance).

To READY-FD one JSON line is written: {"ok": true} when the guest runs, else {"error": REASON, "metadata": {..}} from
the table of hvd/errors.py. SIGTERM kills the guest. The process lives on when whoever started it dies.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
from typing import Any

from hvd.board.machine import CreateVcpu
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError
from hvd.runner.directory import EXIT, MACHINE, PID, RUNNER_LOG, ExitRecord, process_identity, read_json, write_json
from hvd.runner.runner import Runner

# Of two processes of hvd the kernel should rather end a guest than the daemon.
OOM_SCORE_ADJUSTMENT = "300"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class ReadyPipe:
    """Where the parent waits for the guest's first instruction."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, error: HvdError | None) -> None:
        if self._fd is None:
            return
        answer: dict[str, Any] = {"ok": True}
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
    keep = 3
    if ready_fd is not None:
        os.closerange(3, ready_fd)
        keep = ready_fd + 1 + cards
        for fd in range(ready_fd, keep):
            os.set_inheritable(fd, False)
    os.closerange(keep, os.sysconf("SC_OPEN_MAX"))
    os.umask(0o077)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def introduce(name: str) -> None:
    """For ps, top and the out-of-memory killer."""
    with contextlib.suppress(OSError):  # nice to have
        with open("/proc/self/comm", "w", encoding="utf-8") as comm:
            comm.write(f"hvd:{name}"[:15])
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(OOM_SCORE_ADJUSTMENT)


def read_spec() -> MachineSpec:
    """Raises HvdError RUNNER_START_FAILED."""
    document = read_json(MACHINE)
    if document is None:
        raise HvdError("RUNNER_START_FAILED", problem=f"{MACHINE} is missing or no JSON", log=RUNNER_LOG)
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


def prepare(ready: ReadyPipe) -> Runner:
    """Raises HvdError when there is no machine to be had."""
    try:
        record = ExitRecord(".")
        spec = read_spec()
        introduce(spec.name)
        write_json(PID, process_identity(os.getpid()))
        if os.path.exists(EXIT):  # whoever began this start has died, and the next one has called it off (hvd/guests/adoption.py)
            raise HvdError("RUNNER_START_FAILED", problem="the start was called off", log=RUNNER_LOG)
        return Runner(spec, find_vcpu(spec.backend), record, ready)
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
