"""Starting runners from the daemon: forked from a template, or alone."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hvd.jail.pids import own_pids
from hvd.runner import launch, template
from hvd.runner.likeness import Likeness
from hvd.runner.template import PACKET_BYTES, SOCKET_FD

# The first answer takes as long as the imports, on a busy host too: a template that is given up while it forks leaves a runner behind whose
# guest nobody knows, and which is in the way of the one that is started instead.
ANSWER_SECONDS = 20.0
NOTHING = Likeness(0)


class RunnerProcess(NamedTuple):
    """A runner that has been started. pidfd belongs to whoever has this; reap() gives its wait status once it has
    ended, None when somebody else has taken that."""

    pid: int
    pidfd: int
    reap: Callable[[], int | None]


class Template:
    """One template process, started when it is needed first. What it cannot do is done without it."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid = 0

    def warm(self) -> None:
        """Let it import, so that the first guest does not wait for that. Any thread."""
        with self._lock, contextlib.suppress(OSError):  # the first start tries again, and does without
            self._connection()

    def start(
        self, directory: Path, ready: int, cards: Sequence[int] = (), own: bool = False, likeness: Likeness = NOTHING, spares: int = 0
    ) -> RunnerProcess:
        """Raises OSError as posix_spawn would; the caller keeps its descriptors."""
        request = {"start": str(directory.absolute()), "own_pids": own, "likeness": likeness.document(), "spares": spares}
        if len(json.dumps(request)) > PACKET_BYTES:  # paths as long as paths can be
            request["likeness"] = Likeness(likeness.memory_bytes, likeness.engine).document()
        with self._lock:
            try:
                answer, descriptors = self._ask(request, ready, *cards)
                if "errno" not in answer:
                    pid = int(answer["pid"])
                    return RunnerProcess(pid, descriptors[0], functools.partial(self._reap, self._pid, pid))
            except (OSError, ValueError, LookupError):
                self._discard()  # it was killed, or never came up
                return launch_alone(directory, sys.executable, ready, cards, own)
        raise OSError(answer["errno"], answer["problem"])

    def _reap(self, parent: int, pid: int) -> int | None:
        with self._lock:
            if self._socket is None or self._pid != parent:
                return None  # with the template gone, init has reaped it
            try:
                return int(self._ask({"reap": pid})[0]["status"])
            except (OSError, ValueError, LookupError):
                self._discard()
                return None

    def _connection(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._pid = launch.spawn_python(
                    ["-m", template.__name__, self._backend],
                    [
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), SOCKET_FD),
                    ],
                    sys.executable,
                )
            ours.settimeout(ANSWER_SECONDS)
            self._socket = ours
        return self._socket

    def _ask(self, request: dict[str, Any], *descriptors: int) -> tuple[dict[str, Any], list[int]]:
        connection = self._connection()
        socket.send_fds(connection, [json.dumps(request).encode()], descriptors, socket.MSG_NOSIGNAL)
        try:
            data, received, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1)
        except TimeoutError:
            # If it did it a moment too late, the answer is there: dead, it does nothing any more.
            self._end()
            connection.setblocking(False)
            data, received, _, _ = socket.recv_fds(connection, PACKET_BYTES, 1)
        for descriptor in received:
            os.set_inheritable(descriptor, False)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the template has ended")
        answer: dict[str, Any] = json.loads(data)
        return answer, received

    def close(self) -> None:
        """End it; its runners go on."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended, and was reaped
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


@functools.cache
def template_of(backend: str) -> Template:
    """The one of this process, ended and reaped with it."""
    template = Template(backend)
    atexit.register(template.close)
    return template


def start_runner(
    backend: str, directory: Path, executable: str, ready: int, cards: Sequence[int] = (), own: bool = False, likeness: Likeness = NOTHING,
    spares: int = 0,
) -> RunnerProcess:  # fmt: skip
    """A runner in an existing directory, which writes to `ready` when its guest runs; by this Python, out of the
    template. cards: descriptors of its network cards (hvd.runner.inheritance). own: in a PID namespace of its own. spares:
    so many runners that the template keeps ready for other starts. Raises OSError."""
    if executable != sys.executable:
        return launch_alone(directory, executable, ready, cards, own)
    return template_of(backend).start(directory, ready, cards, own, likeness, spares)


def launch_alone(
    directory: Path, executable: str, ready: int, cards: Sequence[int] = (), own: bool = False
) -> RunnerProcess:
    """Without a template. Raises OSError."""
    with own_pids(own):
        pid = launch.spawn(directory, executable, ready, cards)

    def reap() -> int | None:
        with contextlib.suppress(ChildProcessError):  # somebody else has reaped it
            return os.waitpid(pid, os.WNOHANG)[1]
        return None

    return RunnerProcess(pid, os.pidfd_open(pid), reap)
