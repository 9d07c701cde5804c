"""A snapshot of the machine that runs here: the guest stands still while it is written, not while it goes to the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from hvapi.runner.v1 import control_pb2

from hvd.board.machine import Machine
from hvd.errors import HvdError
from hvd.snapshot.container import Writer
from hvd.snapshot.machine import save

Done = Callable[[control_pb2.SnapshotSaved | None, HvdError | None], None]


def save_snapshot(machine: Machine, path: Path, about: bytes, done: Done) -> None:
    """done(result, None) or done(None, error), in another thread. On an error no file is left."""
    if not path.name:
        done(None, HvdError("SNAPSHOT_FAILED", problem=f"'{path}' is no name of a file"))
        return
    paused_ns = 0

    def write() -> Writer:
        nonlocal paused_ns
        start_ns = time.monotonic_ns()
        try:
            return save(machine, path, about)
        finally:
            paused_ns = time.monotonic_ns() - start_ns

    def written(writer: Writer | None, error: HvdError | None) -> None:
        if writer is None:
            done(None, error)
        else:
            try:
                threading.Thread(target=finish, args=(writer,), name="snapshot", daemon=True).start()
            except RuntimeError as failed:  # the host has no more threads
                with writer:
                    done(None, HvdError("SNAPSHOT_FAILED", problem=str(failed)))

    def finish(writer: Writer) -> None:
        try:
            with writer:
                size = writer.finish()
        except HvdError as error:
            done(None, error)
        except Exception as error:  # noqa: BLE001  whoever asked gets it; without an answer he would wait for ever
            done(None, HvdError("SNAPSHOT_FAILED", problem=repr(error)))
        else:
            done(control_pb2.SnapshotSaved(size_bytes=size, paused_ns=paused_ns), None)

    machine.call(write, written)
