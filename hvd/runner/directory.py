"""The guest directory `<runtime-dir>/guests/<uid>/`: the one contract between the daemon and the process that owns a
guest.

In conmon's form, so that conmon can provide it for containers and the runner for VMs, and the daemon has one code path:

    machine.json   what to run (hvd.board.spec.MachineSpec), written by the daemon before the start; guest.json next
                   to it is the daemon's own
    pid            JSON {"pid", "start_time", "boot_id"} of the process; start_time is field 22 of /proc/PID/stat. A runner adds
                   "protocol": [oldest, newest], the versions of this contract that it speaks
    attach         SOCK_SEQPACKET: packets to the viewer are one byte stream (2 = stdout, 3 = stderr) and up to 8191
                   bytes; a packet of stream 0 has 8 bytes little-endian: so many bytes were skipped for this viewer.
                   Packets from the viewer are input. A viewer that closes its writing side has left.
                   The runner, not conmon, sends a packet of stream 4 before all others (LogPosition): where in the
                   log the viewer's first byte stands, so that the log up to there and the packets from there on are
                   the whole output, without gap or repetition. The log's files come with it (SCM_RIGHTS)
    console.log    k8s-file lines: `2026-11-23T12:00:00.000000000+00:00 stdout F text` (P = no line end follows yet);
                   when it has log_max_bytes / log_files, it becomes console.log.1, that console.log.2, and so on. stderr
                   is what the guest logged by hypercalls, and hvd's own notes. They survive the guest's next start, which
                   appends. console.log.0, of containers, is another name of console.log, or what has just been it
                   (hvd/backends/container/rotation.py)
    exit.json      the exit record, written last and atomically: {"state", "reason", "message", "exit_code", "time_ns",
                   "metadata"}
    control        SOCK_STREAM: length-prefixed hvd.runner.v1 messages
    counters       struct hv_counters, a plain file that the runner maps and the daemon reads with pread
    trace          struct hv_trace_header and its ring of TRACE_RECORDS, likewise; the daemon switches kinds on by
                   writing `enabled`. It may make the file before the start, with `enabled` set: that word stays, and
                   the first crossing is recorded. Whoever sets it allocates the file's blocks first
    debug          SOCK_STREAM: a debugger. It sends a line, JSON {"architecture"} ("i386", "i386:x86-64", "i8086", "" = the vcpu's
                   present mode), and gets one: {"architecture"}, or {"error", "metadata"} (hvd/errors.py) and the end of the
                   connection. Then both speak gdb's remote protocol. When the connection ends, the guest goes on without breakpoints
    screen.json    what stood on the VGA text screen when the guest ended, unless that was nothing
                   (hvd/runner/last_screen.py)
    census.json    which instructions of the kernel could not trap though they should, when the guest ended, if its
                   backend has such (hvd/runner/census.py); or what was rewritten (hvd/runner/rewritten.py)
    runner.log     the runner's own stderr

The directory is private to the daemon's user (0700). Sun's 108-byte limit on socket paths: connect through
/proc/self/fd/<dirfd>/<name> when the path is longer.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

MACHINE = "machine.json"
# In there: how the runner is locked in (hvd.jail.enter.Jail); absent = not.
JAIL = "jail"
PID = "pid"
ATTACH = "attach"
LOG = "console.log"
EXIT = "exit.json"
CONTROL = "control"
DEBUG = "debug"
COUNTERS = "counters"
TRACE = "trace"
SCREEN = "screen.json"
CENSUS = "census.json"
RUNNER_LOG = "runner.log"

# What is written atomically gets its name when it is whole.
NEW = ".new"
# Files that a start makes: an empty one of these means no more than none (hvd/guests/blank.py).
FIRST_FILES = (MACHINE + NEW, PID + NEW, EXIT + NEW, RUNNER_LOG, LOG, TRACE)

# Files of one console log. More than a few descriptors do not go with one packet.
LEAST_LOG_FILES, MOST_LOG_FILES = 2, 32
LEAST_LOG_FILE_BYTES = 4096

# Versions of this contract and of control.proto: a daemon adopts the runners of older ones, and of newer ones that still speak with
# it. A runner that says nothing speaks version 1, which was before versions were told. What a version adds, an older runner does not
# know: it answers REQUEST_INVALID, and the daemon goes without. PROTOCOL_OLDEST moves only when something is taken away.
PROTOCOL_OLDEST, PROTOCOL = 1, 2

# 1 MiB.
TRACE_RECORDS = 1 << 14

STREAM_SKIPPED = 0
STREAM_STDOUT = 2
STREAM_STDERR = 3
STREAM_LOG = 4
ATTACH_PACKET = 8192
# Stream, LogPosition.begin, LogPosition.end; little-endian.
LOG_POSITION = struct.Struct("<BQQ")

# How a guest ends (DESIGN.md section 3): reason -> state. Every one sets an exit code only where it says so.
ENDS: dict[str, str] = {
    "EXITED": "STOPPED",  # exit port or exit hypercall; exit_code is the guest's
    "POWEROFF": "STOPPED",  # ACPI or power-off port
    "HALTED": "STOPPED",  # HLT with interrupts off
    "RESET": "STOPPED",  # reset line, with on_reset = stop
    "TRIPLE_FAULT": "STOPPED",  # with on_reset = stop
    "KILLED": "STOPPED",  # by the daemon
    "EXECUTION_ERROR": "FAILED",  # the backend cannot go on: address and bytes in the metadata
    "DEVICE_ERROR": "FAILED",  # a bug in a device
    "OUT_OF_MEMORY": "STOPPED",  # a container that ended after its memory limit was reached
    "MONITOR_GONE": "FAILED",  # of a container
    "LOAD_FAILED": "FAILED",  # the image could not be loaded: reason of hvd/errors.py in the metadata
    "RUNNER_OUT_OF_MEMORY": "FAILED",  # it, or its cell, was killed at the memory limit of its control group
    "RUNNER_CRASHED": "FAILED",  # its process died without an exit record
    "START_INTERRUPTED": "FAILED",  # the daemon died while it was being started; there is no process
}
START_INTERRUPTED = "the daemon died while it was starting the guest; `hvctl start` starts it again"

EXIT_RECORD_BYTES = 16384
_MESSAGE_BYTES = 2048


def older_log(number: int) -> str:
    """The name of what was console.log so many rotations ago; 0 = at the present one, or just before it."""
    return f"{LOG}.{number}"


def log_file_bytes(max_bytes: int, files: int) -> int:
    """What each file of a log of so many bytes may have."""
    return max(max_bytes // files, LEAST_LOG_FILE_BYTES)


class LogPosition(NamedTuple):
    """A place in the console log between two bytes of the guest's output: all before it is in the log, whole lines only
    (an unfinished one is written as a piece, tag P). What the log lost on a full disk is missing there, too.
    """

    # Those that have any of the present run, console.log the last, open for reading; whoever has them closes them.
    # Empty = there is no log that could be read.
    descriptors: tuple[int, ...]
    begin: int  # offset in the first file at which the guest's present run begins
    end: int  # offset of the place in the last file


class ExitRecord:
    """The place of exit.json, reserved at the start, so that a full disk cannot take a guest's end away."""

    def __init__(self, directory: str) -> None:
        """Raises OSError, e.g. when the disk is full now."""
        self._path = os.path.join(directory, EXIT)
        self._fd = os.open(self._path + NEW, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._fd, 0, EXIT_RECORD_BYTES)

    def write(self, reason: str, message: str, exit_code: int | None, metadata: Mapping[str, str]) -> None:
        """A reason of ENDS. Texts beyond 2 KiB are cut."""
        document = {
            "state": ENDS[reason],
            "reason": reason,
            "message": message[:_MESSAGE_BYTES],
            "exit_code": exit_code,
            "time_ns": time.time_ns(),
            "metadata": {key: str(value)[:_MESSAGE_BYTES] for key, value in metadata.items()},
        }
        data = json.dumps(document).encode()
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))
        os.rename(self._path + NEW, self._path)


def write_json(path: str, document: Mapping[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one."""
    new = path + NEW
    with open(new, "w", encoding="utf-8") as file:
        file.write(json.dumps(document))  # dump() makes and writes it piece by piece
    os.rename(new, path)


def read_json(path: str) -> dict[str, Any] | None:
    """None when it is missing or no JSON object: what stands in a guest directory is not trusted."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def boot_id() -> str:
    """Differs after a reboot, when pids mean other processes."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def process_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, in clock ticks since the boot; None when the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, field 2, may hold anything, spaces and parentheses included.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def own_pid() -> int:
    """Of this process, as whoever mounted /proc sees it: in a namespace of its own it is 1 to itself."""
    return int(os.readlink("/proc/self"))


def process_identity(pid: int) -> dict[str, Any]:
    """The contents of the pid file. Raises ProcessLookupError."""
    start = process_start_time(pid)
    if start is None:
        raise ProcessLookupError(f"no process {pid}")
    return {"pid": pid, "start_time": start, "boot_id": boot_id()}
