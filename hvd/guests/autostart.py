"""Guests that are to run whenever the host does: started once by the first daemon after each start of the host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from hvd.errors import HvdError
from hvd.guests.lifecycle import GuestLife

log = structlog.get_logger()

# At once: the host has just begun, and has other things to do.
AT_ONCE = 4


async def start_after_boot(lives: Iterable[GuestLife]) -> None:
    """Those that want it and do not run. One that cannot be started is FAILED, with the reason, and its restart policy acts."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def start(life: GuestLife) -> None:
        async with turns:
            try:
                await life.start(paused=False)
                log.info("guest started with the host", guest=life.guest.name)
            except HvdError as error:
                log.error("guest could not be started with the host", guest=life.guest.name, reason=error.reason)
            except Exception:  # one odd guest keeps no other from starting
                log.exception("guest could not be started with the host", guest=life.guest.name)

    await asyncio.gather(*(start(life) for life in lives if life.guest.autostart and not life.is_alive))
