"""What is left to do when a machine's runner has ended: its control group, and whether that was its end."""

from __future__ import annotations

from pathlib import Path

import structlog

from hvd.jail import group
from hvd.runner.directory import ENDS, EXIT, PID, ExitRecord, boot_id, process_start_time, read_json

log = structlog.get_logger()

REASON = "RUNNER_OUT_OF_MEMORY"


def put_away(directory: Path) -> None:
    """The runner has ended. Writes how, when that was the memory limit's doing: of its runner or cell, one may have gone on to say something else.
    Blocks until its control group is gone."""
    if not group.exists(directory.name):
        return
    if group.killed_for_memory(directory.name):
        record = read_json(str(directory / EXIT)) or {}
        if record.get("state") in (None, ENDS[REASON]):
            said = f" ({record['message']})" if record.get("message") else ""
            message = (
                f"the guest's processes needed more than the {group.memory_limit(directory.name) >> 20} MiB of their control group, and the kernel "
                f"killed one{said}; `hvctl start` starts it anew"
            )
            try:
                ExitRecord(str(directory)).write(REASON, message, None, {"oom_killed": "true"})
            except OSError as error:
                log.warning("an end for want of memory cannot be written", guest=directory.name, problem=str(error))
    group.put_away(directory.name)


def settle(directory: Path) -> None:
    """put_away(), if the runner has ended. Without a pid file one may be about to come: then only a group without processes goes."""
    if not group.exists(directory.name):
        return
    record = read_json(str(directory / PID))
    if record is None:
        group.remove_empty(directory.name)
        return
    pid = record.get("pid")
    if not isinstance(pid, int) or record.get("boot_id") != boot_id() or process_start_time(pid) != record.get("start_time"):
        put_away(directory)
