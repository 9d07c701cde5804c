"""The daemon's end of a console that is closed while somebody waits for it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from hvd.runner.console_client import close_watched


async def test_a_socket_that_is_closed_while_it_is_waited_for_leaves_its_number_alone() -> None:
    """Its reader and its writer are cancelled, and another socket has its number when they come to that."""
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    one, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    reader = asyncio.create_task(loop.sock_recv(one, 10))

    async def write() -> None:
        while True:  # until nothing more goes in
            await loop.sock_sendall(one, b"x" * 1000)

    writer = asyncio.create_task(write())
    await asyncio.sleep(0)  # both wait now
    number = one.fileno()
    made, its_peer = socket.socketpair()
    reader.cancel()
    writer.cancel()
    close_watched(one)
    os.dup2(made.fileno(), number)
    made.close()
    other = socket.socket(fileno=number)
    other.setblocking(False)
    heard = asyncio.create_task(loop.sock_recv(other, 10))
    results = await asyncio.gather(reader, writer, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    its_peer.send(b"hello")
    assert await asyncio.wait_for(heard, 60) == b"hello" and not problems
    for each in (peer, other, its_peer):
        each.close()
