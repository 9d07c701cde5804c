"""A debugging session: gdb's remote protocol as bytes, both ways (InspectService.Debug)."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hvapi.v1 import inspect_pb2

from hvctl.sdk.calls import Calls

if TYPE_CHECKING:
    from hvctl.sdk.aio import AsyncClient, AsyncStream
    from hvctl.sdk.client import Client
    from hvctl.sdk.streams import Stream

# What write() takes ahead of the connection.
WRITES_AHEAD = 64


class DebugSession:
    """Stops the guest; iterate for what its stub says, write() what a debugger says. `with` or close() detaches: the guest
    goes on without breakpoints. The iteration ends when the stub ends the session (the debugger detached, the guest ended).
    """

    def __init__(self, client: Client, setup: inspect_pb2.DebugSetup, timeout: float | None) -> None:
        from hvctl.sdk.streams import Stream

        call = Calls.__dict__["_debug"]
        self._requests: queue.Queue[inspect_pb2.DebugRequest | None] = queue.Queue(WRITES_AHEAD)
        self._requests.put(inspect_pb2.DebugRequest(setup=setup))
        self._closed = False
        invoke = client.channel.stream_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        self._frames: Stream[inspect_pb2.DebugResponse] = Stream(
            invoke(self._sent(), timeout=timeout), client.endpoint, call.method
        )
        try:
            first = next(self._frames)
        except BaseException:
            self.close()
            raise
        self.architecture: str = first.attached.architecture
        self.symbols: str = first.attached.symbols

    def _sent(self) -> Iterator[inspect_pb2.DebugRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def __iter__(self) -> Iterator[bytes]:
        return (frame.data for frame in self._frames)

    def write(self, data: bytes) -> None:
        """Waits while much of what was written before is still on its way. Nothing happens once it is closed."""
        request = inspect_pb2.DebugRequest(data=data)
        while not self._closed:
            try:
                self._requests.put(request, timeout=0.5)
                return
            except queue.Full:  # the connection is slow, or has ended
                continue

    def close(self) -> None:
        """Detach; from any thread."""
        self._closed = True
        self._frames.cancel()
        # Whoever takes the requests is told, even if it takes no more of them: one makes room.
        for _ in range(2):
            try:
                self._requests.put_nowait(None)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._requests.get_nowait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncDebugSession:
    """DebugSession for asyncio; `async with` begins it."""

    def __init__(self, client: AsyncClient, setup: inspect_pb2.DebugSetup, timeout: float | None) -> None:
        from hvctl.sdk.aio import AsyncStream

        call = Calls.__dict__["_debug"]
        invoke = client.channel.stream_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        self.architecture = ""
        self.symbols = ""
        self._setup = setup
        self._stream: AsyncStream[inspect_pb2.DebugResponse] = AsyncStream(
            invoke(timeout=timeout), client.endpoint, call.method
        )

    async def __aenter__(self) -> Self:
        try:
            await self._stream.write(inspect_pb2.DebugRequest(setup=self._setup))
            first = await anext(self._stream)
        except BaseException:
            self._stream.cancel()
            raise
        self.architecture, self.symbols = first.attached.architecture, first.attached.symbols
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.cancel()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for frame in self._stream:
            yield frame.data

    async def write(self, data: bytes) -> None:
        await self._stream.write(inspect_pb2.DebugRequest(data=data))
