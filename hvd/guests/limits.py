"""What a guest may use, changed while it is there, and what that did to it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from hvapi.v1 import guest_pb2

from hvd.backends.contract import Capability
from hvd.errors import HvdError
from hvd.guests.containers import check_limits, limits_spec
from hvd.guests.lifecycle import GuestLife


def check(life: GuestLife, limits: guest_pb2.Limits) -> None:
    """Raises HvdError CAPABILITY_MISSING, FIELD_INVALID, LIMIT_UNAVAILABLE."""
    check_limits(limits)
    life.backend.check_limits(limits_spec(limits))


async def change(life: GuestLife, limits: guest_pb2.Limits, put: Callable[[], Awaitable[None]]) -> None:
    """Of the guest's run, if it runs, then of its record by `put`; of neither when one of them fails. The next run begins with what
    the record says. Raises HvdError LIMIT_*, RUNNER_GONE, and what put raises."""
    old, new = limits_spec(life.guest.limits), limits_spec(limits)
    if old == new:
        await put()
        return

    async def work() -> None:
        if life.instance is not None:
            await life.instance.update_limits(old, new)
        try:
            await put()
        except HvdError:
            if life.instance is not None:
                await life.instance.update_limits(new, old)
            raise

    await life.exclusively(work)


async def effects(life: GuestLife) -> guest_pb2.LimitEffects | None:
    """Of the run that there is; None = of a guest that cannot be limited, or does not run."""
    if life.instance is None or Capability.LIMITS not in life.backend.capabilities:
        return None
    usage = await asyncio.to_thread(life.backend.usage, life.directory)
    return None if usage is None else guest_pb2.LimitEffects(**dataclasses.asdict(usage.effects))
