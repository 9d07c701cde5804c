"""GetScreen and TypeKeys: watches that sample, order and atomicity of what is typed, and errors."""

from __future__ import annotations

import asyncio
import json
import time

import grpc
import pytest
from hvapi.v1 import guest_pb2

from hvd.api import screen
from hvd.runner.directory import SCREEN
from tests.api.conftest import World, refused, refused_stream

Request = guest_pb2.GetScreenRequest
KeyInput = guest_pb2.KeyInput


async def test_one_look(world: World) -> None:
    guest = await world.run()
    answers = [answer async for answer in world.guests.GetScreen(Request(name=guest.name))]
    assert [answer.screen.cells for answer in answers] == [b"a\x07"]
    assert world.fake(guest).looks == 1


async def test_a_watch_tells_changes_only_and_looks_twenty_times_a_second(world: World) -> None:
    guest = await world.run()
    fake = world.fake(guest)
    began = time.monotonic()
    watch = world.guests.GetScreen(Request(name=guest.name, watch=True))
    assert (await watch.read()).screen.cells == b"a\x07"
    for cell in (b"b\x07", b"c\x07"):
        fake.shown = cell
        assert (await asyncio.wait_for(watch.read(), 60)).screen.cells == cell
    looked = fake.looks
    while fake.looks < looked + 5:  # it goes on looking, and says nothing
        await asyncio.sleep(0.02)
    assert fake.looks <= (time.monotonic() - began) / screen.SAMPLE_SECONDS + 1
    watch.cancel()
    looked = -1
    while looked != fake.looks:  # nobody watches: nobody looks
        looked = fake.looks
        await asyncio.sleep(4 * screen.SAMPLE_SECONDS)


async def test_a_watch_ends_with_the_guest(world: World) -> None:
    guest = await world.run()
    watch = world.guests.GetScreen(Request(name=guest.name, watch=True))
    assert (await watch.read()).screen.cells == b"a\x07"
    await world.fake(guest).end("HALTED")
    assert await watch.read() is grpc.aio.EOF


async def test_the_last_screen_is_kept(world: World) -> None:
    guest = await world.run()
    watch = world.guests.GetScreen(Request(name=guest.name, watch=True))
    assert (await watch.read()).screen.cells == b"a\x07"
    document = {"columns": 1, "rows": 1, "cells": "7a07", "cursor": None, "palette": bytes(48).hex()}
    (world.fake(guest).directory / SCREEN).write_text(json.dumps(document))
    await world.fake(guest).end("HALTED")
    assert (await watch.read()).screen.cells == b"z\x07"
    assert await watch.read() is grpc.aio.EOF
    answers = [answer async for answer in world.guests.GetScreen(Request(name=guest.name))]
    assert [answer.screen.cells for answer in answers] == [b"z\x07"] and "ended" in answers[0].screen.note
    (world.fake(guest).directory / SCREEN).write_text("{}")
    assert (await refused_stream(world.guests.GetScreen(Request(name=guest.name)))).reason == "GUEST_WRONG_STATE"


async def test_what_is_typed_keeps_its_order(world: World) -> None:
    guest = await world.run()
    inputs = [KeyInput(text="aB"), KeyInput(key="ctrl-c"), KeyInput(text="x" * 200)]
    answer = await world.guests.TypeKeys(guest_pb2.TypeKeysRequest(name=guest.name, inputs=inputs))
    fake = world.fake(guest)
    assert fake.strokes == [("a",), ("leftshift", "b"), ("leftctrl", "c"), *[("x",)] * 200]
    assert answer.events == 2 * (1 + 2 + 2 + 200)


async def test_two_who_type_at_once_do_not_mix(world: World) -> None:
    guest = await world.run()
    requests = [guest_pb2.TypeKeysRequest(name=guest.name, inputs=[KeyInput(text=letter * 150)]) for letter in "abc"]
    await asyncio.gather(*(world.guests.TypeKeys(request) for request in requests))
    typed = [stroke[0] for stroke in world.fake(guest).strokes]
    assert sorted(typed[::150]) == ["a", "b", "c"] and all(len(set(typed[n : n + 150])) == 1 for n in (0, 150, 300))


async def test_nothing_is_typed_when_a_part_of_it_cannot_be(world: World) -> None:
    guest = await world.run()
    for bad in (KeyInput(text="ü"), KeyInput(key="hyper-x"), KeyInput()):
        request = guest_pb2.TypeKeysRequest(name=guest.name, inputs=[KeyInput(text="a"), bad])
        assert (await refused(world.guests.TypeKeys(request))).reason == "FIELD_INVALID"
    assert world.fake(guest).strokes == []


async def test_a_guest_that_does_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "PATIENCE_SECONDS", 0.2)
    guest = await world.run()
    world.fake(guest).key_room = 3
    request = guest_pb2.TypeKeysRequest(name=guest.name, inputs=[KeyInput(text="abcde")])
    refusal = await refused(world.guests.TypeKeys(request))
    assert refusal.reason == "KEYBOARD_FULL"
    assert (refusal.metadata["events"], refusal.metadata["wanted"]) == ("6", "10")
    assert world.fake(guest).strokes == [("a",), ("b",), ("c",)]


async def test_a_guest_that_does_not_run(world: World) -> None:
    guest = await world.create()
    assert (await refused_stream(world.guests.GetScreen(Request(name=guest.name)))).reason == "GUEST_WRONG_STATE"
    request = guest_pb2.TypeKeysRequest(name=guest.name, inputs=[KeyInput(text="a")])
    assert (await refused(world.guests.TypeKeys(request))).reason == "GUEST_WRONG_STATE"
    assert (await refused_stream(world.guests.GetScreen(Request(name="guests/nobody")))).reason == "GUEST_NOT_FOUND"
