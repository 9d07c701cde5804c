"""Tracing: records a second from the guest's instruction to a decoded event in a client, and what the guest pays."""

from __future__ import annotations

import time
from typing import Final

from hvapi.v1 import trace_pb2
from hvctl.sdk import Client, TraceDecoder

from bench.echo import BLOCK_RECORDS, serving
from bench.figure import Figure, alone, compared, in_turns
from bench.lab import SMALL_MEMORY, Daemon, Lab, counters, kernel

NAME: Final = "traced"
CROSSINGS: Final = 10_000_000
POINT: Final = "port-out"
UNTRACED: Final = "the same guest untraced"
EMPTY: Final = "empty grpc.aio server sending such blocks to the same decoder"


class Received:
    """What a client got of a stream."""

    def __init__(self) -> None:
        self.records = self.lost = 0
        self.seconds = 0.0

    def take(self, client: Client, request: trace_pb2.StreamTraceRequest, on_header: object = None) -> None:
        decoder = TraceDecoder()
        began = time.perf_counter()
        for block in client.stream_trace(request):
            if block.HasField("header") and callable(on_header):
                on_header()
                began = time.perf_counter()
            for event in decoder.decode(block):
                if event.lost:
                    self.lost += event.lost
                else:
                    self.records += 1
        self.seconds = time.perf_counter() - began


def measure(lab: Lab) -> list[Figure]:
    lab.say("tracing")
    crossings = CROSSINGS // (10 if lab.quick else 1)
    lost: list[float] = []
    guest_seconds: list[float] = []
    with lab.daemon() as daemon, daemon.client() as client:

        def streamed() -> float:
            received, seconds = _traced(daemon, client, crossings)
            lost.append(received.lost / (received.lost + received.records))
            guest_seconds.append(seconds)
            return received.records / received.seconds

        def untraced() -> float:
            return _run(daemon, client, crossings)

        ways = {"streamed": streamed, "untraced": untraced, "empty": lambda: _empty(lab)}
        samples = in_turns(ways, lab.runs(5))
    runs = len(samples["streamed"])
    share = sorted(lost[-runs:])[runs // 2]
    return [
        compared("trace records delivered and decoded", "records/s", samples["streamed"], samples["empty"], EMPTY,
                 note=f"{crossings:g} crossings as fast as the guest can; {share:.0%} lost, and reported so"),
        compared("guest of nothing but crossings, traced", "s", guest_seconds[-runs:], samples["untraced"], UNTRACED),
        alone("crossings counted but not recorded", "records/s", [crossings / seconds for seconds in samples["untraced"]]),
    ]  # fmt: skip


def _start(client: Client, crossings: int) -> str:
    guest = client.run_guest(
        name=NAME, kernel=kernel("ports.elf"), backend="emulation", engine="native", memory_bytes=SMALL_MEMORY, append=f"n={crossings}", paused=True
    )  # fmt: skip
    return guest.uid


def _finish(daemon: Daemon, client: Client, uid: str) -> float:
    """Seconds that the guest executed."""
    name = f"guests/{NAME}"
    client.wait_guest(name=name, timeout=300)
    seconds = counters(daemon.directory(uid)).run_ns / 1e9
    client.delete_guest(name=name)
    return seconds


def _run(daemon: Daemon, client: Client, crossings: int) -> float:
    uid = _start(client, crossings)
    client.resume_guest(name=f"guests/{NAME}")
    return _finish(daemon, client, uid)


def _traced(daemon: Daemon, client: Client, crossings: int) -> tuple[Received, float]:
    uid = _start(client, crossings)
    received = Received()
    request = trace_pb2.StreamTraceRequest(names=[f"guests/{NAME}"], reasons=[POINT])
    received.take(client, request, lambda: client.resume_guest(name=f"guests/{NAME}"))
    return received, _finish(daemon, client, uid)


def _empty(lab: Lab) -> float:
    blocks = 200 if lab.quick else 1000
    received = Received()
    with serving(lab.new_directory("echo"), blocks) as server, Client(server.endpoint) as client:
        received.take(client, trace_pb2.StreamTraceRequest(names=["guests/none"]))
    assert received.records == blocks * BLOCK_RECORDS
    return received.records / received.seconds
