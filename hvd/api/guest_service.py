"""GuestService: the lifecycle of guests, their events, console and log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import duration_pb2, empty_pb2
from hvapi.v1 import guest_pb2, guest_pb2_grpc

from hvd.api import console
from hvd.api.copying import CopyService
from hvd.api.execution import ExecutionService
from hvd.api.screen import ScreenService
from hvd.api.snapshots import SnapshotService
from hvd.backends.contract import Capability
from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.events import now
from hvd.guests.logs import Line, LogReader
from hvd.guests.snapshot_clone import Cloner
from hvd.guests.snapshot_restore import Restorer
from hvd.guests.snapshots import Snapshots
from hvd.guests.supervisor import Supervisor

GuestEvent = guest_pb2.GuestEvent
# One message of a log: at most so many lines and (about) so many bytes.
LOG_LINES, LOG_BYTES = 1000, 1 << 18
FOLLOW_SECONDS = 0.05
_MOST_SECONDS = 366 * 86400.0


class GuestService(CopyService, ExecutionService, ScreenService, SnapshotService, guest_pb2_grpc.GuestServiceServicer):
    def __init__(self, supervisor: Supervisor, snapshots: Snapshots) -> None:
        self._supervisor = supervisor
        self._snapshots = snapshots
        self._restorer = Restorer(snapshots)
        self._cloner = Cloner(self._restorer)

    async def CreateGuest(self, request: guest_pb2.CreateGuestRequest, context: Any) -> guest_pb2.Guest:
        return await self._supervisor.create(request)

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: Any) -> guest_pb2.Guest:
        return await self._supervisor.shown(self._supervisor.get(request.name))

    async def ListGuests(self, request: guest_pb2.ListGuestsRequest, context: Any) -> guest_pb2.ListGuestsResponse:
        guests, token = self._supervisor.page(request.page_size, request.page_token, dict(request.labels))
        return guest_pb2.ListGuestsResponse(guests=guests, next_page_token=token)

    async def UpdateGuest(self, request: guest_pb2.UpdateGuestRequest, context: Any) -> guest_pb2.Guest:
        return await self._supervisor.update(request.guest, request.update_mask.paths)

    async def DeleteGuest(self, request: guest_pb2.DeleteGuestRequest, context: Any) -> empty_pb2.Empty:
        try:
            await self._supervisor.get(request.name).delete(request.force, request.etag)
        except HvdError as error:
            if not (error.reason == "GUEST_NOT_FOUND" and request.allow_missing):
                raise
        return empty_pb2.Empty()

    async def StartGuest(self, request: guest_pb2.StartGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        await life.start(request.paused, request.attach_stdin)
        return life.guest

    async def StopGuest(self, request: guest_pb2.StopGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        grace = _seconds(request, "grace_period")
        await life.stop(self._supervisor.stop_grace if grace is None else grace)
        return life.guest

    async def KillGuest(self, request: guest_pb2.KillGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        if request.signal and request.signal != "SIGKILL":
            life.reachable("kill", Capability.SIGNAL).signal(request.signal)
        else:
            await life.kill()
        return life.guest

    async def PauseGuest(self, request: guest_pb2.PauseGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        await life.pause()
        return life.guest

    async def ResumeGuest(self, request: guest_pb2.ResumeGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        await life.resume()
        return life.guest

    async def ResetGuest(self, request: guest_pb2.ResetGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        await life.reset()
        return life.guest

    async def WaitGuest(self, request: guest_pb2.WaitGuestRequest, context: Any) -> guest_pb2.Guest:
        life = self._supervisor.get(request.name)
        for state in request.states:
            if state == guest_pb2.Guest.STATE_UNSPECIFIED or state not in model.State.values():
                raise HvdError(
                    "FIELD_INVALID", field="states", value=state, problem="is no state", remedy="name known states"
                )
        return await life.wait(frozenset(request.states) or model.ENDED, _seconds(request, "timeout"))

    async def WatchGuests(
        self, request: guest_pb2.WatchGuestsRequest, context: Any
    ) -> AsyncIterator[guest_pb2.GuestEvent]:
        wanted = {model.PREFIX + model.parse_name(name) for name in request.names}
        events = self._supervisor.events
        present: list[guest_pb2.GuestEvent] = []
        if request.resume_token:
            position = events.parse(request.resume_token)
        else:
            # Taken in one go with the position, so that nothing falls between the present and the first change.
            position = events.position
            if not request.changes_only:
                present = [
                    GuestEvent(type=GuestEvent.PRESENT, guest=life.guest, time=now())
                    for life in self._supervisor
                    if not wanted or life.guest.name in wanted
                ]
                bookmark = events.token(position)
                present.append(GuestEvent(type=GuestEvent.BOOKMARK, time=now(), resume_token=bookmark))
        # Tells the client that from now on it misses nothing, even when there is nothing to send yet.
        await context.send_initial_metadata(())
        for event in present:
            yield event
        while True:
            batch, position = await events.after(position)
            for event in batch:
                if not wanted or event.guest.name in wanted:
                    yield event

    async def AttachConsole(
        self, request_iterator: AsyncIterator[guest_pb2.AttachConsoleRequest], context: Any
    ) -> AsyncIterator[guest_pb2.AttachConsoleResponse]:
        async for response in console.attach(self._supervisor, request_iterator):
            yield response

    async def GetLogs(
        self, request: guest_pb2.GetLogsRequest, context: Any
    ) -> AsyncIterator[guest_pb2.GetLogsResponse]:
        life = self._supervisor.get(request.name)
        if request.tail < 0:
            raise HvdError(
                "FIELD_INVALID", field="tail", value=request.tail, problem="is negative", remedy="use 0 or more"
            )
        try:
            since = request.since.ToNanoseconds()
        except ValueError as error:
            raise HvdError(
                "FIELD_INVALID", field="since", value=request.since.seconds, problem=str(error), remedy="use a time of the years 1 to 9999"
            ) from error
        reader = LogReader(life.directory)
        try:
            if request.HasField("tail"):
                lines = await asyncio.to_thread(reader.read_tail, request.tail)
                for response in _responses(lines, since):
                    yield response
                if not request.follow:
                    return
            while True:
                # Asked before reading: what was written before the end is then read.
                over = not request.follow or life.deleted or not (life.is_alive or life.restarts)
                if reader.has_news():
                    while lines := await asyncio.to_thread(reader.read, LOG_LINES, LOG_BYTES):
                        for response in _responses(lines, since):
                            yield response
                if over:
                    return
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            reader.close()


def _responses(lines: list[Line], since_ns: int) -> list[guest_pb2.GetLogsResponse]:
    responses = []
    response, size = guest_pb2.GetLogsResponse(), 0
    for line in lines:
        if line.time_ns < since_ns:
            continue
        entry = response.lines.add(stream=line.stream, text=line.text)
        entry.time.seconds, entry.time.nanos = divmod(line.time_ns, 1_000_000_000)
        size += len(line.text)
        if len(response.lines) >= LOG_LINES or size >= LOG_BYTES:
            responses.append(response)
            response, size = guest_pb2.GetLogsResponse(), 0
    if response.lines:
        responses.append(response)
    return responses


def _seconds(request: Any, field: str) -> float | None:
    """A duration of a request in seconds; None = absent. Raises HvdError FIELD_INVALID."""
    if not request.HasField(field):
        return None
    duration: duration_pb2.Duration = getattr(request, field)
    seconds = duration.seconds + duration.nanos / 1e9
    if not 0 <= seconds <= _MOST_SECONDS:
        raise HvdError(
            "FIELD_INVALID", field=field, value=f"{seconds} s", problem="is out of range", remedy="use 0 s or more"
        )
    return seconds
