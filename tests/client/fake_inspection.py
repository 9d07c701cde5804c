"""The client tests' daemon: memory, registers and traces of its guests, the same for each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fake_state import FakeState, refuse
from hvapi import record
from hvapi.v1 import inspect_pb2, inspect_pb2_grpc, trace_pb2, trace_pb2_grpc


def make_record(
    time_ns: int, point: int, *arguments: int, duration: int = 1200, flags: int = 0, rip: int = 0x100123
) -> bytes:
    values = (*arguments, 0, 0, 0, 0)[:4]
    return record.RECORD.pack(time_ns, duration, point, 1, 1, 0, flags, 0, rip, *values)


POINTS = [
    trace_pb2.TracePoint(
        id=2,
        name="port-out",
        kind="port-io",
        arguments=[
            trace_pb2.TraceArgument(name="port", format="hex"),
            trace_pb2.TraceArgument(name="size", format="dec"),
            trace_pb2.TraceArgument(name="value", format="hex"),
        ],
    ),
    trace_pb2.TracePoint(
        id=65,
        name="hypercall.log",
        kind="hypercall",
        arguments=[
            trace_pb2.TraceArgument(name="address", format="hex"),
            trace_pb2.TraceArgument(name="length", format="dec"),
            trace_pb2.TraceArgument(name="-", format="hex"),
            trace_pb2.TraceArgument(name="result", format="errno"),
        ],
    ),
]


class FakeInspection(FakeState, inspect_pb2_grpc.InspectServiceServicer, trace_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        super().__init__()
        self.memory = bytearray(range(256)) * 16
        self.silent_after: int | None = None  # pieces of memory, after which nothing comes; None = they all do
        self.trace_blocks: list[trace_pb2.StreamTraceResponse] = []

    def ReadMemory(self, request: Any, context: Any) -> Iterator[inspect_pb2.ReadMemoryResponse]:
        self.calls.append(("ReadMemory", request))
        self.find(request.name, context)
        if request.address + request.length > len(self.memory):
            refuse(context, "OUT_OF_RANGE", "ADDRESS_OUTSIDE", "not within the guest's memory", "`hvctl mem map`")
        for number, offset in enumerate(range(0, request.length, 1000)):
            while number == self.silent_after and context.is_active() and not self.stopping:
                time.sleep(0.05)
            at = request.address + offset
            data = bytes(self.memory[at : at + min(1000, request.length - offset)])
            yield inspect_pb2.ReadMemoryResponse(address=at, data=data)

    def WriteMemory(self, request: Any, context: Any) -> inspect_pb2.WriteMemoryResponse:
        self.memory[request.address : request.address + len(request.data)] = request.data
        return inspect_pb2.WriteMemoryResponse(written_bytes=len(request.data))

    def GetMemoryMap(self, request: Any, context: Any) -> inspect_pb2.MemoryMap:
        region = inspect_pb2.MemoryRegion
        return inspect_pb2.MemoryMap(
            regions=[
                region(start=0, length=1024, kind=region.RAM, owner="ram"),
                region(start=1024, length=1024, kind=region.MMIO, owner="vga"),
                region(start=2048, length=2048, kind=region.RAM, owner="ram", file_offset=1024),
            ]
        )

    def TranslateAddress(self, request: Any, context: Any) -> inspect_pb2.AddressTranslation:
        if request.address >= 0x1000:
            return inspect_pb2.AddressTranslation(
                virtual_address=request.address, paging_mode="PAE", fault="the PDE at 0x2000 is not present"
            )
        entry = inspect_pb2.PageTableEntry(level="PTE", address=0x2000, value=0x67)
        return inspect_pb2.AddressTranslation(
            virtual_address=request.address,
            physical_address=request.address,
            writable=True,
            page_bytes=4096,
            paging_mode="32-bit",
            entries=[entry],
        )

    def GetRegisters(self, request: Any, context: Any) -> inspect_pb2.Registers:
        register = inspect_pb2.Register
        return inspect_pb2.Registers(
            mode="protected",
            registers=[register(name="eip", value=0x100123), register(name="cs", value=8, base=0, limit=0xFFFFFFFF)],
        )

    def StreamTrace(self, request: Any, context: Any) -> Iterator[trace_pb2.StreamTraceResponse]:
        self.calls.append(("StreamTrace", request))
        for name in request.names:
            self.find(name, context)
        header = trace_pb2.TraceHeader(guests=request.names, points=POINTS)
        header.monotonic_epoch.FromSeconds(1_700_000_000)
        yield trace_pb2.StreamTraceResponse(header=header)
        yield from self.trace_blocks
        while context.is_active() and not self.stopping:
            time.sleep(0.05)

    def SummarizeTrace(self, request: Any, context: Any) -> trace_pb2.TraceSummary:
        self.find(request.name, context)
        row = trace_pb2.TraceSummaryRow
        return trace_pb2.TraceSummary(
            total=12,
            rows=[
                row(kind="port-io", reason="port-in", count=2, total_ns=1000, max_ns=600),
                row(kind="port-io", reason="port-out", count=10, total_ns=20000, max_ns=3000),
            ],
        )

    def ListTracePoints(self, request: Any, context: Any) -> trace_pb2.ListTracePointsResponse:
        return trace_pb2.ListTracePointsResponse(points=POINTS)
