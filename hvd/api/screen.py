"""GetScreen and TypeKeys: what stands on a guest's screen, and typing on its keyboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakValueDictionary

from hvapi.v1 import guest_pb2, guest_pb2_grpc

from hvd.backends.contract import Capability, Instance
from hvd.board import keys
from hvd.errors import HvdError
from hvd.guests.lifecycle import GuestLife
from hvd.guests.model import ENDED
from hvd.guests.supervisor import Supervisor
from hvd.runner import last_screen
from hvd.runner.control import screen_message

# Between two looks of a watch. Nobody reads faster, and each costs the guest one exit.
SAMPLE_SECONDS = 0.05
# How long a keyboard may take nothing before typing fails.
PATIENCE_SECONDS = 10.0
# The guest's process ends when it has written its exit record.
END_SECONDS = 5.0
# Strokes that go to the guest's process at once.
STROKES = 64
# Who types on a guest (its uid) has the keyboard until all is typed: two texts do not mix.
_typing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


class ScreenService(guest_pb2_grpc.GuestServiceServicer):
    """The part of GuestService that is about screen and keyboard."""

    _supervisor: Supervisor

    async def GetScreen(
        self, request: guest_pb2.GetScreenRequest, context: Any
    ) -> AsyncIterator[guest_pb2.GetScreenResponse]:
        life = self._supervisor.get(request.name)
        if life.instance is None and (screen := await _last_screen(life)) is not None:
            yield guest_pb2.GetScreenResponse(screen=screen)
            return
        instance, run = life.reachable("screen", Capability.SCREEN), life.run
        shown: guest_pb2.Screen | None = None
        while True:
            try:
                screen = await instance.screen()
            except HvdError as error:
                # That the guest ends is the end of a watch, not its failure.
                if error.reason != "RUNNER_GONE" or await life.end_of(run, END_SECONDS) is None:
                    raise
                screen = await _last_screen(life)
                if screen is not None and (shown is None or screen.cells != shown.cells):
                    yield guest_pb2.GetScreenResponse(screen=screen)
                elif shown is None:
                    raise
                return
            if screen != shown:
                yield guest_pb2.GetScreenResponse(screen=screen)
                shown = screen
            if not request.watch:
                return
            await asyncio.sleep(SAMPLE_SECONDS)

    async def TypeKeys(self, request: guest_pb2.TypeKeysRequest, context: Any) -> guest_pb2.TypeKeysResponse:
        life = self._supervisor.get(request.name)
        instance = life.reachable("type", Capability.KEYBOARD)
        strokes: list[keys.Stroke] = []
        for entry in request.inputs:
            strokes += keys.of_text(entry.text) if entry.HasField("text") else [keys.of_chord(entry.key)]
        events = _events(strokes)
        async with _typing.setdefault(life.guest.uid, asyncio.Lock()):
            await _type(instance, strokes)
        return guest_pb2.TypeKeysResponse(events=events)


async def _type(instance: Instance, strokes: list[keys.Stroke]) -> None:
    """As fast as the guest takes them. Raises HvdError KEYBOARD_FULL."""
    wanted = _events(strokes)
    while strokes:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                taken = await instance.type_keys(strokes[:STROKES])
        except TimeoutError:
            raise HvdError(
                "KEYBOARD_FULL", events=wanted - _events(strokes), wanted=wanted, seconds=PATIENCE_SECONDS
            ) from None
        del strokes[:taken]


async def _last_screen(life: GuestLife) -> guest_pb2.Screen | None:
    """Of a guest that has ended."""
    image = await asyncio.to_thread(last_screen.read, life.directory) if life.guest.state in ENDED else None
    return None if image is None else screen_message(image)


def _events(strokes: list[keys.Stroke]) -> int:
    """Presses and releases."""
    return sum(2 * len(stroke) for stroke in strokes)
