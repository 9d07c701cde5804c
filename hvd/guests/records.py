"""What a guest's process leaves in its directory: who it is (pid) and how it ended (exit.json). Read, checked, never
trusted.

Everything here is written by another process, perhaps of another version, perhaps torn by a crash or a full disk: what
does not fit is told as a problem, it does not raise.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path

from google.protobuf import json_format
from hvapi.v1 import guest_pb2

from hvd.backends.contract import InstanceStatus
from hvd.errors import HvdError
from hvd.runner import directory as names

# The daemon's own file next to machine.json: the guest as it was when it was started.
GUEST = "guest.json"
# Ending of a directory that is being deleted: one left behind by a crash is removed at the next start.
DELETED = ".deleted"
_MOST_BYTES = 1 << 20
# From SIGKILL to the end of a process with much memory, on a busy host.
KILL_SECONDS = 5.0
_KEPT = frozenset({names.LOG, *map(names.older_log, range(names.MOST_LOG_FILES))})


@dataclass(frozen=True, slots=True)
class ExitRecord:
    status: InstanceStatus
    time_ns: int  # CLOCK_REALTIME; 0 = not told


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    start_time: int  # field 22 of /proc/PID/stat, clock ticks since boot
    boot_id: str


def boot_id() -> str:
    """Of the running host kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MOST_BYTES))
        json.dumps(value, ensure_ascii=False).encode()  # json takes lone surrogates, protobuf does not
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_exit(directory: Path) -> ExitRecord | None:
    """How the guest ended; None = there is no (whole) exit record."""
    record = _read_json(directory / names.EXIT)
    if record is None or record.get("state") not in ("STOPPED", "FAILED", "LOST"):
        return None
    code, moment, metadata = record.get("exit_code"), record.get("time_ns"), record.get("metadata")
    return ExitRecord(
        InstanceStatus(
            state=str(record["state"]),
            reason=str(record.get("reason") or ""),
            message=str(record.get("message") or ""),
            exit_code=code if isinstance(code, int) and -(1 << 31) <= code < 1 << 31 else None,
            metadata={str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else None,
        ),
        moment if isinstance(moment, int) and 0 < moment < 1 << 62 else 0,
    )


def read_process(directory: Path) -> Process | None:
    """Who owns the guest; None = nobody ever did, or the file is torn."""
    record = _read_json(directory / names.PID)
    if record is None:
        return None
    pid, start_time, boot = record.get("pid"), record.get("start_time"), record.get("boot_id")
    if not isinstance(pid, int) or pid <= 1 or not isinstance(start_time, int) or not isinstance(boot, str):
        return None
    return Process(pid, start_time, boot)


def is_living(process: Process) -> bool:
    """Does this very process still run? A zombie does not."""
    if process.boot_id != boot_id():
        return False
    try:
        # The name in parentheses may hold anything; what follows its last parenthesis is fields 3 and on.
        stat = Path(f"/proc/{process.pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return False
    return stat[0] not in ("Z", "X") and int(stat[19]) == process.start_time


def kill_process(process: Process) -> None:
    """SIGKILL it, if it is still the same, and wait for its end; by pidfd, so that no other can be hit in between.

    Raises HvdError RUNNER_TIMEOUT when the kernel cannot end it.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if not is_living(process):
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            raise HvdError("RUNNER_TIMEOUT", call="SIGKILL", seconds=KILL_SECONDS)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def prepare_directory(directory: Path, guest: guest_pb2.Guest, *, blank: bool = False) -> None:
    """For a start: a directory with guest.json and, of earlier runs, the console log. blank: it was made for that, and is as it should be. Raises
    HvdError DISK_FULL, OSError.
    """
    try:
        if not blank:
            _empty(directory)
        (directory / GUEST).write_text(json_format.MessageToJson(guest, indent=None), "utf-8")
    except OSError as error:
        raise full(error, directory, GUEST) from error


def _empty(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name not in _KEPT:
                os.unlink(entry.path)


def full(error: OSError, directory: Path, what: str) -> Exception:
    """DISK_FULL for an error of a full disk, otherwise the error itself."""
    return HvdError("DISK_FULL", directory=directory, what=what) if error.errno in (ENOSPC, EDQUOT) else error


def read_guest(directory: Path) -> guest_pb2.Guest | None:
    """The guest as it was when it was started, for one that the store does not know; None = not to be read."""
    record = _read_json(directory / GUEST)
    if record is None:
        return None
    try:
        return json_format.ParseDict(record, guest_pb2.Guest(), ignore_unknown_fields=True)
    except json_format.ParseError:
        return None


def remove_directory(directory: Path) -> None:
    """For good. In two steps, so that a crash in between leaves nothing that looks like a guest."""
    condemned = directory.with_name(directory.name + DELETED)
    try:
        directory.rename(condemned)
    except FileNotFoundError:
        return
    shutil.rmtree(condemned, ignore_errors=True)


def remove_left_over(condemned: Path) -> None:
    """What a crash left of remove_directory."""
    shutil.rmtree(condemned, ignore_errors=True)
