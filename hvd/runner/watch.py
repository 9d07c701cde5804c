"""Descriptors that bring something for the guest: the main thread waits for them, the vcpu thread serves them.

Each is armed for one event, so that a flood from outside costs the main thread one turn per service, however many
frames lie behind it. Arming is one system call and needs no turn of the main thread.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from hvd.errors import HvdError

Call = Callable[[Callable[[], Any], Callable[[Any, HvdError | None], None]], None]
MOST_AT_ONCE = 64


class Watches:
    """hvd.board.net.port.Watcher. call: hvd.board.machine.Machine.call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        """Readable while serve() has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int, ready: Callable[[], None]) -> _Watch:
        """Any thread."""
        self._ready[fd] = ready
        # A hang-up is told even to those who ask for nothing, but once is enough.
        self._epoll.register(fd, select.EPOLLONESHOT)
        return _Watch(self, fd)

    def serve(self) -> None:
        """In the main thread."""
        for fd, _ in self._epoll.poll(0, MOST_AT_ONCE):
            if (ready := self._ready.get(fd)) is not None:
                self._call(ready, _done)

    def wake(self) -> None:
        """Serve all as if they were ready: what arrived while the guest stood still was left where it was."""
        for ready in list(self._ready.values()):
            self._call(ready, _done)

    def arm(self, fd: int, readable: bool, writable: bool) -> None:
        if fd in self._ready:
            events = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
            self._epoll.modify(fd, events | select.EPOLLONESHOT)

    def forget(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)


class _Watch:
    def __init__(self, watches: Watches, fd: int) -> None:
        self._watches, self._fd = watches, fd

    def arm(self, readable: bool, writable: bool) -> None:
        self._watches.arm(self._fd, readable, writable)

    def close(self) -> None:
        self._watches.forget(self._fd)


def _done(result: Any, error: HvdError | None) -> None:
    """Machine.call has reported a bug in the runner's log already; an ended machine needs nothing."""
