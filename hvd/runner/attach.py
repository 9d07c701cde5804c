"""The attach socket: viewers of the console. None of them can hold up the guest, the log or another viewer."""

from __future__ import annotations

import os
import select
import selectors
import socket
from collections import deque
from collections.abc import Callable

from hvd.runner.directory import (
    ATTACH_PACKET,
    LOG_POSITION,
    STREAM_LOG,
    STREAM_SKIPPED,
    STREAM_STDOUT,
    LogPosition,
)

# Output that waits for one viewer; beyond it output is skipped until half of it is read.
BACKLOG_BYTES = 256 << 10
MOST_VIEWERS = 64
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class _Viewer:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.packets: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.skipped = 0
        self.deaf = False  # it has gone, but what it typed has not been read yet
        self.events = 0


class AttachServer:
    """Listens and serves; belongs to the thread of the selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        on_input: Callable[[bytes], None],
        log_position: Callable[[], LogPosition],
    ) -> None:
        """The listener is a bound SOCK_SEQPACKET. on_input gets what viewers type. log_position: behind all that was
        given to output() so far."""
        self._selector = selector
        self._listener = listener
        self._on_input = on_input
        self._log_position = log_position
        self._viewers: set[_Viewer] = set()
        self._accepts_input = True
        listener.setblocking(False)
        selector.register(listener, READ, self._accept)

    def output(self, data: bytes) -> None:
        """Show the viewers what the guest wrote."""
        if not self._viewers:
            return
        step = ATTACH_PACKET - 1
        stream = bytes((STREAM_STDOUT,))
        packets = [stream + data[at : at + step] for at in range(0, len(data), step)]
        for viewer in tuple(self._viewers):
            if viewer.deaf:
                continue
            if viewer.skipped or viewer.waiting_bytes + len(data) > BACKLOG_BYTES:
                viewer.skipped += len(data)
                continue
            viewer.packets.extend(packets)
            viewer.waiting_bytes += len(data) + len(packets)
            self._send(viewer)

    def accept_input(self, accept: bool) -> None:
        """Stop reading from the viewers, or go on: what they type waits in their sockets."""
        if accept != self._accepts_input:
            self._accepts_input = accept
            for viewer in tuple(self._viewers):
                self._watch(viewer)

    @property
    def waiting(self) -> bool:
        """Does any viewer still have to read?"""
        return any(viewer.packets or viewer.skipped for viewer in self._viewers)

    def close(self) -> None:
        for viewer in tuple(self._viewers):
            self._drop(viewer)
        self._selector.unregister(self._listener)
        self._listener.close()

    # ---- events

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it has gone again, or there are no descriptors left: the guest does not care
            return
        if len(self._viewers) >= MOST_VIEWERS:
            self._drop_gone()
        if len(self._viewers) >= MOST_VIEWERS:
            sock.close()
            return
        sock.setblocking(False)
        viewer = _Viewer(sock)
        self._viewers.add(viewer)
        self._greet(viewer)
        self._watch(viewer)

    def _greet(self, viewer: _Viewer) -> None:
        position = self._log_position()
        packet = LOG_POSITION.pack(STREAM_LOG, position.begin, position.end)
        try:
            socket.send_fds(viewer.sock, [packet], position.descriptors, socket.MSG_NOSIGNAL)
        except OSError:
            viewer.deaf = True
        finally:
            for descriptor in position.descriptors:
                os.close(descriptor)

    def _drop_gone(self) -> None:
        """While the guest does not read, nobody reads from the viewers and so nobody sees who has left. What these have
        typed last is lost: their places are needed."""
        poll = select.poll()
        for viewer in self._viewers:
            poll.register(viewer.sock, 0)
        gone = {fd for fd, _ in poll.poll(0)}  # POLLHUP and POLLERR are always told
        for viewer in tuple(self._viewers):
            if viewer.sock.fileno() in gone:
                self._drop(viewer)

    def _event(self, viewer: _Viewer, events: int) -> None:
        if events & WRITE:
            self._send(viewer)
        if events & READ and viewer in self._viewers:
            self._receive(viewer)

    def _receive(self, viewer: _Viewer) -> None:
        try:
            data = viewer.sock.recv(ATTACH_PACKET)
        except BlockingIOError:
            return
        except ConnectionResetError:
            # It left output unread; said once, and what it typed comes after it.
            viewer.deaf = True
            return
        except OSError:
            data = b""
        if data:
            self._on_input(data)
        else:
            self._drop(viewer)

    def _send(self, viewer: _Viewer) -> None:
        try:
            while viewer.packets:
                viewer.sock.send(viewer.packets[0], socket.MSG_NOSIGNAL)
                viewer.waiting_bytes -= len(viewer.packets.popleft())
                if viewer.skipped and viewer.waiting_bytes < BACKLOG_BYTES // 2:
                    viewer.packets.append(bytes((STREAM_SKIPPED,)) + viewer.skipped.to_bytes(8, "little"))
                    viewer.waiting_bytes += 9
                    viewer.skipped = 0
        except BlockingIOError:
            pass
        except OSError:
            viewer.deaf = True
            viewer.packets.clear()
            viewer.waiting_bytes = viewer.skipped = 0
        self._watch(viewer)

    def _watch(self, viewer: _Viewer) -> None:
        events = (READ if self._accepts_input else 0) | (WRITE if viewer.packets else 0)
        if events == viewer.events:
            return
        if viewer.events:
            self._selector.unregister(viewer.sock)
        if events:
            self._selector.register(viewer.sock, events, lambda ready: self._event(viewer, ready))
        viewer.events = events

    def _drop(self, viewer: _Viewer) -> None:
        if viewer.events:
            self._selector.unregister(viewer.sock)
            viewer.events = 0
        viewer.sock.close()
        self._viewers.discard(viewer)
