"""Taking down what was a container, and how it ended."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from hvd.backends.container import conmon, null_device, rootfs
from hvd.backends.container.cgroup.limits import effects
from hvd.backends.container.record import Record
from hvd.backends.container.runtime import Runtime
from hvd.backends.container.trace.recorder import RECORDER
from hvd.backends.contract import InstanceStatus
from hvd.cgroup.hierarchy import hierarchy
from hvd.cgroup.processes import kill_all
from hvd.errors import HvdError
from hvd.runner import directory as names

log = structlog.get_logger()

# From SIGKILL of all of a container's processes to their end.
SWEEP_SECONDS = 10.0


async def settle(directory: Path, record: Record, runtime: Runtime, killed: bool = False) -> InstanceStatus:
    """The monitor has ended: take down what was the container and write how it ended, unless that has been done.

    Raises HvdError CONTAINER_FAILED when a part of it could not be taken down; the other parts have been, and nothing is
    written: the next start, or daemon, tries again.
    """
    if (known := _read_exit(directory)) is not None:
        return known
    if not record.monitor:
        await abandon(directory, record.uid, Path(record.state_dir), runtime)
        status = InstanceStatus("FAILED", "CONTAINER_FAILED", "the daemon ended while the container was being made")
        await asyncio.to_thread(_write_exit, directory, status)
        return status
    code = conmon.read_exit_code(directory, record.uid)
    out_of_memory = False

    def look() -> None:
        nonlocal out_of_memory
        out_of_memory = effects(hierarchy(), record.uid).oom_kills > 0

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "the end of its trace": lambda: asyncio.to_thread(RECORDER.end, record.uid),
        "what its limits did": lambda: asyncio.to_thread(look),  # gone with the control groups
        runtime.name: lambda: _forget(runtime, record.uid, seen=code is not None),
        "its root": lambda: asyncio.to_thread(rootfs.unmount, Path(record.state_dir)),
    }
    problems = []
    for what, step in steps.items():
        try:
            await step()
        except Exception as error:  # whatever it was, the others are taken down
            log.exception("container could not be put away", guest=record.uid, part=what)
            problems.append(f"{what}: {error}")
    if problems:
        raise HvdError("CONTAINER_FAILED", what="putting it away", problem="; ".join(problems))
    status = _end_of(code, killed, out_of_memory)
    await asyncio.to_thread(_write_exit, directory, status)
    shutil.rmtree(directory / conmon.EXIT_DIRECTORY, ignore_errors=True)
    return status


def _write_exit(directory: Path, status: InstanceStatus) -> None:
    document = {
        "state": status.state, "reason": status.reason, "message": status.message, "exit_code": status.exit_code,
        "time_ns": time.time_ns(), "metadata": dict(status.metadata or {}),
    }  # fmt: skip
    names.write_json(str(directory / names.EXIT), document)


async def abandon(directory: Path, uid: str, state_dir: Path, runtime: Runtime) -> None:
    """Whatever there is of a container whose making failed or was cut short, at whatever point. What cannot be taken down is
    logged: the next start tries again."""
    steps: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: asyncio.to_thread(conmon.kill, directory, uid),
        lambda: runtime.delete(uid),
        # A runtime that was killed knows nothing of what it has made.
        lambda: asyncio.to_thread(_sweep, runtime, uid),
        lambda: asyncio.to_thread(rootfs.unmount, state_dir),
        lambda: asyncio.to_thread(null_device.take_back),
    )
    for step in steps:
        try:
            await step()
        except (HvdError, OSError) as error:
            log.error("part of a container could not be taken down", guest=uid, problem=str(error))


def _sweep(runtime: Runtime, uid: str) -> None:
    """Raises HvdError CONTAINER_FAILED."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while kill_all(hierarchy(), uid) or not runtime.forget(uid):
        if time.monotonic() > deadline:
            raise HvdError("CONTAINER_FAILED", what="putting it away", problem="processes of it do not end")
        time.sleep(0.01)  # there is nothing to wait for that the kernel would tell of both versions


async def _forget(runtime: Runtime, uid: str, seen: bool) -> None:
    """seen: the monitor saw its init end, with which all of its processes ended. Otherwise, some may live. Raises HvdError
    CONTAINER_FAILED."""
    if not seen or not await asyncio.to_thread(runtime.forget, uid):
        await runtime.delete(uid)


def _end_of(code: int | None, killed: bool, out_of_memory: bool) -> InstanceStatus:
    metadata: dict[str, str] = {}
    if out_of_memory:
        metadata["oom_killed"] = "true"
    if killed:
        return InstanceStatus("STOPPED", "KILLED", "killed", 137, metadata={**metadata, "exit_signal": "SIGKILL"})
    if code is None:
        return InstanceStatus(
            "FAILED",
            "MONITOR_GONE",
            "its monitor (conmon) was killed, so the container was ended; nobody saw its exit code",
        )
    if code > 128 and code - 128 in {number.value for number in signal.Signals}:
        metadata["exit_signal"] = signal.Signals(code - 128).name
    if out_of_memory and code == 128 + signal.SIGKILL:
        return InstanceStatus(
            "STOPPED", "OUT_OF_MEMORY", f"its memory limit was reached; it ended with {code}", code, metadata=metadata
        )
    return InstanceStatus("STOPPED", "EXITED", f"it ended with {code}", code, metadata=metadata)


def _read_exit(directory: Path) -> InstanceStatus | None:
    document: Mapping[str, Any] | None = names.read_json(str(directory / names.EXIT))
    if document is None:
        return None
    try:
        return InstanceStatus(
            str(document["state"]), str(document["reason"]), str(document["message"]), document["exit_code"],
            metadata=document["metadata"],
        )  # fmt: skip
    except (KeyError, TypeError):
        return None
