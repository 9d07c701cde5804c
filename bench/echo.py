"""The peer of what goes over gRPC: `python -m bench.echo SOCKET [BLOCKS]`, an empty grpc.aio server that answers
GetGuest with one guest and StreamTrace with BLOCKS full blocks, and does nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from hvapi.record import RECORD_BYTES
from hvapi.v1 import guest_pb2, trace_pb2

from bench.lab import ROOT, START_SECONDS, Unavailable, end

BLOCK_RECORDS: Final = 1000  # as the daemon's


@dataclass(frozen=True, slots=True)
class Server:
    """A running echo server."""

    pid: int
    endpoint: str


async def get_guest(request: guest_pb2.GetGuestRequest, context: Any) -> guest_pb2.Guest:
    return guest_pb2.Guest(name=request.name, uid="0" * 36, backend="emulation", engine="native")


def stream_trace(blocks: int) -> Callable[..., AsyncIterator[trace_pb2.StreamTraceResponse]]:
    records = bytes(BLOCK_RECORDS * RECORD_BYTES)

    async def stream(
        request: trace_pb2.StreamTraceRequest, context: Any
    ) -> AsyncIterator[trace_pb2.StreamTraceResponse]:
        yield trace_pb2.StreamTraceResponse(header=trace_pb2.TraceHeader(guests=request.names))
        for _ in range(blocks):
            yield trace_pb2.StreamTraceResponse(records=records)

    return stream


async def serve(path: str, blocks: int) -> None:
    unary = grpc.unary_unary_rpc_method_handler(
        get_guest, guest_pb2.GetGuestRequest.FromString, guest_pb2.Guest.SerializeToString
    )
    stream = grpc.unary_stream_rpc_method_handler(
        stream_trace(blocks), trace_pb2.StreamTraceRequest.FromString, trace_pb2.StreamTraceResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("hvd.v1.GuestService", {"GetGuest": unary}),
            grpc.method_handlers_generic_handler("hvd.v1.TraceService", {"StreamTrace": stream}),
        )
    )
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    await server.wait_for_termination()


@contextlib.contextmanager
def serving(directory: Path, blocks: int = 0) -> Iterator[Server]:
    """The server as a process, ready."""
    path = directory / "echo.sock"
    process = subprocess.Popen([sys.executable, "-m", "bench.echo", str(path), str(blocks)], cwd=ROOT)
    try:
        with grpc.insecure_channel(f"unix://{path}") as channel:
            try:
                grpc.channel_ready_future(channel).result(START_SECONDS)
            except grpc.FutureTimeoutError:
                raise Unavailable("the echo server does not come up") from None
        yield Server(process.pid, f"unix://{path}")
    finally:
        end(process)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
