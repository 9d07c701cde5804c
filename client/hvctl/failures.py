"""Exit codes, and how a failure is told."""

from __future__ import annotations

import click

from hvctl.sdk.errors import HvctlError

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
WRONG_STATE = 4
UNREACHABLE = 5
REFUSED = 6
TIMED_OUT = 124
# Of run: hvctl or the daemon failed, as opposed to the guest, whose own code it would otherwise be.
RUN_FAILED = 125
INTERRUPTED = 130
# Of run, 128 + SIGKILL: somebody killed the guest.
KILLED = 137
# 128 + SIGPIPE: whoever read our output has gone.
PIPE_CLOSED = 141

# What decides is the reason, where it is listed, otherwise the status code.
BY_REASON = {
    "BACKEND_UNAVAILABLE": REFUSED,
    "NO_BACKEND_FITS": REFUSED,
    "TOOL_MISSING": REFUSED,
    "CAPABILITY_MISSING": REFUSED,
    "RUNNER_GONE": FAILED,  # UNAVAILABLE, but it is not the daemon that is out of reach
    "FILE_UNWRITABLE": FAILED,
    "FONT_MISSING": FAILED,
    "GDB_MISSING": REFUSED,
    "GUEST_PROGRAM_MISSING": REFUSED,
    "ENDPOINT_INVALID": USAGE,
}
BY_CODE = {
    "NOT_FOUND": NOT_FOUND,
    "FAILED_PRECONDITION": WRONG_STATE,
    "UNAVAILABLE": UNREACHABLE,
    "PERMISSION_DENIED": REFUSED,
    "UNAUTHENTICATED": REFUSED,
    "DEADLINE_EXCEEDED": TIMED_OUT,
}


def exit_code(error: HvctlError) -> int:
    return BY_REASON.get(error.reason, BY_CODE.get(error.code, FAILED))


def report(error: HvctlError, output: str) -> None:
    """On stderr: a line with what is wrong and one with the next step, or JSON for programs."""
    if output in ("json", "jsonl"):
        import json

        click.echo(json.dumps(error.document(), indent=2 if output == "json" else None), err=True)
        return
    click.echo(f"hvctl: {error.message}", err=True)
    if error.help:
        click.echo(f"next step: {error.help}", err=True)


def from_usage(error: click.UsageError) -> HvctlError:
    """A command line that click refused."""
    command = error.ctx.command_path if error.ctx is not None else "hvctl"
    return HvctlError(
        "INVALID_ARGUMENT", "USAGE", {"command": command}, error.format_message(), f"`{command} --help` shows how"
    )
