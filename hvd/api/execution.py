"""ExecGuest: another program in a running guest, its standard streams as frames both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hvapi.v1 import guest_pb2

from hvd.backends.container_spec import ExecSpec
from hvd.backends.contract import Capability, Execution
from hvd.errors import HvdError
from hvd.guests.containers import check_texts
from hvd.guests.supervisor import Supervisor

Request = guest_pb2.ExecGuestRequest
Response = guest_pb2.ExecGuestResponse
STDERR = 2


class ExecutionService:
    """The part of GuestService that runs programs in guests."""

    _supervisor: Supervisor

    async def ExecGuest(self, request_iterator: AsyncIterator[Request], context: Any) -> AsyncIterator[Response]:
        requests = aiter(request_iterator)
        setup = await _setup(requests)
        instance = self._supervisor.get(setup.name).reachable("exec", Capability.EXEC)
        spec = ExecSpec(
            tuple(setup.command), dict(setup.env), setup.working_directory, setup.user, setup.tty,
            (setup.size.rows, setup.size.columns),
        )  # fmt: skip
        async with instance.execute(spec) as execution:
            yield Response(started=guest_pb2.ExecStarted(host_pid=execution.pid))
            listening = asyncio.create_task(_listen(execution, requests))
            try:
                async for stream, data in execution.output():
                    yield Response(error_output=data) if stream == STDERR else Response(output=data)
                yield Response(ended=guest_pb2.ExecEnded(exit_code=await execution.exit_code()))
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


async def _setup(requests: AsyncIterator[Request]) -> guest_pb2.ExecSetup:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("frame") != "setup":
        raise HvdError(
            "REQUEST_INVALID", problem="the first frame of ExecGuest is no setup", remedy="send setup with the name first"
        )
    setup = first.setup
    if not setup.command:
        raise HvdError("FIELD_INVALID", field="setup.command", value="''", problem="is empty", remedy="give a program")
    check_texts("setup.command", setup.command)
    check_texts("setup.env", [f"{key}={value}" for key, value in setup.env.items()])
    return setup


async def _listen(execution: Execution, requests: AsyncIterator[Request]) -> None:
    """What the client types; a client that ends its side sends no more input."""
    async for request in requests:
        match request.WhichOneof("frame"):
            case "input":
                await execution.write(request.input)
            case "input_end":
                await execution.end_input()
            case "size":
                execution.resize(min(request.size.rows, 0xFFFF), min(request.size.columns, 0xFFFF))
    await execution.end_input()
