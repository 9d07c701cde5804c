"""Starting a runner and finding one again: the daemon's side, before there is a connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hvapi

import hvd
import hvd.backends
from hvd.errors import HvdError
from hvd.runner.directory import PID, PROTOCOL, PROTOCOL_OLDEST, RUNNER_LOG, boot_id, process_start_time, read_json
from hvd.runner.inheritance import READY_FD, lifted

# What a runner gets of the daemon's environment.
ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",  # another allocator, or the faults of our tests
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
)
LOG_TAIL_BYTES = 4096


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    packages = [str(Path(package.__path__[0]).resolve().parent) for package in (hvd, hvapi)]
    sites = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*packages, *sites]))
    # The runner finds its backend where the daemon found it.
    if elsewhere := [os.path.abspath(directory) for directory in list(hvd.backends.__path__)[1:]]:
        kept[hvd.backends.PATH_VARIABLE] = os.pathsep.join(elsewhere)
    return kept


def spawn(directory: Path, executable: str, ready: int, cards: Sequence[int] = ()) -> int:
    """Start a runner in a session of its own; returns its pid. The caller reaps it and keeps its descriptors."""
    directory = directory.absolute()
    log = str(directory / RUNNER_LOG)
    with contextlib.ExitStack() as copies:
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        for place, descriptor in enumerate((ready, *cards), READY_FD):
            copy = lifted(descriptor)
            copies.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, place))
        arguments = ["-m", "hvd.runner", str(directory), str(READY_FD), str(len(cards))]
        return spawn_python(arguments, actions, executable)


def spawn_python(arguments: list[str], file_actions: list[tuple[Any, ...]], executable: str) -> int:
    """A Python of our own in a session of its own. -S: the site module and what it runs cost as much as starting the
    guest; its directories come by PYTHONPATH. -P: the daemon's current directory is no place to import from."""
    return os.posix_spawn(
        executable,
        [executable, "-S", "-P", *arguments],
        environment(),
        file_actions=file_actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD),
    )


async def read_line(fd: int) -> bytes:
    """What a pipe gives up to the first line end or its end."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    line = bytearray()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        while not line.endswith(b"\n"):
            await readable.wait()
            readable.clear()
            with contextlib.suppress(BlockingIOError):
                piece = os.read(fd, 65536)
                if not piece:
                    break
                line += piece
    finally:
        loop.remove_reader(fd)
    return bytes(line)


def ready_answer(line: bytes, directory: Path) -> str | HvdError:
    """What the runner said of its start: the guest's state, empty when it did not say, or why there is none."""
    try:
        answer = json.loads(line)
        if answer.get("ok") is True:
            return str(answer.get("state", ""))
        return HvdError(answer["error"], **answer["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        # It ended before it could speak: its log's last line is usually the exception.
        problem = log_tail(directory) or "it ended without a word"
        return HvdError("RUNNER_START_FAILED", problem=problem, log=directory / RUNNER_LOG)


def log_tail(directory: Path) -> str:
    """The last line of the runner's log; empty when it said nothing."""
    try:
        with open(directory / RUNNER_LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def find(directory: Path) -> tuple[int, int]:
    """(pid, pidfd) of the runner that the directory names. Raises HvdError RUNNER_GONE: none, ended, or another
    process now; RUNNER_PROTOCOL."""
    pid_file = read_json(str(directory / PID))
    if pid_file is None:
        raise HvdError("RUNNER_GONE", problem="its directory has no pid file")
    pid, start, boot = (pid_file.get(key) for key in ("pid", "start_time", "boot_id"))
    if boot != boot_id():
        raise HvdError("RUNNER_GONE", problem="the host was started anew since")
    if not isinstance(pid, int) or pid <= 0:
        raise HvdError("RUNNER_GONE", problem=f"its pid file names process {pid!r}")
    check_protocol(pid_file)
    # First the descriptor, then the check: what the descriptor names cannot be replaced after it.
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError, OSError) as error:
        raise HvdError("RUNNER_GONE", problem=f"process {pid} does not exist any more") from error
    if process_start_time(pid) != start:
        os.close(pidfd)
        raise HvdError("RUNNER_GONE", problem=f"process {pid} is another one now, or has ended")
    return pid, pidfd


def check_protocol(pid_file: Mapping[str, Any]) -> None:
    """Do we speak with the runner that wrote it? Raises HvdError RUNNER_PROTOCOL."""
    versions = pid_file.get("protocol", [1, 1])
    if not (isinstance(versions, list) and len(versions) == 2 and all(isinstance(version, int) for version in versions)):
        versions = [1, 1]
    oldest, newest = versions
    if oldest > PROTOCOL or newest < PROTOCOL_OLDEST:
        raise HvdError("RUNNER_PROTOCOL", theirs=f"{oldest} to {newest}", ours=f"{PROTOCOL_OLDEST} to {PROTOCOL}")


def file_error(error: OSError, directory: Path) -> HvdError:
    """A file of the guest's directory that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HvdError("DISK_FULL", directory=directory, what="the guest's directory")
    return HvdError("RUNNER_START_FAILED", problem=str(error), log=directory / RUNNER_LOG)
