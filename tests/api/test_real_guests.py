"""Trace, console and log of real guests, through the daemon: nothing lost and nothing doubled, from the first crossing
and the first byte on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hvapi import record
from hvapi.v1 import guest_pb2, trace_pb2

from hvd.backends.emulation.backend import BACKEND
from hvd.trace.points import BY_ID, Kind
from tests.api.conftest import StartWorld, World

Guest, Attach = guest_pb2.Guest, guest_pb2.AttachConsoleRequest
KERNELS = Path(__file__).resolve().parents[2] / "build" / "guests"
SECONDS = 30

# What hypercalls.elf calls, in its order (guests/hypercalls.c).
HYPERCALLS = [
    "version", "log", "log", "log", "log", "log", "annotate", "clock", "yield", "clock", "console-size", "unknown",
    "unknown", "annotate", "unknown", "version", "exit",
]  # fmt: skip


class RealWorld:
    """A daemon on the emulation backend."""

    def __init__(self, world: World) -> None:
        self.guests, self.trace = world.guests, world.trace
        self._world = world

    async def create(self, kernel: str, **fields: Any) -> Guest:
        self._world.kernel = self._world.daemon.blobs.add(KERNELS / f"{kernel}.elf")
        return await self._world.create(kernel, fields.pop("append", ""), backend="emulation", **fields)

    async def start(self, guest: Guest) -> None:
        await self.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))

    async def end(self, guest: Guest) -> Guest:
        return await self._world.wait(guest, seconds=SECONDS)

    async def log(self, guest: Guest) -> bytes:
        """All of stdout that is kept."""
        text = b""
        async for response in self.guests.GetLogs(guest_pb2.GetLogsRequest(name=guest.name)):
            text += b"".join(line.text for line in response.lines if line.stream == "stdout")
        return text

    async def traced(self, guest: Guest, **request: Any) -> asyncio.Task[list[record.Record]]:
        """A trace that has begun, read to its end."""
        call = self.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name], **request))
        assert (await call.read()).HasField("header")

        async def read() -> list[record.Record]:
            found: list[record.Record] = []
            while (response := await call.read()) is not grpc.aio.EOF:
                assert not response.lost
                found += record.decode(response.records)
            return found

        return asyncio.create_task(read())


@pytest.fixture
async def real(start_world: StartWorld) -> AsyncIterator[RealWorld]:
    availability = BACKEND.probe()
    if not (KERNELS / "hello.elf").exists() or not availability.available:
        reason = f"emulation: {availability.reason or 'test kernels are not built'} (`make setup`)"
        if "emulation" in os.environ.get("HVD_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    world = await start_world(others=(BACKEND,))  # type: ignore[arg-type]
    real = RealWorld(world)
    yield real
    for life in list(world.daemon.supervisor):
        await real.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=life.guest.name, force=True))


def names_of(records: list[record.Record]) -> list[str]:
    return [BY_ID[each.point].name.removeprefix("hypercall.") for each in records]


# ---- trace


async def test_every_hypercall_of_a_guest_that_was_traced_before_its_start(real: RealWorld) -> None:
    guest = await real.create("hypercalls")
    calls = await real.traced(guest, kinds=["hypercall"])
    everything = await real.traced(guest)
    await real.start(guest)
    assert (await real.end(guest)).exit_code == 0
    assert names_of(await asyncio.wait_for(calls, SECONDS)) == HYPERCALLS
    records = await asyncio.wait_for(everything, SECONDS)
    assert [each.sequence for each in records] == list(range(len(records)))
    summary = await real.trace.SummarizeTrace(trace_pb2.SummarizeTraceRequest(name=guest.name))
    assert summary.total == len(records)  # what was counted from the first instruction on was recorded
    assert names_of([each for each in records if each.kind == Kind.HYPERCALL]) == HYPERCALLS


async def test_every_hypercall_of_a_guest_that_restarts(real: RealWorld) -> None:
    policy = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ALWAYS)
    guest = await real.create("hypercalls", restart_policy=policy)
    calls = await real.traced(guest, kinds=["hypercall"])
    await real.start(guest)
    async with asyncio.timeout(SECONDS):
        while (await real.guests.GetGuest(guest_pb2.GetGuestRequest(name=guest.name))).restart_count < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await real.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name, force=True))
    names = names_of(await asyncio.wait_for(calls, SECONDS))
    assert len(names) >= 3 * len(HYPERCALLS)
    assert names == (HYPERCALLS * 9)[: len(names)]
