"""Another program in a running guest (GuestService.ExecGuest)."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from google.protobuf import empty_pb2
from hvapi.v1 import guest_pb2

from hvctl.sdk.calls import Calls

if TYPE_CHECKING:
    from hvctl.sdk.aio import AsyncClient, AsyncStream
    from hvctl.sdk.client import Client
    from hvctl.sdk.streams import Stream

STDOUT, STDERR = 1, 2


class Execution:
    """Iterate for (1 or 2, what the program wrote to standard output or error); then `exit_code` is its. write() is its
    standard input, end_input() the end of that. `with` or close() kills what still runs of it."""

    def __init__(self, client: Client, setup: guest_pb2.ExecSetup, timeout: float | None) -> None:
        from hvctl.sdk.streams import Stream

        call = Calls.__dict__["_exec_guest"]
        # SimpleQueue.put is reentrant: resize() may be called from a signal handler.
        self._requests: queue.SimpleQueue[guest_pb2.ExecGuestRequest | None] = queue.SimpleQueue()
        self._requests.put(guest_pb2.ExecGuestRequest(setup=setup))
        invoke = client.channel.stream_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        self._frames: Stream[guest_pb2.ExecGuestResponse] = Stream(
            invoke(self._sent(), timeout=timeout), client.endpoint, call.method
        )
        self.exit_code: int | None = None
        try:
            self.host_pid = next(self._frames).started.host_pid
        except BaseException:
            self.close()
            raise

    def _sent(self) -> Iterator[guest_pb2.ExecGuestRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for frame in self._frames:
            match frame.WhichOneof("frame"):
                case "output":
                    yield STDOUT, frame.output
                case "error_output":
                    yield STDERR, frame.error_output
                case "ended":
                    self.exit_code = frame.ended.exit_code
                    return

    def write(self, data: bytes) -> None:
        self._requests.put(guest_pb2.ExecGuestRequest(input=data))

    def end_input(self) -> None:
        self._requests.put(guest_pb2.ExecGuestRequest(input_end=empty_pb2.Empty()))

    def resize(self, rows: int, columns: int) -> None:
        self._requests.put(guest_pb2.ExecGuestRequest(size=guest_pb2.ConsoleSize(rows=rows, columns=columns)))

    def close(self) -> None:
        self._requests.put(None)
        self._frames.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncExecution:
    """Execution for asyncio; `async with` starts the program."""

    def __init__(self, client: AsyncClient, setup: guest_pb2.ExecSetup, timeout: float | None) -> None:
        from hvctl.sdk.aio import AsyncStream

        call = Calls.__dict__["_exec_guest"]
        invoke = client.channel.stream_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        self.exit_code: int | None = None
        self.host_pid = 0
        self._setup = setup
        self._stream: AsyncStream[guest_pb2.ExecGuestResponse] = AsyncStream(
            invoke(timeout=timeout), client.endpoint, call.method
        )

    async def __aenter__(self) -> Self:
        try:
            await self._stream.write(guest_pb2.ExecGuestRequest(setup=self._setup))
            self.host_pid = (await anext(self._stream)).started.host_pid
        except BaseException:
            self._stream.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        async for frame in self._stream:
            match frame.WhichOneof("frame"):
                case "output":
                    yield STDOUT, frame.output
                case "error_output":
                    yield STDERR, frame.error_output
                case "ended":
                    self.exit_code = frame.ended.exit_code
                    return

    async def write(self, data: bytes) -> None:
        await self._stream.write(guest_pb2.ExecGuestRequest(input=data))

    async def end_input(self) -> None:
        await self._stream.write(guest_pb2.ExecGuestRequest(input_end=empty_pb2.Empty()))

    async def resize(self, rows: int, columns: int) -> None:
        size = guest_pb2.ConsoleSize(rows=rows, columns=columns)
        await self._stream.write(guest_pb2.ExecGuestRequest(size=size))
