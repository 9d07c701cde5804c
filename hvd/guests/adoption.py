"""Adoption: what became of a guest while no daemon was there. Reads the guest's directory and asks its process; changes
nothing.

The directory is the truth. An exit record says how the guest ended; otherwise its process is asked, if it is still the
very process of the pid file (same boot, same start time); otherwise the guest is LOST, with the reason.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from hvapi.v1 import guest_pb2

from hvd.backends.contract import Backend, Instance, InstanceStatus
from hvd.errors import HvdError
from hvd.guests import records
from hvd.guests.model import ALIVE, ENDED, Guest
from hvd.runner import directory as names

ADOPT_SECONDS = 5.0
# A daemon that died in the middle of a start may have left a runner that is about to write its pid.
PID_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """One of: a running instance; an end that the store does not know; nothing new (both None)."""

    instance: Instance | None = None
    status: InstanceStatus | None = None
    time_ns: int = 0  # of the end; 0 = not known


NOTHING_NEW = Found()


async def adopt_instance(backend: Backend, directory: Path) -> Found:
    """Raises HvdError RUNNER_GONE, RUNNER_TIMEOUT."""

    async def adopt() -> Found:
        instance = await backend.adopt(directory)
        try:
            return Found(instance, await instance.status())
        except BaseException:  # the time-out's cancellation too: nobody else would close it
            await instance.close()
            raise

    try:
        return await asyncio.wait_for(adopt(), ADOPT_SECONDS)
    except TimeoutError:
        raise HvdError("RUNNER_TIMEOUT", call="adopt", seconds=ADOPT_SECONDS) from None


async def find_out(guest: guest_pb2.Guest, directory: Path, backend: Backend, last_boot: str) -> Found:
    """guest: as the store has it. last_boot: the boot in which a daemon last ran here; empty = not known."""
    await backend.settle(directory)
    record = await asyncio.to_thread(records.read_exit, directory)
    if guest.state in ENDED:
        if record is not None and record.time_ns in (0, guest.end_time.ToNanoseconds()):
            return NOTHING_NEW
        if record is None and not (directory / names.PID).exists():
            return NOTHING_NEW
    process = await _process(directory, guest.state)
    problem: HvdError | None = None
    if record is None and process is not None:
        try:
            return await adopt_instance(backend, directory)
        except HvdError as error:
            problem = error
        # It may have ended in this very moment.
        await backend.settle(directory)
        record = await asyncio.to_thread(records.read_exit, directory)
    if record is not None:
        return Found(status=record.status, time_ns=record.time_ns)
    if guest.state in ALIVE:
        return Found(status=_lost(directory, process, problem, last_boot))
    return NOTHING_NEW


async def _process(directory: Path, was: int) -> records.Process | None:
    deadline = time.monotonic() + (PID_SECONDS if was == Guest.STARTING else 0)
    while (process := records.read_process(directory)) is None and time.monotonic() < deadline:  # noqa: ASYNC110 - a file of another process
        await asyncio.sleep(0.05)
    return process


def _lost(directory: Path, process: records.Process | None, problem: HvdError | None, last_boot: str) -> InstanceStatus:
    if (process.boot_id if process else last_boot) not in ("", records.boot_id()):
        return InstanceStatus(
            "LOST", "HOST_REBOOTED", "the host was started anew; `hvctl start` starts the guest again"
        )
    if process is None:
        return InstanceStatus(
            "LOST", "RUNNER_CRASHED", "there is neither runner nor exit record; `hvctl start` starts it anew"
        )
    if not records.is_living(process):
        return InstanceStatus(
            "LOST",
            "RUNNER_CRASHED",
            f"its runner (process {process.pid}) died without an exit record; "
            f"see {directory / names.RUNNER_LOG}; `hvctl start` starts it anew",
        )
    reason = problem.reason if problem else "RUNNER_GONE"
    return InstanceStatus(
        "LOST", reason, f"its runner (process {process.pid}) lives but was not adopted: {problem}; `hvctl kill` ends it"
    )
