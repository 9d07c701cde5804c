"""What the tests of `hvctl gdb` share: a guest named "g", and a front end made by hand."""

from __future__ import annotations

import re

from hvctl.sdk import DebugSession
from real_daemon import RealDaemon, kernel


def start(daemon: RealDaemon, guest: str, *options: str, paused: bool = True) -> None:
    """A guest "g" that has not executed anything yet, if it is paused."""
    daemon.ok("create", "--name", "g", "--backend", "emulation", "--kernel", kernel(guest), "--memory", "16M", *options)
    daemon.ok("start", *(["--paused"] if paused else []), "g")


def state(daemon: RealDaemon) -> str:
    return str(daemon.show("g")["state"])


def conditions(daemon: RealDaemon) -> set[str]:
    return {condition["type"] for condition in daemon.show("g").get("conditions", [])}


class Remote:
    """A front end made by hand: packets over a session."""

    def __init__(self, session: DebugSession) -> None:
        self.session = session
        self._frames = iter(session)
        self._data = b""

    def send(self, payload: bytes) -> None:
        self.session.write(b"$%s#%02x" % (payload, sum(payload) & 0xFF))

    def packet(self) -> bytes:
        """The next one of the stub's."""
        while (found := re.search(rb"\$([^#]*)#..", self._data)) is None:
            self._data += next(self._frames)
        self._data = self._data[found.end() :]
        return found[1]

    def ask(self, payload: bytes) -> bytes:
        self.send(payload)
        return self.packet()
