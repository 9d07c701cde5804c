"""The event log: every change of every guest, numbered, kept in memory up to a bound, read by any number of watchers at
their own pace.

A resume token is "{boot}:{sequence}"; boot changes with each start of the daemon, so that a token of an earlier daemon
is told apart and answered with RESUME_TOKEN_EXPIRED instead of the wrong events.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque

from google.protobuf import timestamp_pb2
from hvapi.v1 import guest_pb2

from hvd.errors import HvdError

GuestEvent = guest_pb2.GuestEvent
HISTORY = 4096


def now() -> timestamp_pb2.Timestamp:
    """The time of day."""
    return timestamp_of(time.time_ns())


def timestamp_of(time_ns: int) -> timestamp_pb2.Timestamp:
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)


class EventLog:
    """Sequence-numbered events; the last `history` are kept."""

    def __init__(self, history: int = HISTORY) -> None:
        self.boot = secrets.token_hex(4)
        self._events: deque[guest_pb2.GuestEvent] = deque(maxlen=history)
        self._next = 1  # sequence number of the next event
        self._news = asyncio.Event()

    @property
    def position(self) -> int:
        """Sequence number of the newest event; 0 = none yet."""
        return self._next - 1

    def token(self, sequence: int) -> str:
        return f"{self.boot}:{sequence}"

    def publish(self, kind: guest_pb2.GuestEvent.Type.ValueType, guest: guest_pb2.Guest, message: str) -> None:
        """Append an event; the guest is copied."""
        event = GuestEvent(type=kind, time=now(), resume_token=self.token(self._next), message=message)
        event.guest.CopyFrom(guest)
        self._events.append(event)
        self._next += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def parse(self, token: str) -> int:
        """The position a resume token stands for. Raises HvdError RESUME_TOKEN_EXPIRED."""
        boot, _, sequence = token.partition(":")
        if boot != self.boot or not sequence.isascii() or not sequence.isdecimal() or len(sequence) > 18:
            raise HvdError("RESUME_TOKEN_EXPIRED", token=token[:80])
        position = int(sequence)
        if not self._oldest - 1 <= position < self._next:
            raise HvdError("RESUME_TOKEN_EXPIRED", token=token[:80])
        return position

    @property
    def _oldest(self) -> int:
        return self._next - len(self._events)

    async def after(self, position: int) -> tuple[list[guest_pb2.GuestEvent], int]:
        """The events after a position, waiting for at least one, and the new position.

        Raises HvdError SLOW_READER when some of them are no longer kept.
        """
        while position >= self.position:
            await self._news.wait()
        if position < self._oldest - 1:
            raise HvdError("SLOW_READER", pending=self.position - position, what="events")
        skip = position - (self._oldest - 1)
        # At most a hundred at a time, so that a reader far behind does not hold copies of everything.
        batch = [self._events[index] for index in range(skip, min(skip + 100, len(self._events)))]
        return batch, position + len(batch)
