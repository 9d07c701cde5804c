"""What the host refuses: errors of system calls as reasons of the table, in the one place where nobody nearer knew better."""

from __future__ import annotations

import errno
import os

from hvd.errors import HvdError

# errno -> reason.
_REASONS = {
    errno.ENOSPC: "DISK_FULL",
    errno.EDQUOT: "DISK_FULL",
    errno.EMFILE: "TOO_MANY_FILES",
    errno.ENFILE: "TOO_MANY_FILES",
    errno.ENOMEM: "HOST_MEMORY_FULL",
    errno.EAGAIN: "TOO_MANY_PROCESSES",
    errno.EIO: "HOST_IO_ERROR",
    errno.EROFS: "HOST_IO_ERROR",
}


def host_error(error: OSError) -> HvdError | None:
    """None = it says nothing about the host: somebody's bug."""
    reason = _REASONS.get(error.errno or 0)
    if reason is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    what = path or "a file"
    return HvdError(
        reason, directory=os.path.dirname(path) or "the daemon's directories", what=what, problem=error.strerror or str(error)
    )


def known(error: Exception) -> HvdError:
    """What people are told of any exception: the error itself, the host's reason, or INTERNAL."""
    if isinstance(error, HvdError):
        return error
    found = host_error(error) if isinstance(error, OSError) else None
    return found or HvdError("INTERNAL", problem=repr(error)[:1000])
