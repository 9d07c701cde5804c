"""Console, logs, events and traces: streams that begin, lag, break off and end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from hvapi import record
from hvapi.v1 import guest_pb2, inspect_pb2, trace_pb2

from hvd.guests.events import EventLog
from tests.api.conftest import StartWorld, World, refused, refused_stream, stop

Guest, GuestEvent = guest_pb2.Guest, guest_pb2.GuestEvent
Attach = guest_pb2.AttachConsoleRequest
# Until something is called broken on a busy machine.
SECONDS = 60


async def until(condition: Callable[[], object]) -> None:
    """Polls for what no event announces."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


class Viewer:
    """A client attached to a console."""

    def __init__(self, stub: Any, name: str, **setup: Any) -> None:
        self.call = stub.AttachConsole()
        self.setup = guest_pb2.AttachConsoleSetup(name=name, **setup)
        self.seen = b""
        self.frames: list[guest_pb2.AttachConsoleResponse] = []

    async def __aenter__(self) -> Viewer:
        await self.call.write(Attach(setup=self.setup))
        first = await self.call.read()
        assert first.WhichOneof("frame") == "attached", first
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.call.cancel()

    async def frame(self) -> guest_pb2.AttachConsoleResponse:
        frame = await asyncio.wait_for(self.call.read(), SECONDS)
        assert frame is not grpc.aio.EOF
        self.frames.append(frame)
        self.seen += frame.output
        return frame

    async def until(self, text: bytes) -> None:
        while text not in self.seen:
            await self.frame()


async def test_console_of_several_viewers(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    async with Viewer(world.guests, guest.name, size={"rows": 25, "columns": 80}) as typist:
        async with Viewer(world.guests, guest.name, read_only=True) as looker:
            assert fake.size == (25, 80)
            fake.write(b"login: ")
            await typist.until(b"login: ")
            await looker.until(b"login: ")
            await typist.call.write(Attach(input=b"root\r"))
            await typist.call.write(Attach(size={"rows": 50, "columns": 132}))
            await until(lambda: fake.size == (50, 132))
            assert bytes(fake.typed) == b"root\r"
        fake.write(b"more")
        await typist.until(b"more")
        await fake.end("EXITED", 4)
        ended = (await typist.frame()).ended
        assert (ended.state, ended.exit_code) == (Guest.STOPPED, 4)
        assert await typist.call.read() is grpc.aio.EOF
    await until(lambda: not fake.viewers)


async def test_console_replays_the_log_then_goes_on(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    fake.write(b"first\nsecond\nthird")
    async with Viewer(world.guests, guest.name, replay_bytes=12) as viewer:
        await viewer.until(b"second\nthird")
        assert viewer.seen == b"second\nthird"
        fake.write(b" and on")
        await viewer.until(b"and on")
        assert viewer.seen == b"second\nthird and on"


async def test_console_replay_neither_loses_nor_repeats_while_the_guest_writes(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            fake.write(b"line %d\n" % written)
            written += 1
            await asyncio.sleep(0.0005)

    writer = asyncio.create_task(write())
    try:
        for _ in range(5):
            await asyncio.sleep(0.03)
            async with Viewer(world.guests, guest.name, replay_bytes=1 << 20) as viewer:
                await viewer.until(b"line %d\n" % (written + 20))
                lines = viewer.seen.splitlines()
                assert lines == [b"line %d" % number for number in range(len(lines))]
    finally:
        writer.cancel()


async def test_viewer_who_comes_after_the_end(world: World) -> None:
    guest = await world.run()
    world.fake(guest).write(b"last words\n")
    await world.fake(guest).end("EXITED", 9)
    await world.wait(guest)
    async with Viewer(world.guests, guest.name, replay_bytes=1000) as viewer:
        await viewer.until(b"last words")
        assert (await viewer.frame()).ended.exit_code == 9
    call = world.guests.AttachConsole(iter([Attach(setup={"name": guest.name})]))
    assert (await refused_stream(call)).reason == "GUEST_WRONG_STATE"


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "REQUEST_INVALID"),
        ([Attach(input=b"x")], "REQUEST_INVALID"),
        ([Attach(setup={"name": "guests/none"})], "GUEST_NOT_FOUND"),
        ([Attach(setup={"name": "guests/a", "replay_bytes": -1})], "FIELD_INVALID"),
        ([Attach(setup={"name": "guests/a", "replay_bytes": 1 << 30})], "FIELD_INVALID"),
        ([Attach(setup={"name": "guests/a"}), Attach(setup={"name": "guests/a"})], "REQUEST_INVALID"),
        ([Attach(setup={"name": "guests/a", "read_only": True}), Attach(input=b"x")], "REQUEST_INVALID"),
    ],
)
async def test_console_refuses_wrong_frames(world: World, frames: list[Attach], reason: str) -> None:
    guest = await world.run("a")
    assert (await refused_stream(world.guests.AttachConsole(iter(frames)))).reason == reason
    await until(lambda: not world.fake(guest).viewers)
    assert not world.fake(guest).typed


async def test_skipped_bytes_are_told(world: World) -> None:
    guest = await world.run()
    async with Viewer(world.guests, guest.name) as viewer:
        world.fake(guest).viewers[0].put_nowait(4711)
        assert (await viewer.frame()).skipped_bytes == 4711


async def test_slow_viewer_holds_up_nobody(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    async with Viewer(world.guests, guest.name) as slow, Viewer(world.guests, guest.name) as quick:
        for number in range(3000):
            for viewer in fake.viewers:
                viewer.put_nowait(b"%08d" % number * 1000)
            if number % 100 == 0:
                await quick.until(b"%08d" % number)
                quick.seen = b""
        # What the slow one has not read waits in the guest's process, not in the daemon.
        assert max(viewer.qsize() for viewer in fake.viewers) > 2000
        assert not slow.seen


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
    error = await asyncio.wait_for(refused_stream(_rest(watch)), SECONDS)
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
    assert (await refused_stream(_rest(waiting))).reason == "DISK_FULL"
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
        error = await asyncio.wait_for(refused_stream(_rest(stream)), SECONDS)
        assert (error.code, error.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    await asyncio.wait_for(closing, SECONDS)
    world.stopped = True  # type: ignore[attr-defined]
    assert world.fake(guest).process.poll() is None and not world.fake(guest).ring.enabled
    with contextlib.suppress(Exception):
        await stop(world)


async def _rest(stream: Any) -> AsyncIterator[Any]:
    while (message := await stream.read()) is not grpc.aio.EOF:
        yield message
    if await stream.code() != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await stream.code(),
            await stream.initial_metadata(),
            await stream.trailing_metadata(),
            await stream.details(),
        )
