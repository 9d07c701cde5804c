"""Channel: the daemon's end of a runner's control socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hvapi.runner.v1 import control_pb2

from hvd.errors import HvdError
from hvd.runner.directory import CONTROL
from hvd.runner.protocol import LENGTH_BYTES, FrameError, frame, frame_length, result_of, socket_path


class Channel:
    """A control connection, made when it is needed; one call at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._id = 0

    async def call(self, name: str, request: Any) -> Any:
        """Raises HvdError: the runner's own, RUNNER_GONE. When it is cancelled, the connection goes with the answer
        that nobody waits for."""
        async with self._lock:
            try:
                response = await self._exchange(name, request)
            except (OSError, EOFError, FrameError, DecodeError) as error:
                self.close()
                raise HvdError("RUNNER_GONE", problem=f"{type(error).__name__}: {error}") from error
            except asyncio.CancelledError:
                self.close()
                raise
        return result_of(response)

    async def _exchange(self, name: str, request: Any) -> control_pb2.RunnerResponse:
        if self._streams is None:
            with socket_path(self._directory, CONTROL) as path:
                self._streams = await asyncio.open_unix_connection(path)
        reader, writer = self._streams
        self._id += 1
        call: dict[str, Any] = {name: request}
        writer.write(frame(control_pb2.RunnerRequest(id=self._id, **call)))
        await writer.drain()
        length = frame_length(await reader.readexactly(LENGTH_BYTES))
        response = control_pb2.RunnerResponse.FromString(await reader.readexactly(length))
        if response.id != self._id:
            raise FrameError(f"an answer to request {response.id} instead of {self._id}")
        return response

    def close(self) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            # asyncio keeps the connection's end apart from what the reader was told, and complains when nobody asks for it.
            ending = asyncio.ensure_future(_closed(writer))
            _ENDINGS.add(ending)
            ending.add_done_callback(_ENDINGS.discard)


_ENDINGS: set[asyncio.Future[None]] = set()


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # it is known already
        await writer.wait_closed()
