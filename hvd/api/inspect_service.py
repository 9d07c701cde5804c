"""InspectService: memory, registers and address translation of a guest that runs or is paused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from hvapi.v1 import inspect_pb2, inspect_pb2_grpc

from hvd.api.census import census
from hvd.api.debug import debug
from hvd.backends.contract import Capability
from hvd.errors import HvdError
from hvd.guests.lifecycle import GuestLife
from hvd.guests.supervisor import Supervisor

# A runner gives at most 1 MiB at a time; a smaller piece keeps its answers to others quick.
CHUNK_BYTES = 1 << 18
_ADDRESS_SPACE = 1 << 64


class InspectService(inspect_pb2_grpc.InspectServiceServicer):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def ReadMemory(
        self, request: inspect_pb2.ReadMemoryRequest, context: Any
    ) -> AsyncIterator[inspect_pb2.ReadMemoryResponse]:
        life = self._supervisor.get(request.name)
        instance = life.reachable("mem read", Capability.MEMORY_READ)
        _check_process(life, request.pid)
        _check_range(request.address, request.length, life.guest.machine.memory_bytes or _ADDRESS_SPACE)
        for offset in range(0, request.length, CHUNK_BYTES):
            address, length = request.address + offset, min(CHUNK_BYTES, request.length - offset)
            data = await instance.read_memory(address, length, request.virtual, request.pid)
            yield inspect_pb2.ReadMemoryResponse(address=address, data=data)

    async def WriteMemory(
        self, request: inspect_pb2.WriteMemoryRequest, context: Any
    ) -> inspect_pb2.WriteMemoryResponse:
        life = self._supervisor.get(request.name)
        instance = life.reachable("mem write", Capability.MEMORY_WRITE)
        _check_range(request.address, len(request.data), life.guest.machine.memory_bytes)
        for offset in range(0, len(request.data), CHUNK_BYTES):
            piece = request.data[offset : offset + CHUNK_BYTES]
            await instance.write_memory(request.address + offset, piece, request.virtual)
        return inspect_pb2.WriteMemoryResponse(written_bytes=len(request.data))

    async def GetMemoryMap(self, request: inspect_pb2.GetMemoryMapRequest, context: Any) -> inspect_pb2.MemoryMap:
        life = self._supervisor.get(request.name)
        instance = life.reachable("mem map", Capability.MEMORY_MAP)
        _check_process(life, request.pid)
        return await instance.memory_map(request.pid)

    async def TranslateAddress(
        self, request: inspect_pb2.TranslateAddressRequest, context: Any
    ) -> inspect_pb2.AddressTranslation:
        life = self._supervisor.get(request.name)
        instance = life.reachable("mem translate", Capability.TRANSLATE)
        _check_process(life, request.pid)
        return await instance.translate(request.address, request.pid)

    async def GetRegisters(self, request: inspect_pb2.GetRegistersRequest, context: Any) -> inspect_pb2.Registers:
        life = self._supervisor.get(request.name)
        if not 0 <= request.vcpu < (life.guest.machine.cpus or 1):
            raise HvdError(
                "FIELD_INVALID",
                field="vcpu",
                value=request.vcpu,
                problem="the guest has no such vcpu",
                remedy=f"it has {life.guest.machine.cpus or 1}, counted from 0",
            )
        return await life.reachable("regs", Capability.REGISTERS).registers(request.vcpu)

    async def GetCensus(self, request: inspect_pb2.GetCensusRequest, context: Any) -> inspect_pb2.Census:
        return await census(self._supervisor, request)

    async def Debug(
        self, request_iterator: AsyncIterator[inspect_pb2.DebugRequest], context: Any
    ) -> AsyncIterator[inspect_pb2.DebugResponse]:
        async with contextlib.aclosing(debug(self._supervisor, request_iterator)) as responses:
            async for response in responses:
                yield response


def _check_process(life: GuestLife, pid: int) -> None:
    """Only containers have processes that the host knows. Raises HvdError FIELD_INVALID."""
    if pid and (pid < 0 or Capability.CONTAINER not in life.backend.capabilities):
        problem = "is no process' number" if pid < 0 else "this guest is a machine: its processes are its kernel's matter"
        raise HvdError("FIELD_INVALID", field="pid", value=pid, problem=problem, remedy="leave it out")


def _check_range(address: int, length: int, memory_bytes: int) -> None:
    """What can be told without asking the guest: everything else its board knows better."""
    if length == 0:
        raise HvdError(
            "FIELD_INVALID", field="length", value=0, problem="is nothing", remedy="ask for at least one byte"
        )
    if length > memory_bytes or address + length > _ADDRESS_SPACE:
        raise HvdError("ADDRESS_OUTSIDE", length=length, address=hex(address))
