"""Locks between daemons that share a cache."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

_RETRY_SECONDS = 0.5


@contextlib.asynccontextmanager
async def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
    """Alone with what the file stands for; on_wait is called once when somebody else holds it. The kernel lets go of it
    when the holder dies. Waits by asking again: there is no other way to wait for flock(2) that can be cancelled.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        waited = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    on_wait()
                waited = True
                await asyncio.sleep(_RETRY_SECONDS)
        yield
