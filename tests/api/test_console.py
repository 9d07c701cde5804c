"""Consoles: viewers that come, lag and go."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from hvapi.v1 import guest_pb2

from tests.api.conftest import World, refused_stream
from tests.api.stream_clients import Attach, Viewer, until

Guest = guest_pb2.Guest


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
