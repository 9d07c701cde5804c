"""RunnerConsole: the daemon's end of a runner's attach socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from hvd.backends.contract import ConsoleAttachment
from hvd.errors import HvdError
from hvd.runner.directory import (
    ATTACH,
    ATTACH_PACKET,
    LOG_POSITION,
    MOST_LOG_FILES,
    STREAM_LOG,
    STREAM_SKIPPED,
    LogPosition,
)
from hvd.runner.protocol import socket_path

# A runner that lives greets within this time, or it hangs.
ATTACH_SECONDS = 10.0


class RunnerConsole(ConsoleAttachment):
    """A viewer on the attach socket. Entering raises HvdError RUNNER_GONE, RUNNER_TIMEOUT."""

    def __init__(self, directory: Path, read_only: bool) -> None:
        self._directory = directory
        self._read_only = read_only
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> RunnerConsole:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                with socket_path(self._directory, ATTACH) as path:
                    await asyncio.get_running_loop().sock_connect(sock, path)
                self.position = await _greeting(sock)
        except TimeoutError:
            sock.close()
            raise HvdError("RUNNER_TIMEOUT", call="attach", seconds=ATTACH_SECONDS) from None
        except OSError as error:
            sock.close()
            raise HvdError("RUNNER_GONE", problem=str(error)) from error
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.position is not None:
            for descriptor in self.position.descriptors:
                os.close(descriptor)
            self.position = None
        if self._socket is not None:
            close_watched(self._socket)
            self._socket = None

    @property
    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise HvdError("RUNNER_GONE", problem="the console is not attached")
        return self._socket

    async def output(self) -> AsyncIterator[bytes | int]:
        sock = self._open_socket
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(sock, ATTACH_PACKET)
            except ConnectionError:
                return
            if not packet:
                return
            yield int.from_bytes(packet[1:], "little") if packet[0] == STREAM_SKIPPED else packet[1:]

    async def write(self, data: bytes) -> None:
        """Waits while the guest does not read. Raises HvdError RUNNER_GONE, REQUEST_INVALID (read-only)."""
        if self._read_only:
            raise HvdError("REQUEST_INVALID", problem="this attachment is read-only", remedy="attach without read_only")
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), ATTACH_PACKET):
            try:
                await loop.sock_sendall(self._open_socket, data[at : at + ATTACH_PACKET])
            except ConnectionError as error:
                raise HvdError("RUNNER_GONE", problem="the guest has ended") from error


def close_watched(sock: socket.socket) -> None:
    """Also while somebody still waits for it, as those do whose cancellation has not come through yet: the loop looks at its number no more, which
    may be another socket's next."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(sock)
    loop.remove_writer(sock)
    sock.close()


async def _greeting(sock: socket.socket) -> LogPosition:
    """The runner's first packet. Raises OSError, HvdError RUNNER_GONE when there is none, or another one."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
    packet, descriptors, _, _ = socket.recv_fds(sock, ATTACH_PACKET, MOST_LOG_FILES, socket.MSG_CMSG_CLOEXEC)
    if len(packet) != LOG_POSITION.size or packet[0] != STREAM_LOG:
        for descriptor in descriptors:
            os.close(descriptor)
        raise HvdError("RUNNER_GONE", problem="it has closed its console" if not packet else "its console is another's")
    _, begin, end = LOG_POSITION.unpack(packet)
    return LogPosition(tuple(descriptors), begin, end)
