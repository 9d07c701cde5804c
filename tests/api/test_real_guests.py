"""Trace, console and log of real guests, through the daemon: nothing lost and nothing doubled, from the first crossing
and the first byte on.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
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
SECONDS = 60

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

    def directory(self, guest: Guest) -> Path:
        return self._world.config.guests_dir / guest.uid

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


StartReal = Callable[..., Awaitable[RealWorld]]


@pytest.fixture
async def start_real(start_world: StartWorld) -> AsyncIterator[StartReal]:
    availability = BACKEND.probe()
    if not (KERNELS / "hello.elf").exists() or not availability.available:
        reason = f"emulation: {availability.reason or 'test kernels are not built'} (`make setup`)"
        if "emulation" in os.environ.get("HVD_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    worlds: list[World] = []

    async def start(**settings: Any) -> RealWorld:
        worlds.append(await start_world(others=(BACKEND,), **settings))
        return RealWorld(worlds[-1])

    yield start
    for world in worlds:
        for life in list(world.daemon.supervisor):
            await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=life.guest.name, force=True))


@pytest.fixture
async def real(start_real: StartReal) -> RealWorld:
    return await start_real()


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
        while (await real.guests.GetGuest(guest_pb2.GetGuestRequest(name=guest.name))).restart_count < 3:
            await asyncio.sleep(0.02)
    await real.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name, force=True))
    names = names_of(await asyncio.wait_for(calls, SECONDS))
    assert len(names) >= 3 * len(HYPERCALLS)
    assert names == (HYPERCALLS * 9)[: len(names)]


# ---- console and log


async def watch(real: RealWorld, guest: Guest, replay: int) -> bytes:
    """What a viewer sees who comes now: the replay, then what the guest writes to its end."""
    call = real.guests.AttachConsole()
    await call.write(Attach(setup={"name": guest.name, "replay_bytes": replay, "read_only": True}))
    seen = b""
    while (response := await call.read()) is not grpc.aio.EOF:
        assert not response.skipped_bytes
        seen += response.output
    return seen


async def output_so_far(real: RealWorld, guest: Guest, least: int) -> int:
    async with asyncio.timeout(SECONDS):
        while (size := len(await real.log(guest))) < least:
            await asyncio.sleep(0.01)
    return size


@pytest.mark.parametrize("replay", [1 << 20, 5000, 7])
async def test_replay_and_what_follows_are_the_output_to_the_byte(real: RealWorld, replay: int) -> None:
    """A guest that echoes one letter: every part of its output looks like every other. Viewers come at any moment."""
    guest = await real.create("echo")
    await real.start(guest)
    typist = real.guests.AttachConsole()
    await typist.write(Attach(setup={"name": guest.name}))
    assert (await typist.read()).WhichOneof("frame") == "attached"
    chance = random.Random(replay)
    watchers: list[asyncio.Task[bytes]] = []

    async def come_and_see() -> None:
        for _ in range(12):
            await asyncio.sleep(chance.uniform(0, 0.05))
            watchers.append(asyncio.create_task(watch(real, guest, replay)))

    coming = asyncio.create_task(come_and_see())
    for _ in range(60):
        await typist.write(Attach(input=b"a" * 500))
        await asyncio.sleep(chance.uniform(0, 0.02))
    await coming
    await output_so_far(real, guest, 10_000)
    ending = asyncio.create_task(real.end(guest))
    while not ending.done():
        await typist.write(Attach(input=b"q"))  # the guest drops what comes while its buffer is full
        await asyncio.wait([ending], timeout=0.3)
    output = await real.log(guest)
    assert output.count(b"a") > 8000
    for seen in await asyncio.gather(*watchers):
        assert output.endswith(seen)
        if replay == 1 << 20:
            assert len(seen) == len(output)
        assert len(seen) >= replay or len(seen) == len(output)


async def test_a_flood_is_replayed_to_the_byte(real: RealWorld) -> None:
    guest = await real.create("flood", append="count=6000")
    await real.start(guest)
    chance = random.Random(1)
    watchers = []
    for _ in range(8):
        watchers.append(asyncio.create_task(watch(real, guest, 1 << 20)))
        await asyncio.sleep(chance.uniform(0, 0.05))
    await real.end(guest)
    output = await real.log(guest)
    assert output.count(b"quick brown fox") == 6000
    for seen in await asyncio.gather(*watchers):
        assert output.endswith(seen) and (len(seen) == len(output) or len(seen) >= 1 << 20)


async def test_the_log_survives_the_next_start_and_the_replay_begins_anew(real: RealWorld) -> None:
    guest = await real.create("hello")
    for run in range(1, 4):
        await real.start(guest)
        await real.end(guest)
        assert (await real.log(guest)).count(b"hello: ok") == run
        assert (await watch(real, guest, 1 << 20)).count(b"hello: ok") == 1
    ticker = await real.create("ticker")
    for run in range(2):
        await real.start(ticker)
        viewer = asyncio.create_task(watch(real, ticker, 1 << 20))
        await output_so_far(real, ticker, (run + 1) * 30)
        await real.guests.KillGuest(guest_pb2.KillGuestRequest(name=ticker.name))
        assert (await viewer).count(b"tick 1\r") == 1
    assert (await real.log(ticker)).count(b"tick 1\r") == 2


async def test_the_log_of_a_guest_that_restarts_is_bounded(start_real: StartReal) -> None:
    half = 128 << 10
    real = await start_real(log_max_bytes=2 * half)
    policy = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ALWAYS)
    guest = await real.create("flood", append="count=800", restart_policy=policy)
    await real.start(guest)
    async with asyncio.timeout(SECONDS):
        while (await real.guests.GetGuest(guest_pb2.GetGuestRequest(name=guest.name))).restart_count < 3:
            await asyncio.sleep(0.02)
    await real.guests.KillGuest(guest_pb2.KillGuestRequest(name=guest.name))
    sizes = [path.stat().st_size for path in real.directory(guest).glob("console.log*")]
    assert len(sizes) == 2 and max(sizes) <= half
    assert (await real.log(guest)).count(b"flood: ok") >= 1
