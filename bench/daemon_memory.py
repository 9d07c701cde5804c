"""What a million calls leave in the daemon's memory: looking, listing, and asking for what is not there, from many clients at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import grpc
from hvapi.v1 import guest_pb2, guest_pb2_grpc, system_pb2, system_pb2_grpc

from bench.figure import Figure
from bench.lab import SMALL_MEMORY, Lab, kernel

CALLS: Final = int(os.environ.get("BENCH_CALLS") or 1_000_000)
WARM_CALLS: Final = 20_000
CLIENTS: Final = 16
# Between two readings of the memory every client hangs up and comes anew.
PARTS: Final = 10
MIB: Final = 1 << 20


def _resident(pid: int) -> float:
    return float(int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def measure(lab: Lab) -> list[Figure]:
    calls = CALLS // (100 if lab.quick else 1)
    lab.say(f"memory after {calls:,} calls")
    with lab.daemon(options=("--call-rate", "1000000")) as daemon, daemon.client() as client:
        guest = client.run_guest(kernel=kernel("ticker.elf"), backend="emulation", engine="native", memory_bytes=SMALL_MEMORY)
        asyncio.run(_load(daemon.endpoint, guest.name, WARM_CALLS))
        sizes = [_resident(daemon.process.pid)]
        began = time.monotonic()
        for part in range(PARTS):
            asyncio.run(_load(daemon.endpoint, guest.name, calls // PARTS))
            sizes.append(_resident(daemon.process.pid))
            rate = calls // PARTS * (part + 1) / (time.monotonic() - began)
            lab.say(f"after {calls // PARTS * (part + 1):,}: {sizes[-1] / MIB:.1f} MiB, {rate:.0f} calls/s")
    before, after = sizes[0], sizes[-1]
    return [
        Figure(
            f"daemon's resident memory after {calls:,} calls of {CLIENTS} clients", "bytes", after, 1,
            f"after the first {WARM_CALLS:,}", before, after / before, after / before, after / before,
            note=f"{(after - before) / MIB:+.1f} MiB, of them {(after - sizes[PARTS // 2]) / MIB:+.1f} in the second half",
            samples={"hvd": sizes},
        )
    ]  # fmt: skip


async def _load(address: str, name: str, calls: int) -> None:
    """So many calls by CLIENTS clients, each with a connection of its own and one call after the other."""

    async def client(channel: Any) -> None:
        guests, system = guest_pb2_grpc.GuestServiceStub(channel), system_pb2_grpc.SystemServiceStub(channel)
        kinds: list[Callable[[], Any]] = [
            *[lambda: guests.GetGuest(guest_pb2.GetGuestRequest(name=name))] * 6,
            *[lambda: guests.ListGuests(guest_pb2.ListGuestsRequest(page_size=10))] * 2,
            lambda: system.GetInfo(system_pb2.GetInfoRequest()),
            lambda: guests.GetGuest(guest_pb2.GetGuestRequest(name="guests/nobody")),
        ]
        for call in islice(cycle(kinds), calls // CLIENTS):
            try:
                await call()
            except grpc.aio.AioRpcError as error:  # of the last
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise

    channels = [grpc.aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) for _ in range(CLIENTS)]
    try:
        await asyncio.gather(*map(client, channels))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
