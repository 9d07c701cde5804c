"""Debug: the bytes of gdb's remote protocol between a client and the guest's stub, and the guest's end as the stream's.

The stream is the session: when it ends, whichever way, the debugger has left and the guest goes on without breakpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from hvapi.v1 import inspect_pb2

from hvd.backends.contract import Capability, DebugConnection
from hvd.errors import HvdError
from hvd.guests.supervisor import Supervisor

Request = inspect_pb2.DebugRequest
Response = inspect_pb2.DebugResponse
ARCHITECTURES = ("", "i386", "i386:x86-64", "i8086")
MOST_FRAME_BYTES = 1 << 20
# What waits for a slow client; with more the stub is not read.
PENDING_FRAMES = 16


async def debug(supervisor: Supervisor, requests: AsyncIterator[Request]) -> AsyncGenerator[Response]:
    """Raises HvdError GUEST_NOT_FOUND, GUEST_WRONG_STATE, CAPABILITY_MISSING, DEBUGGER_ATTACHED, REQUEST_INVALID,
    FIELD_INVALID.
    """
    setup = await _setup(requests)
    life = supervisor.get(setup.name)
    instance = life.reachable("gdb", Capability.DEBUG)
    async with instance.attach_debugger(setup.architecture) as connection:
        attached = inspect_pb2.DebugAttached(
            symbols=supervisor.symbols_of(life.guest), architecture=connection.architecture
        )
        yield Response(attached=attached)
        # Bytes of the stub, an exception = what ended it, None = the stub ended the session.
        frames: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(PENDING_FRAMES)
        tasks = [
            asyncio.create_task(_listen(connection, frames)),
            asyncio.create_task(_speak(connection, requests, frames)),
        ]
        try:
            while (frame := await frames.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield Response(data=frame)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _setup(requests: AsyncIterator[Request]) -> inspect_pb2.DebugSetup:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("frame") != "setup":
        raise HvdError(
            "REQUEST_INVALID", problem="the first frame of Debug is no setup", remedy="send setup with the name first"
        )
    if first.setup.architecture not in ARCHITECTURES:
        raise HvdError(
            "FIELD_INVALID",
            field="setup.architecture",
            value=repr(first.setup.architecture[:40]),
            problem="is unknown",
            remedy=f"use {', '.join(ARCHITECTURES[1:])}, or leave it out",
        )
    return first.setup


async def _listen(connection: DebugConnection, frames: asyncio.Queue[bytes | Exception | None]) -> None:
    while data := await connection.read():
        await frames.put(data)
    await frames.put(None)


async def _speak(
    connection: DebugConnection, requests: AsyncIterator[Request], frames: asyncio.Queue[bytes | Exception | None]
) -> None:
    """A client that closes its side has left."""
    try:
        async for request in requests:
            if request.WhichOneof("frame") != "data" or len(request.data) > MOST_FRAME_BYTES:
                raise HvdError(
                    "REQUEST_INVALID",
                    problem="a later frame of Debug is no data, or has too much of it",
                    remedy=f"send setup once, first, and then data of at most {MOST_FRAME_BYTES} bytes a frame",
                )
            await connection.write(request.data)
        await frames.put(None)
    except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
        await frames.put(error)
