"""The asyncio SDK against a server over a unix socket, and that it is the synchronous one's twin."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon
from fake_inspection import make_record
from hvapi.v1 import guest_pb2, trace_pb2
from hvctl.sdk import AsyncClient, Client, HvctlError, TraceDecoder

Guest = guest_pb2.Guest


def test_both_clients_have_the_same_methods() -> None:
    def methods(owner: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(owner).items()
            if not name.startswith("_") and callable(value)
        }

    assert methods(Client) == methods(AsyncClient)


async def test_run_wait_and_errors(daemon: FakeDaemon, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"k" * 3_000_000)
    async with AsyncClient(daemon.endpoint) as client:
        guest = await client.run_guest(name="a", kernel=kernel, append="exit=3", memory_bytes=1 << 20)
        assert guest.machine.kernel in daemon.blobs
        assert daemon.chunks == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]
        guest = await client.wait_guest(name="guests/a")
        assert (guest.state, guest.exit_code) == (Guest.STOPPED, 3)
        assert [g.name async for g in client.guests()] == ["guests/a"]
        with pytest.raises(HvctlError) as caught:
            await client.get_guest(name="guests/b")
        assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "GUEST_NOT_FOUND")
        assert caught.value.metadata == {"name": "b"}
        assert caught.value.help == "`hvctl list` shows the guests there are"


async def test_console(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        guest = await client.run_guest(append="say=hello echo exit=4")
        received = b""
        async with client.console(guest.name, replay_bytes=100, size=(24, 80)) as console:
            async for data in console:
                received += data
                if received == b"hello\r\n":
                    await console.resize(50, 132)
                    await console.write(b"x")
                elif received.endswith(b"[x]"):
                    await console.write(b"q")
        assert received == b"hello\r\n[x]"
        assert console.ended is not None and console.ended.exit_code == 4
        assert daemon.sizes == [(24, 80), (50, 132)]


async def test_detaching_ends_the_iteration(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        guest = await client.run_guest(append="say=x hang")
        console = client.console(guest.name, replay_bytes=100)
        async for _ in console:
            await console.close()
        assert console.ended is None


async def test_watch_resumes_over_a_break_without_loss(daemon: FakeDaemon) -> None:
    daemon.watch_breaks_after = 1  # after every single event
    async with AsyncClient(daemon.endpoint) as client:
        await client.create_guest(guest_id="a")

        async def collect() -> list[int]:
            kinds = []
            async for event in client.watch():
                kinds.append(event.type)
                if event.type == guest_pb2.GuestEvent.BOOKMARK:
                    for _ in range(5):
                        daemon.change("guests/a")
                if len(kinds) == 7:
                    return kinds
            raise AssertionError("the watch ended")

        kinds = await asyncio.wait_for(collect(), 20)
    event = guest_pb2.GuestEvent
    assert kinds == [event.PRESENT, event.BOOKMARK, *[event.CHANGED] * 5]
    tokens = [request.resume_token for request in daemon.requests("WatchGuests")]
    assert tokens[0] == "" and tokens[1:] == sorted(tokens[1:], key=int)


async def test_a_cancelled_reader_stays_cancelled(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        await client.create_guest(guest_id="a")

        async def read() -> None:
            async for _ in client.watch():
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_trace(daemon: FakeDaemon) -> None:
    daemon.trace_blocks = [trace_pb2.StreamTraceResponse(records=make_record(5, 2, 0x3F8, 1, 0x41) * 1000)]
    async with AsyncClient(daemon.endpoint) as client:
        await client.create_guest(guest_id="a")
        decoder = TraceDecoder()
        events = []
        async with client.stream_trace(names=["guests/a"]) as blocks:
            async for block in blocks:
                events += decoder.decode(block)
                if len(events) == 1000:
                    break
    assert {event.name for event in events} == {"port-out"}


async def test_idempotent_calls_are_retried_and_others_are_not(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        await client.create_guest(guest_id="a")
        daemon.unavailable_answers = 2
        assert (await client.get_guest(name="guests/a")).name == "guests/a"
        assert daemon.unavailable_answers == 0
        daemon.unavailable_answers = 1
        with pytest.raises(HvctlError) as caught:
            await client.start_guest(name="guests/a")
        assert caught.value.code == "UNAVAILABLE"


async def test_a_stream_is_begun_again_by_the_sdk(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        await client.create_guest(guest_id="a")
        daemon.unavailable_answers = 2
        assert sum([len(answer.data) async for answer in client.read_memory(name="guests/a", address=0, length=2000)]) == 2000
        assert daemon.unavailable_answers == 0


async def test_a_stream_that_must_not_be_silent_is_ended(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint, timeout=1.0) as client:
        await client.create_guest(guest_id="a", timeout=30)
        daemon.silent_after = 1
        with pytest.raises(HvctlError) as caught:
            async for _ in client.read_memory(name="guests/a", address=0, length=2000):
                pass
        assert caught.value.reason == "TIMED_OUT"


async def test_wait_ready_finds_a_daemon_that_comes_back(daemon: FakeDaemon) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        await client.get_info()
        daemon.stop()
        with pytest.raises(HvctlError) as caught:
            await client.get_info()
        assert caught.value.reason == "DAEMON_UNREACHABLE"
        assert not await client.wait_ready(0.3)
        daemon.start()
        assert await client.wait_ready(20)
        assert (await client.get_info()).version == "9.9"
