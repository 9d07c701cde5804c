"""What was merely observed of guests, into the store: behind, in one transaction for all that changed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import structlog

from hvd.errors import HvdError
from hvd.guests.lifecycle import GuestLife
from hvd.guests.store import Store

log = structlog.get_logger()

# A store that cannot be written (full disk) is tried again after this long.
STORE_AGAIN_SECONDS = 5.0


class WriteBehind:
    def __init__(self, store: Store) -> None:
        # Why the store cannot be written at the moment; empty = it can.
        self.problem = ""
        self._store = store
        self._dirty: dict[str, GuestLife] = {}
        self._dirt = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """What has not been written yet is left to whoever closes it."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    def add(self, life: GuestLife) -> None:
        """It has changed."""
        self._dirty[life.guest.uid] = life
        self._dirt.set()

    def forget(self, life: GuestLife) -> None:
        self._dirty.pop(life.guest.uid, None)

    def keep(self, life: GuestLife) -> Awaitable[None]:
        """The store has it as it is now when that is awaited, unless it cannot be written at the moment."""
        self.forget(life)  # at once, or it would be written twice, and whoever waits for this wait for both
        return self._keep_now(life)

    async def _keep_now(self, life: GuestLife) -> None:
        kept = False
        try:
            with contextlib.suppress(HvdError):
                await self._store.put([life.guest])
                kept = True
        finally:
            if not kept:  # or whoever waited was called off: it is tried again behind
                self._dirty.setdefault(life.guest.uid, life)
                self._dirt.set()

    async def _write(self) -> None:
        while True:
            await self._dirt.wait()
            self._dirt.clear()
            dirty, self._dirty = self._dirty, {}
            if not dirty:
                continue
            try:
                await self._store.put([life.guest for life in dirty.values() if not life.deleted])
                self.problem = ""
            except Exception as error:
                if not self.problem:
                    unexpected = None if isinstance(error, HvdError) else error
                    log.error("store cannot be written; trying again", problem=str(error), exc_info=unexpected)
                self.problem = str(error)
                self._dirty = {**dirty, **self._dirty}
                await asyncio.sleep(STORE_AGAIN_SECONDS)
                self._dirt.set()
