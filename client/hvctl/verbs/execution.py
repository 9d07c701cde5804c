"""exec."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

import click

from hvctl import failures
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, verb
from hvctl.verbs.container_options import Variable

if TYPE_CHECKING:
    from hvctl.sdk.execution import Execution

STDIN = 0


@verb(formats=("text",), timeout_help="Kill the program after so long (exit code 124).")
@click.argument("guest")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option("--tty", "-t", is_flag=True, help="The program gets a terminal.")
@click.option("--env", "-e", "environment", type=Variable(), multiple=True, metavar="K[=V]", help="Variable; may be repeated.")
@click.option("--workdir", "-w", metavar="DIR", help="Working directory.")
@click.option("--user", "-u", metavar="U", help="Name, uid or uid:gid.")
def exec_(
    settings: Settings,
    guest: str,
    command: tuple[str, ...],
    tty: bool,
    environment: tuple[tuple[str, str], ...],
    workdir: str | None,
    user: str | None,
) -> int:
    """Runs another program in a running container; its standard streams are this one's.

    Ends with the program's exit code, or with 125 when hvctl or the daemon failed. The program's options follow a --.
    """
    from hvapi.v1 import guest_pb2

    from hvctl.sdk.execution import STDERR
    from hvctl.terminal import make_raw, restore, terminal_size, write_all

    setup = guest_pb2.ExecSetup(
        name=guest_name(guest),
        command=command,
        env=dict(environment),
        working_directory=workdir or "",
        user=user or "",
        tty=tty,
    )
    if tty:
        setup.size.rows, setup.size.columns = terminal_size()
    raw = tty and os.isatty(STDIN)
    try:
        with settings.client.execute(setup, timeout=settings.timeout) as execution:
            if raw:
                make_raw()
            _follow_size(execution, tty)
            threading.Thread(target=_type, args=(execution,), name="stdin", daemon=True).start()
            try:
                for stream, data in execution:
                    write_all(stream if stream == STDERR else 1, data)
            finally:
                restore()
            if execution.exit_code is None:
                raise HvctlError.local("NOT_EXPLAINED", problem="the program's end was not told")
            return execution.exit_code
    except HvctlError as error:
        failures.report(error, settings.output)
        return failures.TIMED_OUT if error.reason == "TIMED_OUT" else failures.RUN_FAILED


def _follow_size(execution: Execution, tty: bool) -> None:
    from hvctl.terminal import terminal_size

    def resized(number: int, frame: FrameType | None) -> None:
        execution.resize(*terminal_size())

    if tty and sys.stdout.isatty() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGWINCH, resized)


def _type(execution: Execution) -> None:
    while True:
        try:
            data = os.read(STDIN, 65536)
        except OSError:  # closed, or a background job's
            data = b""
        if not data:
            execution.end_input()
            return
        execution.write(data)
