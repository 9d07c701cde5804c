"""A guest that moves from machine to machine by snapshots, in the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hvd.backends.emulation.vcpu import create
from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine, MachineSpec
from hvd.board.memory import GuestMemory
from hvd.errors import HvdError
from hvd.snapshot.machine import save
from hvd.trace.points import BackendId

POLL_SECONDS = 0.001


class Moved(Exception):
    """The guest has left this machine."""


def spec_of(kernel: Path, command_line: str = "", engine: str = "native", memory_bytes: int = 16 << 20) -> MachineSpec:
    return MachineSpec(kernel.stem, "emulation", engine, memory_bytes, str(kernel), command_line=command_line)


def run_once(spec: MachineSpec, leave: Callable[[int], bool], path: Path, seconds: float = 60) -> tuple[End | None, bytes]:
    """Run a machine until it ends (its End) or leave(bytes written so far) says to save it to path and go (None)."""
    board = HotBoard(BackendId.EMULATION)
    output = bytearray()
    with GuestMemory(spec.memory_bytes) as memory:
        machine = Machine(spec, board, memory, create)
        over = threading.Event()
        left: list[bool] = []
        errors: list[HvdError] = []

        def live() -> None:
            machine.run()
            over.set()

        def move() -> None:
            with save(machine, path, b"{}") as writer:
                writer.finish()
            left.append(True)
            machine.kill()

        def moved(result: object, error: HvdError | None) -> None:
            if error is not None and error.reason != "RUNNER_GONE":
                errors.append(error)
                machine.kill()

        vcpu = threading.Thread(target=live)
        vcpu.start()
        killer = threading.Timer(seconds, lambda: machine.call(machine.kill, lambda result, error: None))
        killer.start()
        asked = False
        while not over.wait(POLL_SECONDS):
            output += board.console_take()
            machine.console_drained()
            if not asked and leave(len(output)):
                asked = True
                machine.call(move, moved)
        vcpu.join()
        killer.cancel()
        output += board.console_take()
        end = machine.end
        board.close()
    if errors:
        raise errors[0]
    return (None if left else end), bytes(output)


def run_moving(
    spec: MachineSpec, directory: Path, pauses: Callable[[], float], most: int = 1000, seconds: float = 120
) -> tuple[End, str, int]:
    """The guest's end, all that it wrote, and how often it moved: after pauses() seconds each, at most `most` times."""
    until = time.monotonic() + seconds
    output = b""
    moves = 0
    while True:
        leave_at = time.monotonic() + pauses() if moves < most else float("inf")
        path = directory / f"{moves}.hvdsnap"
        end, wrote = run_once(spec, lambda length, at=leave_at: time.monotonic() >= at, path, until - time.monotonic())
        output += wrote
        if spec.snapshot:
            Path(spec.snapshot).unlink()
        if end is not None:
            return end, output.replace(b"\r", b"").decode(errors="replace"), moves
        moves += 1
        spec = replace(spec, snapshot=str(path))
