"""Adoption: what became of a guest while no daemon was there. Reads the guest's directory and asks its process; all it
changes is to end a start that nobody waits for any more.

The directory is the truth. An exit record says how the guest ended; otherwise its process is asked, if it is still the
very process of the pid file (same boot, same start time); otherwise the guest is FAILED (its process died) or LOST (nobody can
tell), with the reason.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
from hvapi.v1 import guest_pb2

from hvd.backends.contract import Backend, Instance, InstanceStatus
from hvd.errors import HvdError
from hvd.guests import records
from hvd.guests.model import ALIVE, ENDED, PREFIX, Guest
from hvd.runner import directory as names
from hvd.runner.directory import START_INTERRUPTED, ExitRecord

log = structlog.get_logger()

ADOPT_SECONDS = 5.0
# A daemon that died in the middle of a start may have left a runner that is about to write its pid. One that is later is
# called off.
PID_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """One of: a running instance; an end that the store does not know; nothing new (both None)."""

    instance: Instance | None = None
    status: InstanceStatus | None = None
    time_ns: int = 0  # of the end; 0 = not known


NOTHING_NEW = Found()


async def first_status(instance: Instance) -> InstanceStatus:
    """Of one that has just been launched; without an answer it is ended: what FAILED to start does not run. Raises HvdError."""
    try:
        return await instance.status()
    except BaseException:
        await instance.kill()
        await instance.close()
        raise


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
    if guest.state == Guest.STARTING and process is None:
        await asyncio.to_thread(_call_off, directory)
    if guest.state in ALIVE:
        return Found(status=_without_record(guest.state, directory, process, problem, last_boot))
    return NOTHING_NEW


async def _process(directory: Path, was: int) -> records.Process | None:
    deadline = time.monotonic() + (PID_SECONDS if was == Guest.STARTING else 0)
    while (process := records.read_process(directory)) is None and time.monotonic() < deadline:  # noqa: ASYNC110 - a file of another process
        await asyncio.sleep(0.05)
    return process


def _call_off(directory: Path) -> None:
    """The start that a daemon died in: its runner may come yet, however slow the host is. A runner writes its pid, then looks
    for an exit record and ends if there is one; so this writes the record first, then looks for a pid.
    """
    if not directory.is_dir():  # it had not begun
        return
    try:
        ExitRecord(str(directory)).write("START_INTERRUPTED", START_INTERRUPTED, None, {})
    except OSError as error:  # a full disk: then a late runner is found by the next start (GuestLife._readopt)
        log.warning("interrupted start cannot be called off", directory=str(directory), problem=str(error))
    if (process := records.read_process(directory)) is not None:
        records.kill_process(process)


def _without_record(
    was: int, directory: Path, process: records.Process | None, problem: HvdError | None, last_boot: str
) -> InstanceStatus:
    """FAILED: its process is known to have died. LOST: nothing, or nothing reachable, is left to tell what became of it."""
    if (process.boot_id if process else last_boot) not in ("", records.boot_id()):
        return InstanceStatus(
            "LOST", "HOST_REBOOTED", "the host was started anew; `hvctl start` starts the guest again"
        )
    if process is None:
        if was == Guest.STARTING:
            return InstanceStatus(names.ENDS["START_INTERRUPTED"], "START_INTERRUPTED", START_INTERRUPTED)
        return InstanceStatus(
            "LOST", "RUNNER_GONE", "there is neither runner nor exit record; `hvctl start` starts it anew"
        )
    if not records.is_living(process):
        return InstanceStatus(
            names.ENDS["RUNNER_CRASHED"],
            "RUNNER_CRASHED",
            f"its runner (process {process.pid}) died without an exit record; "
            f"see {directory / names.RUNNER_LOG}; `hvctl start` starts it anew",
        )
    reason = problem.reason if problem else "RUNNER_GONE"
    return InstanceStatus(
        "LOST", reason, f"its runner (process {process.pid}) lives but was not adopted: {problem}; `hvctl kill` ends it"
    )


def strangers(guests_dir: Path, known: set[str]) -> list[tuple[Path, guest_pb2.Guest | None]]:
    """Guests' directories of none of the known uids, each with its guest, None = it is no guest's directory. What a crash left of
    deleted ones is removed."""
    found: list[tuple[Path, guest_pb2.Guest | None]] = []
    if not guests_dir.is_dir():
        return found
    for directory in sorted(guests_dir.iterdir()):
        if directory.name.endswith(records.DELETED):
            records.remove_left_over(directory)
        elif directory.name not in known and not directory.name.startswith("."):  # what backends keep beside them
            guest = records.read_guest(directory)
            whole = guest is not None and guest.uid == directory.name and guest.name.startswith(PREFIX)
            found.append((directory, guest if whole else None))
    return found
