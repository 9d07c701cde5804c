"""A whole daemon in the test's process, over a unix socket, on a backend in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hvapi.v1 import guest_pb2, guest_pb2_grpc, inspect_pb2_grpc, system_pb2_grpc, trace_pb2_grpc

from hvd.config import Config
from hvd.daemon import Daemon
from tests.fakes.backend import FakeBackend, FakeGuest


@dataclass
class World:
    """The daemon, its fake backend, and stubs over its admin socket."""

    config: Config
    backend: FakeBackend
    daemon: Daemon
    channel: grpc.aio.Channel
    kernel: str

    def __post_init__(self) -> None:
        self.guests: Any = guest_pb2_grpc.GuestServiceStub(self.channel)
        self.inspect: Any = inspect_pb2_grpc.InspectServiceStub(self.channel)
        self.trace: Any = trace_pb2_grpc.TraceServiceStub(self.channel)
        self.system: Any = system_pb2_grpc.SystemServiceStub(self.channel)

    def socket(self, name: str = "hvd.sock") -> str:
        return f"unix://{self.config.runtime_dir / name}"

    async def create(self, name: str = "a", append: str = "", **fields: Any) -> guest_pb2.Guest:
        request = guest_pb2.CreateGuestRequest(guest_id=name, guest=guest_pb2.Guest(**fields))
        request.guest.machine.kernel = self.kernel
        request.guest.machine.append = append
        return await self.guests.CreateGuest(request)

    async def run(self, name: str = "a", append: str = "", **fields: Any) -> guest_pb2.Guest:
        guest = await self.create(name, append, **fields)
        return await self.guests.StartGuest(guest_pb2.StartGuestRequest(name=guest.name))

    def fake(self, guest: guest_pb2.Guest) -> FakeGuest:
        return self.backend.guests[guest.uid]

    async def get(self, guest: guest_pb2.Guest) -> guest_pb2.Guest:
        return await self.guests.GetGuest(guest_pb2.GetGuestRequest(name=guest.name))

    async def wait(self, guest: guest_pb2.Guest, *states: int, seconds: int = 60) -> guest_pb2.Guest:
        request = guest_pb2.WaitGuestRequest(name=guest.name, states=states)
        request.timeout.seconds = seconds
        return await self.guests.WaitGuest(request)


StartWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def start_world(tmp_path: Path) -> AsyncIterator[StartWorld]:
    """Starts a daemon on this test's directories; a second one, after closing the first, is a restart."""
    worlds: list[World] = []
    backends: list[FakeBackend] = []

    async def start(backend: FakeBackend | None = None, others: tuple[FakeBackend, ...] = (), **settings: Any) -> World:
        backend = backend or FakeBackend()
        backends.append(backend)
        config = Config(
            **{
                "state_dir": tmp_path / "state",
                "runtime_dir": tmp_path / "run",
                "cache_dir": tmp_path / "cache",
                **settings,
            }
        )
        config.state_dir.mkdir(exist_ok=True)
        config.runtime_dir.mkdir(exist_ok=True)
        daemon = Daemon(config, {each.name: each for each in (backend, *others)})
        kernel_file = tmp_path / "kernel"
        kernel_file.write_bytes(b"a kernel")
        kernel = daemon.blobs.add(kernel_file)
        await daemon.start()
        channel = grpc.aio.insecure_channel(f"unix://{config.runtime_dir / 'hvd.sock'}")
        world = World(config, backend, daemon, channel, kernel)
        worlds.append(world)
        return world

    yield start
    for world in worlds:
        await stop(world)
    for backend in backends:
        backend.close()


async def stop(world: World) -> None:
    """End the daemon, gracefully; once."""
    if not getattr(world, "stopped", False):
        world.stopped = True  # type: ignore[attr-defined]
        await world.channel.close()
        await world.daemon.close()


@pytest.fixture
async def world(start_world: StartWorld) -> World:
    return await start_world()


class Refusal:
    """An error as a client sees it."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code().name
        self.message = error.details() or ""
        self.reason, self.metadata, self.help = "", {}, ""
        status = rpc_status.from_call(error)
        assert status is not None, f"no google.rpc.Status in {error}"
        for detail in status.details:
            info, help_ = error_details_pb2.ErrorInfo(), error_details_pb2.Help()
            if detail.Unpack(info):
                self.reason, self.metadata = info.reason, dict(info.metadata)
            if detail.Unpack(help_):
                self.help = help_.links[0].description


async def refused(call: Awaitable[Any]) -> Refusal:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal(caught.value)


async def refused_stream(call: Any) -> Refusal:
    """The same of a stream, after whatever it gave."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return Refusal(caught.value)
