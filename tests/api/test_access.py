"""Who may do what, how much of it, and what is written down about it."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hvapi.v1 import guest_pb2, guest_pb2_grpc, system_pb2, system_pb2_grpc
from structlog.testing import capture_logs

from hvd.api import audit, errors, limits, roles
from hvd.api.limits import CallLimits
from hvd.daemon import SERVICES
from hvd.errors import HvdError
from tests.api.conftest import Refusal, StartWorld, World, refused, refused_stream
from tests.api_methods import Method, methods

METHODS = methods(SERVICES)


def call(channel: grpc.aio.Channel, method: Method) -> Any:
    """One with an empty request, or none."""
    if method.client_streams:
        kind = channel.stream_stream if method.server_streams else channel.stream_unary
        return kind(method.path)(iter([b""]), timeout=60)
    unary = channel.unary_stream if method.server_streams else channel.unary_unary
    return unary(method.path)(b"", timeout=60)


@pytest.mark.parametrize("role", list(roles.Role))
async def test_every_method_is_refused_to_roles_without_its_permission(world: World, role: roles.Role) -> None:
    async with grpc.aio.insecure_channel(world.socket(roles.SOCKETS[role])) as channel:
        for method in METHODS:
            assert method.path in roles.METHODS, "it would be for admins only, which nobody decided"
            permission = roles.METHODS[method.path]
            if permission in roles.GRANTS[role]:
                continue
            started = call(channel, method)
            error = await (refused_stream(started) if method.server_streams else refused(started))
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_FORBIDDEN"), method
            assert error.metadata["role"] == role and permission in roles.GRANTS[roles.Role(error.metadata["needed"].split(" or ")[0])]


def test_what_shows_a_guest_s_secrets_is_the_tracers_and_admins_alone() -> None:
    for method in ("InspectService/ReadMemory", "InspectService/GetRegisters", "TraceService/StreamTrace", "GuestService/ExportSnapshot"):
        permission = roles.METHODS[f"/hvd.v1.{method}"]
        assert {role for role, grants in roles.GRANTS.items() if permission in grants} == {roles.Role.TRACE, roles.Role.ADMIN}


# --- sockets ---


async def test_sockets_have_the_group_and_mode_that_were_asked_for(start_world: StartWorld) -> None:
    other = next((entry for entry in grp.getgrall() if entry.gr_gid != os.getegid() and os.geteuid() == 0), grp.getgrgid(os.getegid()))
    world = await start_world(socket_group=(f"trace={other.gr_gid}",), socket_mode=("view=666", "admin=600"))
    found = {}
    for role, name in roles.SOCKETS.items():
        about = (world.config.runtime_dir / name).stat()
        found[role] = (stat.S_IMODE(about.st_mode), about.st_gid)
    assert found == {
        "view": (0o666, os.getegid()), "trace": (0o660, other.gr_gid), "operate": (0o660, os.getegid()), "admin": (0o600, os.getegid()),
    }  # fmt: skip


# --- limits ---


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    status = rpc_status.from_call(error)
    assert status is not None
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return 0.0


async def test_a_flood_on_one_socket_is_refused_there_and_told_when_to_repeat(start_world: StartWorld) -> None:
    world = await start_world(call_rate=1)
    request = system_pb2.GetInfoRequest()
    async with grpc.aio.insecure_channel(world.socket("hvd-view.sock")) as channel:
        viewer: Any = system_pb2_grpc.SystemServiceStub(channel)
        caught = None
        for _ in range(50):
            try:
                await viewer.GetInfo(request)
            except grpc.aio.AioRpcError as error:
                caught = error
                break
        assert caught is not None
        refusal = Refusal(caught)
        assert (refusal.code, refusal.reason, refusal.metadata["client"]) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", "socket view")
        assert 0 < retry_seconds(caught) <= 1
        await world.system.GetInfo(request)  # another socket has its own share
        await asyncio.sleep(retry_seconds(caught))
        await viewer.GetInfo(request)


async def test_streams_count_while_they_are_open(start_world: StartWorld) -> None:
    world = await start_world(max_calls=2)
    watches = [world.guests.WatchGuests(guest_pb2.WatchGuestsRequest()) for _ in range(2)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.system.GetInfo(system_pb2.GetInfoRequest())
    assert Refusal(caught.value).reason == "TOO_MANY_CALLS" and retry_seconds(caught.value) > 0
    watches[0].cancel()
    for _ in range(1000):  # until the daemon has heard of it
        try:
            await world.system.GetInfo(system_pb2.GetInfoRequest())
            break
        except grpc.aio.AioRpcError as error:
            assert Refusal(error).reason == "TOO_MANY_CALLS"
            await asyncio.sleep(0.05)
    else:
        pytest.fail("a stream that was cancelled still counts")
    watches[1].cancel()


async def test_every_method_takes_messages_up_to_its_size_only(world: World) -> None:
    kinds = {(False, False): world.channel.unary_unary, (False, True): world.channel.unary_stream,
             (True, False): world.channel.stream_unary, (True, True): world.channel.stream_stream}  # fmt: skip
    for method in METHODS:
        most = limits.message_bytes(method.path)
        # A field that no message has: well-formed, and as long as need be.
        data = bytes([0xFA, 0xFF, 0x7F]) + varint(most - 6, 4) + bytes(most - 6)
        assert len(data) == most + 1
        request = iter([data]) if method.client_streams else data
        started = kinds[method.client_streams, method.server_streams](method.path)(request, timeout=30)
        error = await (refused_stream(started) if method.server_streams else refused(started))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"), method
        assert error.metadata == {"method": method.name, "size": str(most + 1), "most": str(most)}


def varint(value: int, length: int) -> bytes:
    return bytes(value >> 7 * at & 0x7F | (0x80 if at < length - 1 else 0) for at in range(length))


def test_tokens_come_back_with_time_and_the_silent_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    calls = CallLimits(2, 10, clock=lambda: now[0])

    def passed() -> int:
        count = 0
        while True:
            try:
                calls.end(calls.begin("a"))
                count += 1
            except HvdError as error:
                assert error.reason == "RATE_LIMITED"
                return count

    assert passed() == 4  # a burst of two seconds' worth
    assert passed() == 0
    now[0] += 0.5
    assert passed() == 1
    now[0] += 1000
    assert passed() == 4
    monkeypatch.setattr(limits, "MOST_CLIENTS", 3)
    calls.begin("busy")
    for number in range(20):
        calls.end(calls.begin(f"client {number}"))
    assert "busy" in calls._clients and len(calls._clients) <= 4


# --- audit ---


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs() as logs:
        yield logs


async def test_the_audit_log_says_who_did_what_to_which_guest(start_world: StartWorld, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    world = await start_world(audit_log=path)
    guest = await world.run("audited", labels={"password": "hunter2"})
    await world.get(guest)  # looking is not audited
    async with grpc.aio.insecure_channel(world.socket("hvd-view.sock")) as channel:
        viewer: Any = guest_pb2_grpc.GuestServiceStub(channel)
        assert (await refused(viewer.KillGuest(guest_pb2.KillGuestRequest(name=guest.name)))).code == "PERMISSION_DENIED"
    call = world.guests.KillGuest(
        guest_pb2.KillGuestRequest(name=guest.name), metadata=(("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),)
    )
    await call
    text = path.read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    assert [(entry["method"], entry["code"], entry["role"], entry["targets"]) for entry in entries] == [
        ("CreateGuest", "OK", "admin", ["guests/audited"]),
        ("StartGuest", "OK", "admin", ["guests/audited"]),
        ("KillGuest", "PERMISSION_DENIED", "view", ["guests/audited"]),
        ("KillGuest", "OK", "admin", ["guests/audited"]),
    ]
    for entry in entries:
        assert (entry["uid"], entry["pid"]) == (os.getuid(), os.getpid()) and entry["ms"] >= 0 and entry["time"]
        assert entry["guest"] == "guests/audited"
    assert len({entry["trace_id"] for entry in entries}) == 4 and entries[-1]["trace_id"] == "ab" * 16
    assert "hunter2" not in text and stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_is_refused_is_written_down_before_that_is_told(
    start_world: StartWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    world = await start_world(audit_log=path, metrics_listen="127.0.0.1:0", max_calls=1)
    abort, told = errors.abort, asyncio.Event()

    async def slow(context: Any, error: HvdError) -> None:
        """The client knows, the daemon gets on later."""
        try:
            await abort(context, error)
        finally:
            await told.wait()

    monkeypatch.setattr(errors, "abort", slow)
    assert (await refused(world.guests.KillGuest(guest_pb2.KillGuestRequest(name="guests/nobody")))).reason == "GUEST_NOT_FOUND"
    (entry,) = (json.loads(line) for line in path.read_text().splitlines())
    assert (entry["method"], entry["code"]) == ("KillGuest", "NOT_FOUND")
    info = await world.system.GetInfo(system_pb2.GetInfoRequest())  # nor does it count as a call under way
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(info.metrics_address, timeout=60).read().decode())
    assert 'hvd_operation_duration_seconds_count{code="NOT_FOUND",method="hvd.v1.GuestService/KillGuest"} 1.0' in page
    told.set()


async def test_an_audit_log_that_cannot_be_written_is_told(start_world: StartWorld, tmp_path: Path) -> None:
    with pytest.raises(HvdError) as caught:
        await start_world(audit_log=tmp_path / "no/such/directory")
    assert caught.value.reason == "CONFIG_INVALID" and caught.value.metadata["setting"] == "audit-log"


async def test_a_full_disk_stops_the_audit_log_and_nothing_else(start_world: StartWorld, lines: list[Any]) -> None:
    world = await start_world(audit_log=Path("/dev/full"))
    await world.run()
    problems = [line for line in lines if line["event"] == "audit-log cannot be written"]
    assert len(problems) == 1 and problems[0]["log_level"] == "error"


def test_only_names_are_repeated_from_requests() -> None:
    wanted = guest_pb2.UpdateGuestRequest(guest={"name": "guests/a", "labels": {"name": "secret"}})
    assert audit.targets(wanted) == ["guests/a"]
    assert audit.targets(guest_pb2.GetGuestRequest(name="my password is hunter2!")) == []
    assert audit.targets(guest_pb2.AttachConsoleRequest(setup={"name": "guests/b"})) == ["guests/b"]
    assert audit.targets(None) == []
