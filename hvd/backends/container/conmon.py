"""conmon, the monitor of one container: holds its standard streams, log and exit code, and outlives the daemon
(https://github.com/containers/conmon).

In the guest directory, which is the bundle:

    attach      its SOCK_SEQPACKET socket     console.log   k8s-file lines     ctl   fifo: "1 ROWS COLUMNS" resizes
    init.pid    the container's process 1     monitor.pid   conmon itself      exit/UID   the exit code, at the end
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

from hvd.backends.container import null_device
from hvd.backends.container.runtime import Runtime, last_line
from hvd.errors import HvdError
from hvd.runner.directory import LOG, RUNNER_LOG

EXIT_DIRECTORY = "exit"
INIT_PID = "init.pid"
MONITOR_PID = "monitor.pid"
CONTROL_FIFO = "ctl"
CREATE_SECONDS = 60.0
KILL_SECONDS = 5.0
_SYNC_VARIABLE = "_OCI_SYNCPIPE"


class Created(NamedTuple):
    """A container that waits for its start."""

    init: int  # pid, as the host sees it
    monitor: int


def find() -> str | None:
    return shutil.which("conmon")


async def create(
    directory: Path, uid: str, name: str, runtime: Runtime, *, tty: bool, stdin: bool, stdin_ends: bool, log_file_bytes: int
) -> Created:
    """Make a container of the bundle in `directory`, under a monitor of its own. Raises HvdError CONTAINER_FAILED."""
    (directory / EXIT_DIRECTORY).mkdir(exist_ok=True)
    read, write = os.pipe()
    words = [
        find() or "conmon", "--api-version", "1", "--cid", uid, "--cuuid", uid, "--name", name,
        "--runtime", str(runtime.path), *(f"--runtime-arg={word}" for word in runtime.global_arguments),
        "--bundle", str(directory), "--full-attach",
        "--container-pidfile", str(directory / INIT_PID), "--conmon-pidfile", str(directory / MONITOR_PID),
        "--exit-dir", str(directory / EXIT_DIRECTORY), "--log-path", f"k8s-file:{directory / LOG}",
        "--log-size-max", str(log_file_bytes), "--no-new-keyring",
        *(["--terminal"] if tty else []), *(["--stdin"] if stdin or tty else []), *([] if stdin_ends else ["--leave-stdin-open"]),
    ]  # fmt: skip
    with open(directory / RUNNER_LOG, "ab") as log:  # noqa: ASYNC230  a file of a runtime directory, in memory
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                env={**os.environ, _SYNC_VARIABLE: str(write)},
                start_new_session=True,
            )
        except OSError as error:
            os.close(read)
            raise HvdError("CONTAINER_FAILED", what="conmon", problem=error) from error
        finally:
            os.close(write)
    try:
        # It forks: the first process ends at once, the second is the monitor.
        answer = await asyncio.wait_for(_first_line(read), CREATE_SECONDS)
        await asyncio.wait_for(process.wait(), CREATE_SECONDS)
    except TimeoutError:
        raise HvdError("CONTAINER_FAILED", what="conmon", problem=f"no answer in {CREATE_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
        null_device.take_back()
    return _created(answer, directory, runtime)


async def _first_line(read: int) -> bytes:
    """Closes the descriptor."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb"))
    try:
        return await reader.readline()
    finally:
        transport.close()


def _created(answer: bytes, directory: Path, runtime: Runtime) -> Created:
    init, message = -1, ""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        document = json.loads(answer)
        init, message = (
            int(document["data"] if "data" in document else document["pid"]),
            str(document.get("message", "")),
        )
    monitor = read_pid(directory / MONITOR_PID)
    if init <= 0 or monitor is None:
        problem = last_line(message) or last_line(_log_tail(directory)) or f"conmon said {answer[:200]!r}"
        raise HvdError("CONTAINER_FAILED", what=f"{runtime.name} create", problem=problem)
    return Created(init, monitor)


def _log_tail(directory: Path) -> str:
    try:
        return (directory / RUNNER_LOG).read_text("utf-8", "replace")[-4096:]
    except OSError:
        return ""


def read_pid(path: Path) -> int | None:
    try:
        pid = int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
    return pid if pid > 1 else None


def kill(directory: Path, uid: str) -> None:
    """The container's monitor, which may still be making it: the runtime that it runs dies with it (PR_SET_PDEATHSIG). No error
    when there is none. Raises HvdError RUNNER_TIMEOUT."""
    pid = read_pid(directory / MONITOR_PID)
    if pid is None:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Asked behind the descriptor: it is no other process of the same number.
        if f"--cid\0{uid}\0".encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            raise HvdError("RUNNER_TIMEOUT", call="SIGKILL", seconds=KILL_SECONDS)
    except (ProcessLookupError, FileNotFoundError):
        return
    finally:
        os.close(descriptor)


def read_exit_code(directory: Path, uid: str) -> int | None:
    """0-255, 128 + N of signal N; None = it has not ended, or nobody was there to see it."""
    try:
        return int((directory / EXIT_DIRECTORY / uid).read_text("ascii"))
    except (OSError, ValueError):
        return None


def resize(directory: Path, rows: int, columns: int) -> None:
    """Of its terminal. Raises OSError when the monitor is gone."""
    fifo = os.open(directory / CONTROL_FIFO, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fifo, f"1 {rows} {columns}\n".encode())
    finally:
        os.close(fifo)
