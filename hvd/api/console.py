"""AttachConsole: one viewer of a guest's console, from the setup frame to the guest's end.

The guest's process sends to each viewer what the guest writes from the attachment on; what the present run wrote before
comes from the log. Where the one ends and the other begins a VM's process tells (ConsoleAttachment.position), so that
no byte is lost or repeated. conmon does not: for its guests the log's end is matched with the first output, which can
misplace bytes of an output that repeats itself. A viewer that is slow holds up nobody: its packets pile up here to a
bound, then at the guest's process, which skips and says how much.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from google.protobuf import empty_pb2
from hvapi.v1 import guest_pb2

from hvd.api.interceptors import require
from hvd.api.roles import Permission
from hvd.backends.contract import Capability, ConsoleAttachment, Instance
from hvd.errors import HvdError
from hvd.guests import conditions
from hvd.guests.lifecycle import GuestLife
from hvd.guests.logs import read_before, read_end
from hvd.guests.model import ENDED, Guest, State, copy_of
from hvd.guests.supervisor import Supervisor
from hvd.runner.directory import LogPosition

Request = guest_pb2.AttachConsoleRequest
Response = guest_pb2.AttachConsoleResponse
MOST_REPLAY = 1 << 20
# Packets that wait here for a slow viewer.
PENDING_PACKETS = 64
# Of what a viewer was shown, for what it may have missed.
MISSED_BYTES = 64 << 10
# An attachment that was closed means that the guest ends; its exit record may be a moment behind.
END_SECONDS = 5.0
START_SECONDS = 30.0
# bytes = output, int = skipped, str = a warning, an exception = what ended it, None = the guest closed its console.
Packet = bytes | int | str | Exception | None
_STARTED = frozenset(State.values()) - {Guest.STATE_UNSPECIFIED, Guest.STARTING}


async def attach(supervisor: Supervisor, requests: AsyncIterator[Request]) -> AsyncIterator[Response]:
    """Raises HvdError GUEST_NOT_FOUND, GUEST_WRONG_STATE, CAPABILITY_MISSING, ROLE_FORBIDDEN, REQUEST_INVALID,
    FIELD_INVALID.
    """
    setup = await _setup(requests)
    life = supervisor.get(setup.name)
    if life.guest.state == Guest.STARTING:
        await life.wait(_STARTED, START_SECONDS)
    if life.instance is None and life.guest.state in ENDED and setup.replay_bytes:
        async for response in _ended(life, copy_of(life.guest), setup):
            yield response
        return
    instance, run = life.reachable("attach", Capability.CONSOLE), life.run
    attached = False
    attached_ns = time.time_ns()
    try:
        async with instance.attach_console(setup.read_only) as attachment:
            attached = True
            async for response in _attached(life, instance, attachment, setup, requests, attached_ns):
                yield response
    except HvdError as error:
        # A guest that ends just now may close its console before it has taken the viewer.
        if attached or error.reason != "RUNNER_GONE" or (ended := await life.end_of(run, END_SECONDS)) is None:
            raise
        async for response in _ended(life, ended, setup):
            yield response
        return
    ended = await life.end_of(run, END_SECONDS)
    if ended is None:
        raise HvdError("RUNNER_GONE", problem="it closed the console although the guest goes on")
    yield Response(ended=ended)


async def _ended(
    life: GuestLife, guest: guest_pb2.Guest, setup: guest_pb2.AttachConsoleSetup
) -> AsyncIterator[Response]:
    """It ended before the viewer came: it still gets what there was, and how it ended."""
    yield Response(attached=empty_pb2.Empty())
    if log := await _read_log(life, setup):
        yield Response(output=log)
    yield Response(ended=guest)


async def _read_log(
    life: GuestLife, setup: guest_pb2.AttachConsoleSetup, position: LogPosition | None = None, since_ns: int = 0
) -> bytes:
    """What the present run wrote, or one that began then, before a place in the log or until now."""
    streams = life.backend.console_streams
    if position is not None:
        return await asyncio.to_thread(read_before, position, setup.replay_bytes, streams)
    since_ns = since_ns or life.guest.start_time.ToNanoseconds()
    return await asyncio.to_thread(read_end, life.directory, setup.replay_bytes, streams, since_ns)


async def _setup(requests: AsyncIterator[Request]) -> guest_pb2.AttachConsoleSetup:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("frame") != "setup":
        raise HvdError(
            "REQUEST_INVALID",
            problem="the first frame of AttachConsole is no setup",
            remedy="send setup with the name first",
        )
    setup = first.setup
    if not setup.read_only:
        require(Permission.OPERATE, "AttachConsole (not read_only)")
    if not 0 <= setup.replay_bytes <= MOST_REPLAY:
        raise HvdError(
            "FIELD_INVALID",
            field="setup.replay_bytes",
            value=setup.replay_bytes,
            problem="is out of range",
            remedy=f"use 0-{MOST_REPLAY}",
        )
    return setup


async def _attached(
    life: GuestLife,
    instance: Instance,
    attachment: ConsoleAttachment,
    setup: guest_pb2.AttachConsoleSetup,
    requests: AsyncIterator[Request],
    attached_ns: int,
) -> AsyncIterator[Response]:
    """attached_ns: time.time_ns() before the attachment was made."""
    shown, missed, began_ns = _Shown(b""), _Missed(None), life.guest.start_time.ToNanoseconds()
    replayed: bytes | None = None  # until the first output after it, where the attachment does not tell its place
    if setup.HasField("size") and not setup.read_only:
        await instance.resize_console(setup.size.rows, setup.size.columns)
    yield Response(attached=empty_pb2.Empty())
    packets: asyncio.Queue[Packet] = asyncio.Queue(PENDING_PACKETS)
    tasks = [
        asyncio.create_task(_listen(attachment, packets)),
        asyncio.create_task(_type(instance, attachment, setup.read_only, requests, packets)),
        asyncio.create_task(_warn(life, packets)),
    ]
    try:
        if setup.replay_bytes and attachment.position is not None:
            if log := await _read_log(life, setup, attachment.position):
                yield Response(output=log)
        elif setup.replay_bytes:
            if log := await _read_log(life, setup):
                yield Response(output=log)
            since = await asyncio.to_thread(read_end, life.directory, setup.replay_bytes, life.backend.console_streams, attached_ns)
            shown = _Shown(since[: _overlap(log, since)])
            missed, replayed = _Missed(log), log
        while (response := _response(shown.rest(await packets.get()))) is not None:
            if response.output and replayed is not None:
                before = _between(replayed, await _read_log(life, setup, since_ns=began_ns), response.output)
                replayed, response.output = None, before + response.output
            if response.output or response.WhichOneof("frame") != "output":
                missed.saw(response.output)
                yield response
        if missed.is_known and (late := missed.of(await _read_log(life, setup, since_ns=began_ns))):
            yield Response(output=late)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _response(packet: Packet) -> Response | None:
    if isinstance(packet, Exception):
        raise packet
    if isinstance(packet, bytes):
        return Response(output=packet)
    if isinstance(packet, str):
        return Response(warning=packet)
    return None if packet is None else Response(skipped_bytes=packet)


async def _warn(life: GuestLife, packets: asyncio.Queue[Packet]) -> None:
    """Once, as soon as there is something."""
    await life.warned.wait()
    if message := conditions.warning(life.guest):
        await packets.put(message)


async def _listen(attachment: ConsoleAttachment, packets: asyncio.Queue[Packet]) -> None:
    try:
        async for packet in attachment.output():
            await packets.put(packet)
        await packets.put(None)
    except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
        await packets.put(error)


async def _type(
    instance: Instance,
    attachment: ConsoleAttachment,
    read_only: bool,
    requests: AsyncIterator[Request],
    packets: asyncio.Queue[Packet],
) -> None:
    """What the viewer sends. A viewer that closes its side goes on looking."""
    try:
        async for request in requests:
            frame = request.WhichOneof("frame")
            if frame == "setup" or frame is None:
                raise HvdError(
                    "REQUEST_INVALID",
                    problem="a later frame of AttachConsole is neither input nor size",
                    remedy="send setup once, first",
                )
            if read_only and frame == "input":
                raise HvdError(
                    "REQUEST_INVALID",
                    problem="input to a console that was attached read_only",
                    remedy="attach without it",
                )
            if frame == "input":
                await attachment.write(request.input)
            elif frame == "input_end":
                if not read_only:
                    await attachment.end_input()
            elif not read_only:
                await instance.resize_console(request.size.rows, request.size.columns)
    except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
        await packets.put(error)


class _Missed:
    """What a short-lived container wrote between our look at its log and the moment at which its monitor took the viewer: the monitor
    accepts connections only when it has nothing else to do. Its log has it; known as long as little was shown."""

    def __init__(self, log: bytes | None) -> None:
        """log: what was shown of it; None = this viewer did not want to see what came before."""
        self._shown = log

    @property
    def is_known(self) -> bool:
        return self._shown is not None

    def saw(self, output: bytes) -> None:
        if self._shown is not None:
            self._shown = self._shown + output if len(self._shown) + len(output) <= MISSED_BYTES else None

    def of(self, log: bytes) -> bytes:
        """log: all of it, when the guest has ended."""
        assert self._shown is not None
        return log[len(self._shown) :] if log.startswith(self._shown) else b""


class _Shown:
    """What the viewer has had from the log and may get once more by its attachment, whose monitor writes it to both, the log first."""

    def __init__(self, recent: bytes) -> None:
        """recent: the end of what was shown, from when the attachment was made; it was taken a little later."""
        self._recent = recent
        self._begun = False

    def rest(self, packet: Packet) -> Packet:
        """A packet of the attachment without what was shown."""
        if not self._recent or not isinstance(packet, bytes):
            return packet
        if not self._begun:
            self._begun = True
            begins = (at for at in range(len(self._recent)) if packet.startswith(self._recent[at:]) or self._recent.startswith(packet, at))
            self._recent = self._recent[next(begins, len(self._recent)) :]
        common = min(len(self._recent), len(packet))
        if self._recent[:common] != packet[:common]:
            common, self._recent = 0, b""
        self._recent = self._recent[common:]
        return packet[common:]


def _between(shown: bytes, log: bytes, output: bytes) -> bytes:
    """What the log has between what was shown of it and this output, which the monitor wrote there, too, before it sent it: what it wrote
    when it had not taken the viewer yet. Nothing where the log does not tell: it is longer than what is replayed."""
    if not log.startswith(shown):
        return b""
    return log[len(shown) : max(log.find(output, len(shown)), len(shown))]


def _overlap(log: bytes, live: bytes) -> int:
    """How many bytes at the end of the one are the beginning of the other."""
    start = max(0, len(log) - len(live))
    while live and (start := log.find(live[0], start)) >= 0:
        length = len(log) - start
        if log[start : start + 64] == live[: min(64, length)] and log.endswith(live[:length]):
            return length
        start += 1
    return 0
