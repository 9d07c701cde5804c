"""A container's console: conmon's attach socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from hvd.backends.contract import ConsoleAttachment
from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.runner.console_client import close_watched
from hvd.runner.protocol import socket_path


class ContainerConsole(ConsoleAttachment):
    """A viewer on conmon's attach socket: a packet is one byte stream (2 = stdout, 3 = stderr) and the output."""

    def __init__(self, directory: Path, read_only: bool, left: list[socket.socket] | None = None) -> None:
        """left: of a container whose standard input can be ended: where the sockets of viewers go that leave without
        ending it, since conmon takes a closed one for its end."""
        self._directory = directory
        self._left = left
        self._read_only = read_only
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> ContainerConsole:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with socket_path(self._directory, names.ATTACH) as path:
                await asyncio.get_running_loop().sock_connect(sock, path)
        except OSError as error:
            sock.close()
            raise HvdError("RUNNER_GONE", problem=str(error)) from error
        self._socket = sock
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._socket is None:
            return
        if self._left is None:
            close_watched(self._socket)
        else:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)  # conmon writes no more to it
            self._left.append(self._socket)
        self._socket = None

    @property
    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise HvdError("RUNNER_GONE", problem="the console is not attached")
        return self._socket

    async def output(self) -> AsyncIterator[bytes | int]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(self._open_socket, names.ATTACH_PACKET + 1)
            except ConnectionError:
                return
            if not packet:
                return
            yield packet[1:]

    async def write(self, data: bytes) -> None:
        if self._read_only:
            raise HvdError("REQUEST_INVALID", problem="this attachment is read-only", remedy="attach without read_only")
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), names.ATTACH_PACKET):
            try:
                await loop.sock_sendall(self._open_socket, data[at : at + names.ATTACH_PACKET])
            except ConnectionError as error:
                raise HvdError("RUNNER_GONE", problem="the container has ended") from error

    async def end_input(self) -> None:
        if self._left is not None and not self._read_only:
            with contextlib.suppress(OSError):  # it has ended
                self._open_socket.shutdown(socket.SHUT_WR)
