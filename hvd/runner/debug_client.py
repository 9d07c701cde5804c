"""RunnerDebugger: the daemon's end of a runner's debug socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from hvapi.runner.v1 import control_pb2

from hvd.backends.contract import DebugConnection
from hvd.errors import HvdError
from hvd.runner.directory import DEBUG
from hvd.runner.protocol import socket_path, to_error

# The vcpu comes to rest within this time, or its runner hangs.
ATTACH_SECONDS = 10.0
GREETING_BYTES = 1 << 16
READ_BYTES = 1 << 16


class RunnerDebugger(DebugConnection):
    """See the contract."""

    def __init__(self, directory: Path, architecture: str) -> None:
        self._directory = directory
        self.architecture = architecture
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> RunnerDebugger:
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                with socket_path(self._directory, DEBUG) as path:
                    self._streams = await asyncio.open_unix_connection(path, limit=GREETING_BYTES)
                await self._greet(*self._streams)
        except TimeoutError:
            await self.__aexit__()
            raise HvdError("RUNNER_TIMEOUT", call="debug", seconds=ATTACH_SECONDS) from None
        except (OSError, EOFError, ValueError) as error:
            await self.__aexit__()
            raise HvdError("RUNNER_GONE", problem=f"{type(error).__name__}: {error}") from error
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises HvdError, the runner's; ValueError, EOFError for no greeting."""
        writer.write(json.dumps({"architecture": self.architecture}).encode() + b"\n")
        await writer.drain()
        answer = json.loads(await reader.readuntil(b"\n"))
        if "error" in answer:
            raise to_error(control_pb2.Error(reason=answer["error"], metadata=answer.get("metadata", {})))
        self.architecture = str(answer["architecture"])

    async def __aexit__(self, *exc: object) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def read(self) -> bytes:
        if self._streams is None:
            return b""
        try:
            return await self._streams[0].read(READ_BYTES)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        if self._streams is None:
            return
        try:
            self._streams[1].write(data)
            await self._streams[1].drain()
        except OSError:  # read() tells of the end
            return
