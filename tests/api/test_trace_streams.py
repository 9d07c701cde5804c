"""Traces: streams of records that begin, lag, break off and end."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import grpc
import pytest
from hvapi import record
from hvapi.v1 import guest_pb2, trace_pb2

from tests.api.conftest import World, refused, refused_stream
from tests.api.stream_clients import SECONDS, rest, until

Guest = guest_pb2.Guest


async def traced(call: Any, count: int) -> tuple[list[record.Record], int]:
    """Records and losses of a stream until so many were accounted for."""
    found: list[record.Record] = []
    lost = 0
    while len(found) + lost < count:
        response = await asyncio.wait_for(call.read(), SECONDS)
        assert response is not grpc.aio.EOF and len(response.records) <= 64_000
        found += record.decode(response.records)
        lost += response.lost
    return found, lost


async def test_trace_stream(world: World) -> None:
    guest = await world.run()
    ring = world.fake(guest).ring
    assert ring.record("port-out") == 0
    everything = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    header = (await everything.read()).header
    assert list(header.guests) == [guest.name] and header.monotonic_epoch.seconds > 1_700_000_000
    assert {point.name for point in header.points} >= {"port-in", "hypercall.log"}
    calls = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name], kinds=["hypercall"]))
    await calls.read()
    ports = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name], reasons=["port-in"]))
    await ports.read()
    for _ in range(3):
        for point in ("port-in", "port-out", "hypercall.log"):
            assert ring.record(point) == 1
    found, lost = await traced(everything, 9)
    assert [each.a0 for each in found] == list(range(9)) and lost == 0
    assert [each.a0 for each in (await traced(calls, 3))[0]] == [2, 5, 8]
    assert [each.a0 for each in (await traced(ports, 3))[0]] == [0, 3, 6]
    everything.cancel()
    ports.cancel()
    await until(lambda: ring.enabled == 1 << 6)
    ring.record("hypercall.exit")
    await world.fake(guest).end("EXITED", 0)
    found, _ = await traced(calls, 1)
    assert [each.point for each in found] == [69]
    assert await calls.read() is grpc.aio.EOF
    assert ring.enabled == 0


async def test_trace_counts_what_it_lost(world: World) -> None:
    guest = await world.run()
    ring = world.fake(guest).ring
    call = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    await call.read()
    total, lost = 0, 0
    found: list[record.Record] = []
    for burst in (10, 3 * ring.capacity, 5):
        total += ring.record("mmio-read", burst)
        came, missing = await traced(call, burst)
        found, lost = found + came, lost + missing
    assert len(found) + lost == total and lost >= 2 * ring.capacity
    assert found[-1].a0 == total - 1 and found[0].a0 == 0


async def test_trace_goes_on_over_a_restart_and_ends_with_the_last_guest(world: World) -> None:
    a, b = await world.run("a"), await world.run("b")
    call = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[a.name, b.name]))
    await call.read()
    world.fake(a).ring.record("halt")
    await world.fake(a).end("POWEROFF")
    while not (response := await call.read()).records:
        assert response.settled_ns
    assert response.guest == 0 and len(response.records) == 64
    await world.fake(b).end("POWEROFF")
    while (response := await asyncio.wait_for(call.read(), SECONDS)) is not grpc.aio.EOF:
        assert response.settled_ns and not response.records  # of two guests, the one that is over is waited for no longer
    always = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ALWAYS)
    c = await world.run("c", restart_policy=always)
    call = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[c.name]))
    await call.read()
    before = world.fake(c)
    await before.end("POWEROFF")
    await until(lambda: world.fake(c) is not before and world.fake(c).ring.enabled)
    world.fake(c).ring.record("halt", 2)
    assert len((await traced(call, 2))[0]) == 2


async def test_trace_of_a_stopped_guest_begins_with_its_first_record(world: World) -> None:
    guest = await world.create()
    start = guest_pb2.StartGuestRequest(name=guest.name)
    for _ in range(2):
        call = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
        assert list((await call.read()).header.guests) == [guest.name]
        await world.guests.StartGuest(start)
        assert world.fake(guest).ring.record("halt", 3) == 3
        await world.fake(guest).end("POWEROFF")
        found, lost = await traced(call, 3)
        assert ([each.a0 for each in found], lost) == ([0, 1, 2], 0)
        assert await asyncio.wait_for(call.read(), SECONDS) is grpc.aio.EOF


async def test_trace_of_a_stopped_guest_ends_when_it_is_deleted(world: World) -> None:
    guest = await world.create()
    call = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    await call.read()
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    assert await asyncio.wait_for(call.read(), SECONDS) is grpc.aio.EOF


async def test_trace_follows_the_restart_policy_from_first_record_to_first_record(world: World) -> None:
    always = guest_pb2.RestartPolicy(mode=guest_pb2.RestartPolicy.ALWAYS)
    guest = await world.run(restart_policy=always)
    call = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    await call.read()
    for run in range(3):
        fake = world.fake(guest)
        assert fake.ring.record("halt", 4) == 4
        if run < 2:
            await fake.end("POWEROFF")
            await asyncio.wait_for(world.backend.launched(guest.uid, run + 2), SECONDS)
    found, lost = await traced(call, 12)
    assert ([each.a0 for each in found], lost) == ([0, 1, 2, 3] * 3, 0)


async def test_trace_that_has_no_room_fails_and_the_guest_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await world.create()
    waiting = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    await waiting.read()

    def no_space(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_space)
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    assert (await refused_stream(rest(waiting))).reason == "DISK_FULL"
    late = world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    assert (await refused_stream(late)).reason == "DISK_FULL"
    assert (await world.get(guest)).state == Guest.RUNNING and not world.fake(guest).ring.enabled


async def test_trace_refusals_and_points(world: World) -> None:
    guest = await world.create()
    for asked, reason in (
        (trace_pb2.StreamTraceRequest(names=["guests/none"]), "GUEST_NOT_FOUND"),
        (trace_pb2.StreamTraceRequest(), "REQUEST_INVALID"),
    ):
        assert (await refused_stream(world.trace.StreamTrace(asked))).reason == reason
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    for asked in (trace_pb2.StreamTraceRequest(kinds=["smell"]), trace_pb2.StreamTraceRequest(reasons=["port"])):
        assert (await refused_stream(world.trace.StreamTrace(asked))).reason == "FIELD_INVALID"
    points = await world.trace.ListTracePoints(trace_pb2.ListTracePointsRequest(backend="fake"))
    assert {point.name for point in points.points} >= {"exception.page-fault"}
    assert (
        await refused(world.trace.ListTracePoints(trace_pb2.ListTracePointsRequest(backend="vax")))
    ).reason == "BACKEND_UNKNOWN"
    counters = world.fake(guest).directory / "counters"
    with counters.open("r+b") as file:
        file.seek(256 + 2 * 24)
        file.write((7).to_bytes(8, "little") + (70).to_bytes(8, "little") + (30).to_bytes(8, "little"))
    summary = await world.trace.SummarizeTrace(trace_pb2.SummarizeTraceRequest(name=guest.name))
    (row,) = summary.rows
    assert (row.kind, row.reason, row.count, row.total_ns, row.max_ns, summary.total) == (
        "port-io",
        "port-out",
        7,
        70,
        30,
        7,
    )
