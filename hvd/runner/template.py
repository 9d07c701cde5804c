"""The template: a process that has imported all that a runner needs and makes runners by forking itself.

Importing takes many times longer than starting a guest, and its memory would be every runner's own; forked, the pages
are shared until they are written. The daemon has one template for each backend with a runner (hvd.runner.process). It
has one thread, no state of a guest, and ends when the daemon does; its runners go on. Once it has been used, it keeps
a spare (hvd.runner.spare).

    python -m hvd.runner.template BACKEND          with a SEQPACKET socket as descriptor 3, one JSON object a packet
    {"start": DIRECTORY, "own_pids": in a PID namespace of its own, "memory_bytes": of its guest}
        + descriptor to write to when it is ready, and those of its network cards
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
import select
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from hvd.jail.pids import own_pids
from hvd.runner.directory import RUNNER_LOG
from hvd.runner.inheritance import MOST_DESCRIPTORS, READY_FD, inherit

if TYPE_CHECKING:
    from hvd.runner.spare import Spare

SOCKET_FD = 3
PACKET_BYTES = 8192


def serve(backend: str) -> None:
    """Until the daemon closes its end."""
    template = Template(backend)
    connection = socket.socket(fileno=SOCKET_FD)
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    while True:
        if not waiting.poll(template.delay()):
            template.make_spare()
            continue
        data, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1 + MOST_DESCRIPTORS)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            connection.send(json.dumps({"status": status}).encode())
            continue
        try:
            pid = template.start(request["start"], descriptors, request["own_pids"], request["memory_bytes"])
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            connection.send(json.dumps({"errno": error.errno or errno.EIO, "problem": error.strerror}).encode())
        else:
            socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [pidfd])
            os.close(pidfd)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


class Template:
    """What is loaded, and the spare."""

    def __init__(self, backend: str) -> None:
        """Loads everything that each runner would import and load, even what it needs only once somebody talks to it."""
        self._backend = backend
        self._runner = importlib.import_module("hvd.runner.__main__")
        self._runner.preload(backend)
        self._runner.introduce("template")
        self._spares = importlib.import_module("hvd.runner.spare")
        self._ahead = importlib.import_module("hvd.runner.ahead")
        self._memory_bytes = 0  # of the guest that was started last
        self._spare: Spare | None = None
        self._spare_wanted: bool | None = None  # with PIDs of its own, or without; None = none is wanted
        # What is there now is there for ever: the collector's marks would only unshare its pages.
        gc.collect()
        gc.freeze()

    def delay(self) -> float | None:
        """Milliseconds until make_spare() shall be called, unless there is something to do before; None = not at all."""
        return None if self._spare_wanted is None else self._spares.IDLE_SECONDS * 1000

    def make_spare(self) -> None:
        own, self._spare_wanted = bool(self._spare_wanted), None
        part = self._spares.Part(self._rehearse, lambda: self._runner.introduce("spare"), self._become, [SOCKET_FD])
        with contextlib.suppress(OSError):  # nothing depends on it; the next start tries again
            self._spare = self._spares.Spare(own, part)

    def start(self, directory: str, descriptors: Sequence[int], own: bool, memory_bytes: int) -> int:
        """The pid of the runner. memory_bytes: of its guest; the next one will often have as much. Raises OSError."""
        self._memory_bytes = memory_bytes
        log = os.open(os.path.join(directory, RUNNER_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            spare, self._spare = self._spare, None
            self._spare_wanted = own
            if spare is not None and spare.own != own:
                spare.end()
            elif spare is not None and (pid := spare.start(directory, [log, *descriptors])) is not None:
                return pid
            with own_pids(own):
                pid = os.fork()
                if pid == 0:
                    self._become(directory, [log, *descriptors])
            return pid
        finally:
            os.close(log)

    def _rehearse(self) -> None:
        create_vcpu = self._runner.find_vcpu(self._backend)
        self._spares.rehearse(self._backend, create_vcpu)
        self._ahead.make(self._backend, self._memory_bytes, create_vcpu)

    def _become(self, directory: str, descriptors: Sequence[int]) -> NoReturn:
        code = 1
        try:
            log, *given = descriptors
            os.dup2(log, 1)
            os.dup2(log, 2)
            # The template's connection goes with this.
            inherit(given)
            code = self._runner.main([directory, str(READY_FD), str(len(given) - 1)])
        except BaseException as error:  # noqa: BLE001  nothing of the runner may run on as a template
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    # The daemon may die while it is answered; whatever was forked goes on, and the next daemon finds it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(sys.argv[1])
