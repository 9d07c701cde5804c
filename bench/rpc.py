"""Unary calls: how many GetGuest a second, and how long one takes, while others watch, beside a server that does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import grpc
from hvapi.v1 import guest_pb2, guest_pb2_grpc

from bench.echo import serving
from bench.figure import Figure, compared, in_turns
from bench.lab import SMALL_MEMORY, Lab, kernel

CLIENTS: Final = (1, 50, 200)
CALLS: Final = 2000  # a run, over all clients
WATCHES: Final = 12  # that are open meanwhile, on hvd's side
PEER: Final = "empty grpc.aio server, same message"


def measure(lab: Lab) -> list[Figure]:
    lab.say("unary calls")
    calls = CALLS // (5 if lab.quick else 1)
    figures = []
    options = ("--call-rate", "1000000")  # what it can do, not what one client may
    with lab.daemon(options=options) as daemon, daemon.client() as client, serving(lab.new_directory("echo")) as server:
        guest = client.run_guest(
            kernel=kernel("ticker.elf"), backend="emulation", engine="native", memory_bytes=SMALL_MEMORY
        )
        addresses = {"hvd": daemon.endpoint, "echo": server.endpoint}
        for clients in CLIENTS:
            latencies: dict[str, list[tuple[float, float]]] = {who: [] for who in addresses}

            def rate(who: str, clients: int, latencies: dict[str, list[tuple[float, float]]]) -> Callable[[], float]:
                def run() -> float:
                    watches = WATCHES if who == "hvd" else 0
                    seconds, *times = asyncio.run(_load(addresses[who], guest.name, clients, calls // clients, watches))
                    latencies[who].append((times[0], times[1]))
                    return calls // clients * clients / seconds

                return run

            runs = lab.runs(7)
            samples = in_turns({who: rate(who, clients, latencies) for who in addresses}, runs)
            how = f"GetGuest, {clients} client{'s' if clients > 1 else ''}, {WATCHES} watches"
            figures.append(compared(f"{how}: rate", "calls/s", samples["hvd"], samples["echo"], PEER))
            for which, name in enumerate(("p50", "p99")):
                own, peer = ([times[which] for times in latencies[who][-runs:]] for who in addresses)
                figures.append(compared(f"{how}: {name}", "s", own, peer, PEER))
    return figures


async def _load(address: str, name: str, clients: int, calls: int, watches: int = 0) -> tuple[float, float, float]:
    """So many clients, each with a connection of its own and one call after the other: seconds for all, median and 99th percentile of one."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(clients + watches)]
    stubs: list[Any] = [guest_pb2_grpc.GuestServiceStub(channel) for channel in channels]
    streams = [stub.WatchGuests(guest_pb2.WatchGuestsRequest()) for stub in stubs[clients:]]
    del stubs[clients:]
    request = guest_pb2.GetGuestRequest(name=name)
    latencies: list[float] = []

    async def client(stub: Any) -> None:
        for _ in range(calls):
            began = time.perf_counter()
            await stub.GetGuest(request)
            latencies.append(time.perf_counter() - began)

    try:
        for stream in streams:
            await stream.read()
        await asyncio.gather(*(stub.GetGuest(request) for stub in stubs))  # connected
        began = time.perf_counter()
        await asyncio.gather(*map(client, stubs))
        seconds = time.perf_counter() - began
        return seconds, median(latencies), sorted(latencies)[len(latencies) * 99 // 100]
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))
