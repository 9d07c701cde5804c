"""How a runner has ended: what the daemon makes of what it left."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

from hvd.backends.contract import InstanceStatus
from hvd.runner import launch
from hvd.runner.directory import ENDS, EXIT, read_json

ENDED: Final = frozenset(ENDS.values())


def read_exit(directory: Path) -> InstanceStatus | None:
    """How the guest of a directory ended, by its exit record; None when there is none, or none that makes sense."""
    record = read_json(str(directory / EXIT))
    if record is None:
        return None
    reason, message, code, metadata = (record.get(key) for key in ("reason", "message", "exit_code", "metadata"))
    if not (isinstance(reason, str) and isinstance(record.get("state"), str) and isinstance(message, str)):
        return None
    if record["state"] not in ENDED or not (code is None or isinstance(code, int)):
        return None
    return InstanceStatus(
        record["state"],
        reason,
        message,
        code,
        metadata={str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else None,
    )


def crashed(directory: Path, pid: int, wait_status: int | None) -> InstanceStatus:
    """Of one without such a record. wait_status: as of waitpid(2); None = nobody knows."""
    how = "ended"
    if wait_status is not None:
        code = os.waitstatus_to_exitcode(wait_status)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    tail = launch.log_tail(directory)
    message = f"the guest's runner, process {pid}, {how} and left no exit record" + (
        f"; it said: {tail}" if tail else ""
    )
    message += "; `hvctl start` starts it anew"
    return InstanceStatus(ENDS["RUNNER_CRASHED"], "RUNNER_CRASHED", message)
