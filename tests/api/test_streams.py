"""Logs, events and inspection: streams that begin, lag, break off and end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hvapi.v1 import guest_pb2, inspect_pb2, trace_pb2

from hvd.guests.events import EventLog
from tests.api.conftest import StartWorld, World, refused, refused_stream, stop
from tests.api.stream_clients import SECONDS, Attach, rest, until

Guest, GuestEvent = guest_pb2.Guest, guest_pb2.GuestEvent


async def logs(world: World, guest: Guest, **fields: Any) -> list[guest_pb2.LogLine]:
    lines: list[guest_pb2.LogLine] = []
    async for response in world.guests.GetLogs(guest_pb2.GetLogsRequest(name=guest.name, **fields)):
        lines += response.lines
    return lines


async def test_logs(world: World) -> None:
    guest = await world.run()
    assert await logs(world, guest) == []
    world.fake(guest).write(b"".join(b"line %d\n" % number for number in range(2500)) + b"prompt> ")
    everything = await logs(world, guest)
    assert [line.text for line in everything[:2]] == [b"line 0\n", b"line 1\n"] and len(everything) == 2501
    assert everything[0].stream == "stdout" and everything[0].time.seconds > 1_700_000_000
    assert [line.text for line in await logs(world, guest, tail=2)] == [b"line 2499\n", b"prompt> "]
    assert await logs(world, guest, tail=0) == []
    assert len(await logs(world, guest, since=everything[0].time)) == 2501
    later = guest_pb2.GetLogsRequest(name=guest.name)
    later.since.FromSeconds(everything[0].time.seconds + 3600)
    assert [response async for response in world.guests.GetLogs(later)] == []
    error = await refused_stream(world.guests.GetLogs(guest_pb2.GetLogsRequest(name=guest.name, tail=-1)))
    assert error.reason == "FIELD_INVALID"


async def test_followed_log_ends_with_the_guest_and_survives_rotation(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    fake.write(b"old\nbefore\n")
    call = world.guests.GetLogs(guest_pb2.GetLogsRequest(name=guest.name, follow=True, tail=1))
    text = b""

    async def followed(wanted: bytes) -> None:
        nonlocal text
        while wanted not in text:
            text += b"".join(line.text for line in (await asyncio.wait_for(call.read(), SECONDS)).lines)

    await followed(b"before\n")
    fake.write(b"middle\n")
    log = fake.directory / "console.log"
    log.rename(fake.directory / "console.log.1")
    log.touch()
    fake.write(b"after\n")
    await followed(b"after\n")
    fake.write(b"end\n")
    await fake.end("POWEROFF")
    await followed(b"end\n")
    assert await asyncio.wait_for(call.read(), SECONDS) is grpc.aio.EOF
    assert text == b"before\nmiddle\nafter\nend\n"
    assert [line.text for line in await logs(world, guest)][:2] == [b"old\n", b"before\n"]


async def events_until(stream: Any, kind: GuestEvent.Type) -> list[GuestEvent]:
    events = []
    while True:
        event = await asyncio.wait_for(stream.read(), SECONDS)
        assert event is not grpc.aio.EOF, events
        events.append(event)
        if event.type == kind:
            return events


async def test_watch_gives_the_present_then_changes_and_resumes(world: World) -> None:
    a, b = await world.create("a"), await world.create("b")
    watch = world.guests.WatchGuests(guest_pb2.WatchGuestsRequest())
    present = await events_until(watch, GuestEvent.BOOKMARK)
    assert [event.guest.name for event in present[:-1]] == [a.name, b.name]
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=a.name))
    states = [(await watch.read()).guest.state for _ in range(2)]
    assert states == [Guest.STARTING, Guest.RUNNING]
    watch.cancel()
    await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=b.name))
    token = present[-1].resume_token
    resumed = world.guests.WatchGuests(guest_pb2.WatchGuestsRequest(resume_token=token))
    events = await events_until(resumed, GuestEvent.DELETED)
    assert [(event.type, event.guest.name) for event in events] == [
        (GuestEvent.CHANGED, a.name), (GuestEvent.CHANGED, a.name), (GuestEvent.DELETED, b.name),
    ]  # fmt: skip
    only_b = world.guests.WatchGuests(guest_pb2.WatchGuestsRequest(resume_token=token, names=[b.name]))
    assert [event.type for event in await events_until(only_b, GuestEvent.DELETED)] == [GuestEvent.DELETED]


@pytest.mark.parametrize("token", ["x", "dead:1", ":", "{boot}:999999", "{boot}:-1", "{boot}:²", "{boot}:" + "9" * 40])
async def test_bad_resume_tokens(world: World, token: str) -> None:
    token = token.format(boot=world.daemon.supervisor.events.boot)
    error = await refused_stream(world.guests.WatchGuests(guest_pb2.WatchGuestsRequest(resume_token=token)))
    assert (error.code, error.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")


async def test_changes_only_misses_nothing_once_it_is_on(world: World) -> None:
    watch = world.guests.WatchGuests(guest_pb2.WatchGuestsRequest(changes_only=True))
    await watch.initial_metadata()
    await world.create("a")
    assert (await watch.read()).type == GuestEvent.CREATED


async def test_slow_watcher_is_told(world: World) -> None:
    guest = await world.create("a")
    watch = world.guests.WatchGuests(guest_pb2.WatchGuestsRequest())
    await events_until(watch, GuestEvent.BOOKMARK)
    events = world.daemon.supervisor.events
    for _ in range(20):
        for _ in range(1000):
            events.publish(GuestEvent.CHANGED, guest, "x" * 200)
        await asyncio.sleep(0.01)
    error = await asyncio.wait_for(refused_stream(rest(watch)), SECONDS)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "SLOW_READER")


async def test_event_log_bounds() -> None:
    log = EventLog(history=3)
    for number in range(5):
        log.publish(GuestEvent.CHANGED, Guest(name=str(number)), "")
    batch, position = await log.after(2)
    assert ([event.guest.name for event in batch], position) == (["2", "3", "4"], 5)
    assert log.parse(log.token(2)) == 2
    waiting = asyncio.create_task(log.after(5))
    await asyncio.sleep(0)
    log.publish(GuestEvent.CHANGED, Guest(name="5"), "")
    assert [event.guest.name for event in (await waiting)[0]] == ["5"]


async def test_inspection(world: World) -> None:
    guest = await world.create()
    read = inspect_pb2.ReadMemoryRequest(name=guest.name, address=0, length=16)
    assert (await refused_stream(world.inspect.ReadMemory(read))).reason == "GUEST_WRONG_STATE"
    await world.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))
    data = bytes(range(256)) * 3000
    written = await world.inspect.WriteMemory(inspect_pb2.WriteMemoryRequest(name=guest.name, address=4096, data=data))
    assert written.written_bytes == len(data)
    read = inspect_pb2.ReadMemoryRequest(name=guest.name, address=4096, length=len(data))
    pieces = [piece async for piece in world.inspect.ReadMemory(read)]
    assert b"".join(piece.data for piece in pieces) == data and pieces[1].address == 4096 + len(pieces[0].data)
    for address, length, reason in (
        (0, 0, "FIELD_INVALID"),
        (0, 1 << 40, "ADDRESS_OUTSIDE"),
        ((1 << 64) - 1, 2, "ADDRESS_OUTSIDE"),
    ):
        read = inspect_pb2.ReadMemoryRequest(name=guest.name, address=address, length=length)
        assert (await refused_stream(world.inspect.ReadMemory(read))).reason == reason
    assert (await world.inspect.GetMemoryMap(inspect_pb2.GetMemoryMapRequest(name=guest.name))).regions[
        0
    ].owner == "ram"
    assert (await world.inspect.GetRegisters(inspect_pb2.GetRegistersRequest(name=guest.name))).mode == "protected"
    bad = inspect_pb2.GetRegistersRequest(name=guest.name, vcpu=3)
    assert (await refused(world.inspect.GetRegisters(bad))).reason == "FIELD_INVALID"


async def open_streams(world: World, guest: Guest) -> AsyncIterator[Any]:
    yield world.guests.WatchGuests(guest_pb2.WatchGuestsRequest())
    yield world.guests.GetLogs(guest_pb2.GetLogsRequest(name=guest.name, follow=True))
    yield world.trace.StreamTrace(trace_pb2.StreamTraceRequest(names=[guest.name]))
    console = world.guests.AttachConsole()
    await console.write(Attach(setup={"name": guest.name}))
    yield console


async def test_clients_that_disconnect_in_the_middle_of_every_stream(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    fake.write(b"hello\n")
    for _ in range(5):
        async with grpc.aio.insecure_channel(world.socket()) as channel:
            other = World(world.config, world.backend, world.daemon, channel, world.kernel)
            async for stream in open_streams(other, guest):
                await stream.read()
            assert fake.ring.enabled and fake.viewers
            # The channel closes with all of them open.
        await until(lambda: not fake.ring.enabled and not fake.viewers)
    assert (await world.get(guest)).state == Guest.RUNNING


async def test_shutdown_ends_streams_with_its_reason_and_leaves_guests(start_world: StartWorld) -> None:
    world = await start_world()
    guest = await world.run()
    world.fake(guest).write(b"hello\n")
    streams = [stream async for stream in open_streams(world, guest)]
    for stream in streams:
        await stream.read()
    closing = asyncio.create_task(world.daemon.close())
    for stream in streams:
        error = await asyncio.wait_for(refused_stream(rest(stream)), SECONDS)
        assert (error.code, error.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    await asyncio.wait_for(closing, SECONDS)
    world.stopped = True  # type: ignore[attr-defined]
    assert world.fake(guest).process.poll() is None and not world.fake(guest).ring.enabled
    with contextlib.suppress(Exception):
        await stop(world)


