"""Every method of the API, by its descriptors, with every wrong argument: the answer is one of the table of errors, with the code that stands there,
or it is a good one. Deadlines and cancellation are honoured, and a client that is slow holds nobody but itself."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hvapi.v1 import guest_pb2, network_pb2, network_pb2_grpc

from hvd.daemon import SERVICES
from hvd.errors import REASONS
from tests.api.conftest import Refusal, World
from tests.api_methods import Method, methods
from tests.fuzzing import SECONDS, inputs

METHODS = methods(SERVICES)
# Until a stream that has nothing to say is given up.
STREAM_SECONDS = 0.15
CALL_SECONDS = 60
# What they do when they are asked well goes out to the network, or compiles for minutes.
OUTWARD = {"PullImage", "BuildImage"}
# What is asked well of these lasts: a good answer is none within so long.
WAITING = {"WaitGuest", "TypeKeys"}
WAIT_SECONDS = 0.1
# Of the wrong messages, spread over all fields.
MOST_MESSAGES = 60
STRINGS = ("", "x" * 70, "x" * 5000, "../../etc/passwd", "guests/", "guests/nobody", "guests/A B", "sha256:" + "0" * 64, "\0", "ä", "%s%n", "-rf")
NUMBERS = (0, 1, -1, 1 << 31, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63), (1 << 64) - 1, (1 << 32) - 1)
REALS = (0.0, -1.0, float("inf"), float("nan"), 1e300)
DURATIONS = (duration_pb2.Duration(seconds=-5), duration_pb2.Duration(seconds=1 << 60), duration_pb2.Duration(nanos=-(1 << 31)))
F = FieldDescriptor


def wrong_values(field: Any, depth: int) -> Iterator[Any]:
    if field.type == F.TYPE_MESSAGE:
        if field.message_type.full_name == "google.protobuf.Duration":
            yield from DURATIONS
        elif depth < 4 and not field.message_type.GetOptions().map_entry:
            empty = field.message_type._concrete_class()
            yield empty
            yield from wrong_messages(empty, depth + 1)
    elif field.type == F.TYPE_STRING:
        yield from STRINGS
    elif field.type == F.TYPE_BYTES:
        yield from (b"", b"\xff" * 3, bytes(100_000))
    elif field.type == F.TYPE_BOOL:
        yield True
    elif field.type in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
        yield from REALS
    elif field.type == F.TYPE_ENUM:
        yield from (*(value.number for value in field.enum_type.values), 77)
    else:
        yield from NUMBERS


def wrong_messages(plain: Message, depth: int = 0) -> Iterator[Message]:
    """The message with one field after another that has something wrong, or at least odd; what it has else stays."""
    for field in plain.DESCRIPTOR.fields:
        for value in wrong_values(field, depth):
            changed = type(plain)()
            changed.CopyFrom(plain)
            try:
                if field.type == F.TYPE_MESSAGE:
                    target = getattr(changed, field.name)
                    (target.add() if field.is_repeated else target).CopyFrom(value)
                elif field.is_repeated:
                    getattr(changed, field.name).append(value)
                else:
                    setattr(changed, field.name, value)
            except (ValueError, TypeError, UnicodeEncodeError):  # does not fit into the field: no client can send it
                continue
            yield changed


def plain_message(method: Method, guest: str) -> Message:
    """One that names what there is, so that what is wrong is not only the name."""
    message: Message = method.request()
    names = message.DESCRIPTOR.fields_by_name
    if "name" in names and method.service == "hvd.v1.GuestService" and "Snapshot" not in method.name:
        message.name = guest  # type: ignore[attr-defined]
    for wrapper in ("setup", "guest"):
        if wrapper in names and names[wrapper].message_type and "name" in names[wrapper].message_type.fields_by_name:
            getattr(message, wrapper).name = guest
    return message


async def ask(channel: grpc.aio.Channel, method: Method, request: bytes) -> Refusal | None:
    """What it was refused with; None = it was answered, or goes on."""
    call: Any
    try:
        if method.server_streams:
            if method.client_streams:
                call = channel.stream_stream(method.path)(iter([request]), timeout=CALL_SECONDS)
            else:
                call = channel.unary_stream(method.path)(request, timeout=CALL_SECONDS)
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    await call.read()
            except TimeoutError:
                pass
            finally:
                call.cancel()
        elif method.client_streams:
            await channel.stream_unary(method.path)(iter([request]), timeout=CALL_SECONDS)
        else:
            await channel.unary_unary(method.path)(request, timeout=WAIT_SECONDS if method.name in WAITING else CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.CANCELLED or (method.name in WAITING and error.details() == "Deadline Exceeded"):
            return None
        return Refusal(error)
    except asyncio.CancelledError:  # its own
        pass
    return None


def check(refusal: Refusal | None, method: Method, what: object) -> None:
    if refusal is None:
        return
    assert refusal.reason in REASONS, f"{method}: {refusal.code} {refusal.message} for {what}"
    assert refusal.code == REASONS[refusal.reason].code != "INTERNAL", f"{method}: {refusal.message} for {what}"
    assert refusal.message and refusal.help


@pytest.fixture(autouse=True)
async def no_network_stays(world: World) -> AsyncIterator[None]:
    """Among wrong arguments are right ones: a network that was made has a bridge on the host."""
    yield
    networks = network_pb2_grpc.NetworkServiceStub(world.channel)
    for network in (await networks.ListNetworks(network_pb2.ListNetworksRequest())).networks:
        await networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(name=network.name))


@pytest.mark.parametrize("method", METHODS, ids=str)
async def test_wrong_arguments_get_the_documented_answer(
    world: World, method: Method, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await world.run("there")
    count = 0
    requests = [bytes(message.SerializeToString()) for message in wrong_messages(plain_message(method, guest.name))]
    if method.name in OUTWARD:
        requests = [b""]
    step = max(1, len(requests) // MOST_MESSAGES)
    for request in [method.request().SerializeToString(), *requests[::step]]:
        count += 1
        check(await ask(world.channel, method, request), method, method.request.FromString(request))
    if method.name not in OUTWARD:
        monkeypatch.setattr("tests.fuzzing.SECONDS", SECONDS / 10)
        monkeypatch.setattr("tests.fuzzing.LEAST_INPUTS", 10)
        for request in inputs([plain_message(method, guest.name).SerializeToString() or b"\n\1a"], method.name):
            count += 1
            check(await ask(world.channel, method, request), method, request.hex())
    record_property("inputs", count)
    await world.guests.ListGuests(guest_pb2.ListGuestsRequest())  # it is still there


async def test_a_deadline_ends_a_call_and_what_it_held(world: World) -> None:
    guest = await world.run("there")
    for method in METHODS:
        if method.name in OUTWARD or method.client_streams:
            continue
        request = plain_message(method, guest.name).SerializeToString()
        kind = world.channel.unary_stream if method.server_streams else world.channel.unary_unary
        call = kind(method.path)(request, timeout=0.01)
        began = time.monotonic()
        try:
            if method.server_streams:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            assert error.code().name == "DEADLINE_EXCEEDED" or Refusal(error).reason in REASONS, method
        assert time.monotonic() - began < CALL_SECONDS
    await nothing_held(world)


async def test_cancelled_streams_leave_nothing(world: World) -> None:
    guest = await world.run("there")
    for method in METHODS:
        if not method.server_streams or method.name in OUTWARD:
            continue
        request = plain_message(method, guest.name).SerializeToString()
        started = []
        for _ in range(3):
            if method.client_streams:
                stream = world.channel.stream_stream(method.path)()
                await stream.write(request)
            else:
                stream = world.channel.unary_stream(method.path)(request)
            started.append(stream)
        await asyncio.sleep(0)
        for stream in started:
            stream.cancel()
    await nothing_held(world)


async def nothing_held(world: World) -> None:
    """The daemon has no call under way any more."""
    end = time.monotonic() + CALL_SECONDS
    while clients := [client for client in world.daemon.server.limits._clients.values() if client.calls]:
        assert time.monotonic() < end, clients
        await asyncio.sleep(0.02)


async def test_clients_that_say_little_hold_nobody(world: World) -> None:
    """Connections with nothing, half a greeting, and a greeting that is followed by nothing; and streams that nobody reads."""
    path = str(world.config.runtime_dir / "hvd.sock")
    silent = []
    for number in range(60):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall((b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", os.urandom(200))[number % 4])
        silent.append(sock)
    unread = [world.guests.WatchGuests(guest_pb2.WatchGuestsRequest()) for _ in range(20)]
    began = time.monotonic()
    for number in range(20):
        guest = await world.create(f"g{number}")
        await world.guests.DeleteGuest(guest_pb2.DeleteGuestRequest(name=guest.name))
    assert time.monotonic() - began < CALL_SECONDS
    for watch in unread:
        watch.cancel()
    for sock in silent:
        sock.close()
    await nothing_held(world)


def test_the_methods_are_all_of_proto() -> None:
    root = Path(__file__).resolve().parents[2] / "proto" / "hvd" / "v1"
    text = "\n".join(path.read_text() for path in root.glob("*.proto"))
    assert sorted(method.name for method in METHODS) == sorted(re.findall(r"^\s*rpc (\w+)\(", text, re.MULTILINE))
