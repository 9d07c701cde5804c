"""The template: a process that has imported all that a runner needs and makes runners by forking itself.

Importing takes many times longer than starting a guest, and its memory would be every runner's own; forked, the pages
are shared until they are written. The daemon has one template for each backend with a runner (hvd.runner.process). It
has one thread, no state of a guest, and ends when the daemon does; its runners go on.

    python -m hvd.runner.template BACKEND          with a SEQPACKET socket as descriptor 3, one JSON object a packet
    {"start": DIRECTORY, "own_pids": in a PID namespace of its own} + descriptor to write to when it is ready, and those of its network cards
                                                                    ->  {"pid": N} + pidfd, or {"errno": N, "problem"}
    {"reap": PID}, once that runner has ended                       ->  {"status": N}, as of waitpid(2)
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from hvd.jail.pids import own_pids
from hvd.runner.directory import RUNNER_LOG
from hvd.runner.inheritance import MOST_DESCRIPTORS, READY_FD, inherit

SOCKET_FD = 3
PACKET_BYTES = 8192


def serve(backend: str) -> None:
    """Until the daemon closes its end."""
    runner_main = _preload(backend)
    connection = socket.socket(fileno=SOCKET_FD)
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1 + MOST_DESCRIPTORS)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            connection.send(json.dumps({"status": status}).encode())
            continue
        try:
            with own_pids(request["own_pids"]):
                pid = _fork(request["start"], descriptors, runner_main)
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            connection.send(json.dumps({"errno": error.errno or errno.EIO, "problem": error.strerror}).encode())
        else:
            socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [pidfd])
            os.close(pidfd)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _preload(backend: str) -> Callable[[list[str]], int]:
    """Everything that each runner would import and load, even what it needs only once somebody talks to it."""
    main = importlib.import_module("hvd.runner.__main__")
    main.preload(backend)
    main.introduce("template")
    # What is there now is there for ever: the collector's marks would only unshare its pages.
    gc.collect()
    gc.freeze()
    runner_main: Callable[[list[str]], int] = main.main
    return runner_main


def _fork(directory: str, descriptors: list[int], runner_main: Callable[[list[str]], int]) -> int:
    log = os.open(os.path.join(directory, RUNNER_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        pid = os.fork()
        if pid == 0:
            _become_runner(directory, descriptors, log, runner_main)
    finally:
        os.close(log)
    return pid


def _become_runner(
    directory: str, descriptors: list[int], log: int, runner_main: Callable[[list[str]], int]
) -> NoReturn:
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Its own connection goes with this.
        inherit(descriptors)
        code = runner_main([directory, str(READY_FD), str(len(descriptors) - 1)])
    except BaseException as error:  # noqa: BLE001  nothing of the runner may run on as a template
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # The daemon may die while it is answered; whatever was forked goes on, and the next daemon finds it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(sys.argv[1])
