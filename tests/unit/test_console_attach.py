"""AttachConsole where the guest's monitor does not tell the place in the log at which an attachment begins, as conmon: scripted, since what matters
is the moment at which it takes the viewer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2

from hvd.api.console import attach
from hvd.backends.contract import Capability

Request, Guest = guest_pb2.AttachConsoleRequest, guest_pb2.Guest


class FakeMonitor:
    """Supervisor, life, backend, instance and attachment of a guest that writes a log."""

    console_streams = frozenset({"stdout"})
    position = None

    def __init__(self, directory: Path) -> None:
        self.directory, self.run, self.warned = directory, 1, asyncio.Event()
        self.guest = Guest(name="guests/c", state=Guest.RUNNING)
        self.guest.start_time.GetCurrentTime()
        self.instance = self.backend = self
        self.packets: asyncio.Queue[bytes] = asyncio.Queue()

    def write(self, text: str, viewer: bool) -> None:
        """viewer: it has taken the viewer, who gets this, too."""
        now_ns = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9))
        with (self.directory / "console.log").open("a") as log:
            log.writelines(f"{stamp}.{now_ns % 10**9:09d}+00:00 stdout F {line}\n" for line in text.splitlines())
        if viewer:
            self.packets.put_nowait(text.encode())

    def get(self, name: str) -> FakeMonitor:
        return self

    def reachable(self, verb: str, capability: Capability) -> FakeMonitor:
        return self

    def attach_console(self, read_only: bool) -> FakeMonitor:
        return self

    async def end_of(self, run: int, seconds: float) -> Guest:
        return self.guest

    async def __aenter__(self) -> FakeMonitor:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def output(self) -> AsyncGenerator[bytes]:
        while packet := await self.packets.get():
            yield packet


async def requests() -> AsyncIterator[Request]:
    yield Request(setup=guest_pb2.AttachConsoleSetup(name="guests/c", read_only=True, replay_bytes=1 << 16))
    await asyncio.Event().wait()


MOMENTS = {
    # What it writes before the viewer reads the log; before it takes the viewer; with it.
    "taken at once": (["one\n"], [], ["two\n", "three\n"]),
    "in time": (["one\n"], ["two\n"], ["three\n", "four\n"]),
    "several lines": (["one\n"], ["two\n", "three\n", "four\n"], ["five\n"]),
    "alike": (["one\n"], ["one\n", "two\n"], ["three\n", "one\n"]),
    "never": (["one\n"], ["two\n"], []),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_viewer_misses_nothing_and_sees_nothing_twice(tmp_path: Path, moment: str) -> None:
    before, between, after = MOMENTS[moment]
    monitor = FakeMonitor(tmp_path)
    for text in before:
        monitor.write(text, viewer=False)
    responses = attach(monitor, requests())  # type: ignore[arg-type]
    assert (await anext(responses)).HasField("attached")
    shown = [(await anext(responses)).output]  # the log until now
    for text in between:
        monitor.write(text, viewer=False)
    for text in after:
        monitor.write(text, viewer=True)
    monitor.packets.put_nowait(b"")  # its end
    shown += [response.output async for response in responses]
    assert b"".join(shown).decode() == "".join(before + between + after)
