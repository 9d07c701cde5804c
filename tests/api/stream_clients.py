"""Clients of streams: one attached to a console, and patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from hvapi.v1 import guest_pb2

Attach = guest_pb2.AttachConsoleRequest
# Until something is called broken on a busy machine.
SECONDS = 60


async def until(condition: Callable[[], object]) -> None:
    """Polls for what no event announces."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


class Viewer:
    """A client attached to a console."""

    def __init__(self, stub: Any, name: str, **setup: Any) -> None:
        self.call = stub.AttachConsole()
        self.setup = guest_pb2.AttachConsoleSetup(name=name, **setup)
        self.seen = b""
        self.frames: list[guest_pb2.AttachConsoleResponse] = []

    async def __aenter__(self) -> Viewer:
        await self.call.write(Attach(setup=self.setup))
        first = await self.call.read()
        assert first.WhichOneof("frame") == "attached", first
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.call.cancel()

    async def frame(self) -> guest_pb2.AttachConsoleResponse:
        frame = await asyncio.wait_for(self.call.read(), SECONDS)
        assert frame is not grpc.aio.EOF
        self.frames.append(frame)
        self.seen += frame.output
        return frame

    async def until(self, text: bytes) -> None:
        while text not in self.seen:
            await self.frame()


async def rest(stream: Any) -> AsyncIterator[Any]:
    while (message := await stream.read()) is not grpc.aio.EOF:
        yield message
    if await stream.code() != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await stream.code(),
            await stream.initial_metadata(),
            await stream.trailing_metadata(),
            await stream.details(),
        )
