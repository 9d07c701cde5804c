"""Files into guests and out of them, while no verb stands in the way: a running guest's through its instance, a stopped
one's under its lock, so that it is not started meanwhile. A client that stalls is given up, since it would keep the guest from starting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from hvd.backends.contract import Capability, CopyFound, Files
from hvd.errors import HvdError
from hvd.guests.supervisor import Supervisor

# A client that neither sends nor takes anything for so long.
STALL_SECONDS = 60.0
PENDING_PIECES = 8
T = TypeVar("T")
_Work = Callable[[Files], Awaitable[None]]


async def copy_in(
    supervisor: Supervisor, name: str, path: str, place: bool, keep_owners: bool, chunks: AsyncIterator[bytes]
) -> tuple[int, int]:
    """Entries and bytes. Raises HvdError GUEST_NOT_FOUND, CAPABILITY_MISSING, COPY_*, DISK_FULL, RUNNER_GONE."""
    done = (0, 0)

    async def work(files: Files) -> None:
        nonlocal done
        done = await files.copy_in(path, place, keep_owners, _lively(chunks))

    await _with_files(supervisor, name, work)
    return done


async def copy_out(supervisor: Supervisor, name: str, path: str, follow_link: bool) -> AsyncGenerator[CopyFound | bytes, None]:
    """As Files.copy_out. Raises as copy_in."""
    pieces: asyncio.Queue[CopyFound | bytes | None] = asyncio.Queue(PENDING_PIECES)

    async def work(files: Files) -> None:
        async with contextlib.aclosing(files.copy_out(path, follow_link)) as copy:
            async for piece in copy:
                await _in_time(pieces.put(piece), "the client takes nothing any more")

    async def whole() -> None:
        try:
            await _with_files(supervisor, name, work)
        finally:
            if pieces.full():  # nobody reads: there is nobody who misses it
                pieces.get_nowait()
            pieces.put_nowait(None)

    working = asyncio.create_task(whole())
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _with_files(supervisor: Supervisor, name: str, work: _Work) -> None:
    life = supervisor.get(name)
    backend = life.backend
    if Capability.COPY not in backend.capabilities:
        raise HvdError("CAPABILITY_MISSING", backend=backend.name, capability=Capability.COPY.value)
    if not life.is_alive:
        async with life.standing_still():
            if not life.is_alive:
                await work(backend.stopped_files(supervisor.resolve(life.guest, paused=False)))
                return
    await work(life.reachable("cp", Capability.COPY).files())


async def _lively(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    iterator = aiter(chunks)
    while (chunk := await _in_time(anext(iterator, None), "the client sends nothing any more")) is not None:
        yield chunk


async def _in_time(work: Awaitable[T], problem: str) -> T:
    try:
        async with asyncio.timeout(STALL_SECONDS):  # not wait_for(): of Python 3.11 it can swallow a cancellation
            return await work
    except TimeoutError:
        raise HvdError("COPY_STALLED", problem=f"{problem} for {STALL_SECONDS:g} s") from None
