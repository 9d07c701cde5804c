"""Those who wait for a guest to reach a state: none of them misses one that is left again at once."""

from __future__ import annotations

import asyncio

from hvapi.v1 import guest_pb2

from hvd.errors import HvdError
from hvd.guests.model import copy_of


class Waiters:
    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[guest_pb2.Guest], frozenset[int]] = {}

    async def wait(self, states: frozenset[int], timeout: float | None) -> guest_pb2.Guest:
        """The guest as it was when it reached one of the states. Raises TimeoutError, and what fail() says."""
        waiter: asyncio.Future[guest_pb2.Guest] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = states
        try:
            return await asyncio.wait_for(waiter, timeout)
        finally:
            del self._waiting[waiter]

    def reached(self, guest: guest_pb2.Guest) -> None:
        for waiter, states in self._waiting.items():
            if guest.state in states and not waiter.done():
                waiter.set_result(copy_of(guest))

    def fail(self, error: HvdError) -> None:
        """It will reach no state any more."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)
