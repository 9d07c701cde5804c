"""The guest directory `<runtime-dir>/guests/<uid>/`: the one contract between the daemon and the process that owns a guest.

In conmon's form, so that conmon can provide it for containers and the runner for VMs, and the daemon has one code path:

    machine.json   what to run (LaunchSpec), written by the daemon before the start; guest.json next to it is the daemon's own
    pid            JSON {"pid", "start_time", "boot_id"} of the process; start_time is field 22 of /proc/PID/stat
    attach         SOCK_SEQPACKET: packets to the viewer are one byte stream (2 = stdout, 3 = stderr) and up to 8192 bytes; a packet
                   of stream 0 is 8 bytes little-endian: so many bytes were skipped for this viewer. Packets from the viewer are input
    console.log    k8s-file lines: `2026-11-23T12:00:00.000000000+00:00 stdout F text` (P = no line end follows yet); rotated to
                   console.log.1 at half of log_max_bytes
    exit.json      the exit record, written last and atomically: {"state", "reason", "message", "exit_code", "time_ns", "metadata"}
    control        SOCK_STREAM: length-prefixed hvd.runner.v1 messages
    counters       struct hv_counters, a plain file that the runner maps and the daemon reads with pread
    trace          struct hv_trace_header and its ring, likewise; the daemon switches kinds on by writing `enabled`
    runner.log     the runner's own stderr

The directory is private to the daemon's user (0700). Sun's 108-byte limit on socket paths: connect through
/proc/self/fd/<dirfd>/<name> when the path is longer.
"""

from __future__ import annotations

MACHINE = "machine.json"
PID = "pid"
ATTACH = "attach"
LOG = "console.log"
EXIT = "exit.json"
CONTROL = "control"
COUNTERS = "counters"
TRACE = "trace"
RUNNER_LOG = "runner.log"

STREAM_SKIPPED = 0
STREAM_STDOUT = 2
STREAM_STDERR = 3
ATTACH_PACKET = 8192

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
    "LOAD_FAILED": "FAILED",  # the image could not be loaded: reason of hvd/errors.py in the metadata
    "RUNNER_CRASHED": "LOST",  # no exit record
}
