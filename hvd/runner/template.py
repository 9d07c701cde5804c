"""The template: a process that has imported all that a runner needs and makes runners by forking itself.

Importing takes many times longer than starting a guest, and its memory would be every runner's own; forked, the pages
are shared until they are written. The daemon has one template for each backend with a runner (hvd.runner.process). It
has one thread, no state of a guest, and ends when the daemon does; its runners go on. Once it has been used, it keeps
spares (hvd.runner.spare).

    python -m hvd.runner.template BACKEND          with a SEQPACKET socket as descriptor 3, one JSON object a packet
    {"start": DIRECTORY, "own_pids": in a PID namespace of its own, "likeness": of its guest (hvd.runner.likeness),
     "spares": how many to keep}
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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from hvd.jail.pids import own_pids
from hvd.runner.directory import RUNNER_LOG
from hvd.runner.inheritance import MOST_DESCRIPTORS, READY_FD, inherit
from hvd.runner.likeness import Likeness

if TYPE_CHECKING:
    from hvd.runner.spare import Spare

SOCKET_FD = 3
PACKET_BYTES = 8192


def serve(backend: str) -> None:
    """Until the daemon closes its end."""
    template = Template(backend)
    connection = socket.socket(fileno=SOCKET_FD)
    while True:
        template.wait(connection)
        data, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1 + MOST_DESCRIPTORS)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            connection.send(json.dumps({"status": status}).encode())
            continue
        try:
            pid = template.start(request["start"], descriptors, request["own_pids"], request["likeness"], request["spares"])
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
    """What is loaded, and the spares."""

    def __init__(self, backend: str) -> None:
        """Loads everything that each runner would import and load, even what it needs only once somebody talks to it."""
        self._backend = backend
        self._runner = importlib.import_module("hvd.runner.__main__")
        self._runner.preload(backend)
        self._runner.introduce("template")
        self._module = importlib.import_module("hvd.runner.spare")
        self._ahead = importlib.import_module("hvd.runner.ahead")
        self._likeness = Likeness(0)  # of the guest that was started last
        self._spares: list[Spare] = []  # ready, the oldest first
        self._most = 0  # of them
        self._coming: Spare | None = None
        self._wanted: bool | None = None  # are more, with PIDs of their own or without; None = none is
        # What is there now is there for ever: the collector's marks would only unshare its pages.
        gc.collect()
        gc.freeze()

    def wait(self, connection: socket.socket) -> None:
        """Until something is asked. When nothing has been for a moment spares are made, one after the other: each keeps a processor busy."""
        pause = self._module.IDLE_SECONDS
        while True:
            waiting = select.poll()
            waiting.register(connection, select.POLLIN)
            if self._coming is not None:
                waiting.register(self._coming, select.POLLIN)
            found = waiting.poll(None if self._wanted is None or self._coming is not None else pause * 1000)
            if any(number == connection.fileno() for number, _ in found):
                return
            if found:
                self._receive_spare()
            else:
                self._make_spare()
            pause = 0.0

    def _make_spare(self) -> None:
        own = bool(self._wanted)
        closed = [SOCKET_FD, *(spare.fileno() for spare in self._spares)]
        part = self._module.Part(self._rehearse, lambda: self._runner.introduce("spare"), self._become, closed)
        try:
            self._coming = self._module.Spare(own, self._likeness, part)
        except OSError:
            self._wanted = None  # nothing depends on it; after the next start it is tried again

    def _receive_spare(self) -> None:
        """The one that is coming is ready, not yet, or has failed, as the next might."""
        if self._coming is None or (ready := self._coming.is_ready()) is None:
            return
        spare, self._coming = self._coming, None
        if ready:
            self._spares.append(spare)
        else:
            spare.end()
        if not ready or len(self._spares) >= self._most:
            self._wanted = None

    def start(self, directory: str, descriptors: Sequence[int], own: bool, document: Mapping[str, Any], spares: int) -> int:
        """The pid of the runner. document: of its guest's likeness; the next one will often have the same. spares: to be kept. Raises OSError."""
        self._likeness, self._most = Likeness(**document), spares
        log = os.open(os.path.join(directory, RUNNER_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._receive_spare()
            self._wanted = own if spares else None
            while (spare := self._best_spare(own)) is not None:
                if (pid := spare.start(directory, [log, *descriptors])) is not None:
                    return pid
            with own_pids(own):
                pid = os.fork()
                if pid == 0:
                    self._become(directory, [log, *descriptors])
            return pid
        finally:
            os.close(log)

    def _best_spare(self, own: bool) -> Spare | None:
        """One whose machine fits, before others; it is not kept. None: there is none."""
        for other in [spare for spare in self._spares if spare.own != own]:
            self._spares.remove(other)
            other.end()
        best = min(self._spares, key=lambda spare: spare.likeness.strangeness(self._likeness), default=None)
        if best is not None:
            self._spares.remove(best)
        return best

    def _rehearse(self) -> None:
        create_vcpu = self._runner.find_vcpu(self._backend)
        self._module.rehearse(self._backend, create_vcpu)
        self._ahead.make(self._backend, self._likeness, create_vcpu)

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
