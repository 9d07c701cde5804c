"""The debug socket of a runner: gdb's remote protocol, one debugger at a time (hvd.debug has what is said there).

The main thread moves bytes; packets are answered in the vcpu thread, one after the other. A debugger that goes away in the
middle of anything has detached: its breakpoints go, and the guest goes on if the debugger had stopped it.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from hvd.board.end import End
from hvd.board.machine import Machine
from hvd.debug.registers import ARCHITECTURES
from hvd.debug.rsp import Interrupt, Link
from hvd.debug.stub import Stub, error
from hvd.errors import HvdError

MOST_CONNECTIONS = 8
GREETING_BYTES = 4096
RECEIVE_BYTES = 1 << 16
# Packets that wait for the vcpu thread, and bytes for the debugger; with more nothing is read from it.
MOST_PACKETS = 64
MOST_UNSENT = 1 << 20
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

Post = Callable[[Callable[[], None]], None]


class _Session:
    """One connection. Its stub belongs to the vcpu thread, everything else to the selector's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.events = 0
        self.closed = False
        self.greeting: bytearray | None = bytearray()  # as far as it has come; None = it is complete
        self.to_send = bytearray()
        self.packets: deque[bytes] = deque()
        self.busy = False  # the stub works on a packet, or attaches
        self.last = False  # close when everything is sent
        self.link = Link()
        self.stub: Stub | None = None


class DebugServer:
    """Serves connections; belongs to the thread of the selector."""

    def __init__(
        self, selector: selectors.BaseSelector, machine: Machine, post: Post, kill: Callable[[], None]
    ) -> None:
        """post: run a function in the selector's thread, callable from any thread. kill: end the guest, in that thread."""
        self._selector = selector
        self._machine = machine
        self._post = post
        self._kill = kill
        self._sessions: set[_Session] = set()

    def accept(self, sock: socket.socket) -> None:
        """Serve a new connection."""
        if len(self._sessions) >= MOST_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        session = _Session(sock)
        self._sessions.add(session)
        self._watch(session)

    def ended(self, end: End) -> None:
        """The guest is no more: tell the debugger, and let it go."""
        for session in tuple(self._sessions):
            if session.stub is not None:
                session.link.send(session.stub.ended(end))
            session.last = True
            self._send(session)

    @property
    def waiting(self) -> bool:
        """Is there anything that has not left yet?"""
        return any(session.to_send for session in self._sessions)

    # ---- connections

    def _event(self, session: _Session, events: int) -> None:
        if events & WRITE:
            self._send(session)
        if events & READ and not session.closed:
            self._receive(session)

    def _receive(self, session: _Session) -> None:
        try:
            data = session.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(session)
            return
        if session.greeting is not None:
            data = self._greeted(session, session.greeting, data)
        if not session.closed and data:
            self._feed(session, data)

    def _greeted(self, session: _Session, greeting: bytearray, data: bytes) -> bytes:
        """What stands behind the greeting."""
        greeting += data
        line, end, rest = bytes(greeting).partition(b"\n")
        if len(line) > GREETING_BYTES:
            self._drop(session)
        elif end:
            session.greeting = None
            self._attach(session, _architecture(line))
            return rest
        return b""

    def _attach(self, session: _Session, architecture: str) -> None:
        def send(packet: bytes) -> None:
            self._post(lambda: self._packet(session, packet))

        stub = Stub(self._machine, architecture, send, lambda: self._post(self._kill))

        def done(result: Any, problem: HvdError | None) -> None:
            self._post(lambda: self._attached(session, stub, problem))

        session.busy = True
        self._machine.call(stub.attach, done)

    def _attached(self, session: _Session, stub: Stub, problem: HvdError | None) -> None:
        session.busy = False
        if problem is not None:
            answer: dict[str, Any] = {"error": problem.reason, "metadata": problem.metadata}
            session.last = True
        else:
            answer = {"architecture": stub.architecture}
            session.stub = stub
        if session.closed:  # it did not wait
            self._leave(session)
            return
        session.to_send += json.dumps(answer).encode() + b"\n"
        self._send(session)
        self._advance(session)

    def _feed(self, session: _Session, data: bytes) -> None:
        events = session.link.feed(data)
        session.packets.extend(event for event in events if not isinstance(event, Interrupt))
        # Once, however often it was pressed. It does not wait for the packets: it is what ends waiting.
        if session.stub is not None and any(isinstance(event, Interrupt) for event in events):
            self._machine.call(session.stub.interrupt, lambda result, problem: None)
        self._send(session)
        self._advance(session)

    def _advance(self, session: _Session) -> None:
        """Give the stub the next packet, if it is free."""
        stub = session.stub
        if session.busy or session.closed or stub is None or not session.packets:
            return
        if len(session.to_send) >= MOST_UNSENT:  # _send goes on from here
            return
        packet = session.packets.popleft()
        session.busy = True

        def done(result: Any, problem: HvdError | None) -> None:
            self._post(lambda: self._answered(session, problem))

        self._machine.call(lambda: stub.handle(packet), done)

    def _answered(self, session: _Session, problem: HvdError | None) -> None:
        session.busy = False
        if problem is not None and problem.reason != "RUNNER_GONE":
            session.link.send(error(1))
        if session.stub is not None:
            # From the next packet on: the answer that allows it is still acknowledged.
            session.link.acknowledges = session.stub.acknowledges
            session.last |= session.stub.over
        self._send(session)
        self._advance(session)
        self._watch(session)

    def _packet(self, session: _Session, packet: bytes) -> None:
        """One of the stub's."""
        session.link.send(packet)
        self._send(session)

    def _send(self, session: _Session) -> None:
        if session.closed:
            return
        if session.greeting is None:
            session.to_send += session.link.to_send
            session.link.to_send.clear()
        try:
            while session.to_send:
                del session.to_send[: session.sock.send(session.to_send, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(session)
            return
        if session.last and not session.to_send:
            self._drop(session)
            return
        self._watch(session)
        if session.packets and not session.busy:
            self._post(lambda: self._advance(session))

    def _watch(self, session: _Session) -> None:
        if session.closed:
            return
        full = len(session.packets) >= MOST_PACKETS or len(session.to_send) >= MOST_UNSENT or session.last
        events = (0 if full else READ) | (WRITE if session.to_send else 0)
        if events == session.events:
            return
        if session.events:
            self._selector.unregister(session.sock)
        if events:
            self._selector.register(session.sock, events, lambda ready: self._event(session, ready))
        session.events = events

    def _drop(self, session: _Session) -> None:
        if session.closed:
            return
        session.closed = True
        if session.events:
            self._selector.unregister(session.sock)
            session.events = 0
        session.sock.close()
        self._sessions.discard(session)
        if not session.busy or session.stub is not None:
            self._leave(session)

    def _leave(self, session: _Session) -> None:
        """It has gone without a word, or after one: the guest is let go either way."""
        if session.stub is not None:
            self._machine.call(session.stub.detach, lambda result, problem: None)


def _architecture(line: bytes) -> str:
    """What the greeting asks for; empty for anything else than one of ours."""
    with contextlib.suppress(ValueError):
        document = json.loads(line)
        if isinstance(document, dict) and document.get("architecture") in ARCHITECTURES:
            return str(document["architecture"])
    return ""
