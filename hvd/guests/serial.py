"""The changes of one guest: one at a time, each seen through to its end whether or not its caller stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
from hvapi.v1 import guest_pb2

from hvd.errors import HvdError

log = structlog.get_logger()


class SerialVerbs:
    """The part of GuestLife that is this."""

    def __init__(self, guest: guest_pb2.Guest, known: bool) -> None:
        """known: whether verbs may begin at once; otherwise they wait for `_known`."""
        self.guest = guest
        self.deleted = False
        self._lock = asyncio.Lock()
        self._known = asyncio.Event()
        if known:
            self._known.set()
        self._verbs: set[asyncio.Task[None]] = set()

    @property
    def is_known(self) -> bool:
        """Of a guest that this daemon has made, or has found out about."""
        return self._known.is_set()

    async def exclusively(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something while no verb changes the guest, to its end even if the caller goes. Raises what it raises, and
        HvdError GUEST_NOT_FOUND when the guest is deleted before."""

        async def locked() -> None:
            async with self._exclusively():
                await work()

        await self._run(locked())

    def standing_still(self) -> AbstractAsyncContextManager[None]:
        """No verb changes the guest within the block, which ends with its caller. Raises HvdError GUEST_NOT_FOUND."""
        return self._exclusively()

    def _exclusively(self) -> _Exclusively:
        return _Exclusively(self)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it whether or not the caller stays to see it done."""
        await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._verbs.add(task)
        task.add_done_callback(self._verb_done)
        return task

    def _verb_done(self, task: asyncio.Task[None]) -> None:
        self._verbs.discard(task)
        # Fetched here, since the caller may be gone; it gets the same exception if it is not.
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, HvdError):
            log.error("verb failed", guest=self.guest.name, error=repr(error))


class _Exclusively(AbstractAsyncContextManager[None]):
    """The guest's lock, for a guest that still exists when it is got."""

    def __init__(self, life: SerialVerbs) -> None:
        self._life = life

    async def __aenter__(self) -> None:
        await self._life._known.wait()
        await self._life._lock.acquire()
        if self._life.deleted:
            self._life._lock.release()
            raise HvdError("GUEST_NOT_FOUND", name=self._life.guest.name)

    async def __aexit__(self, *exc: object) -> None:
        self._life._lock.release()
