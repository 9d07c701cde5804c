"""Directories that are made before their guest is known, with the files that its process will open in there, all empty: a start renames one. A new
file may take a quarter of a millisecond (ext4 without a journal looks for an inode that was not freed in the last minutes), and a start has a dozen.

They are nobody's until then. A guest with a directory of its own from an earlier run keeps that, and many starts at once do without.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

# After one was taken: by then a guest has started, and who starts several has done so.
REST_SECONDS: Final = 0.5


class BlankDirectories:
    """Of one file system: renamed, they stay there."""

    def __init__(self, place: Path, files: Sequence[str], count: int) -> None:
        """place: a directory for them alone. count: how many to keep; 0 = none."""
        self._place = place
        self._files = files
        self._count = count
        self._numbers = itertools.count()
        self._ready: list[Path] = []
        self._taken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make them. What a daemon that was killed has left goes first."""
        await asyncio.to_thread(shutil.rmtree, self._place, ignore_errors=True)
        if self._count:
            await asyncio.to_thread(self._fill)
            self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._ready.clear()
        await asyncio.to_thread(shutil.rmtree, self._place, ignore_errors=True)

    def take(self, directory: Path) -> bool:
        """Make it that directory. False: there is none left, or no room for it, as when there is such a directory already."""
        while self._ready:
            try:
                os.rename(self._ready[-1], directory)
            except FileNotFoundError:  # somebody has removed it
                self._drop()
            except OSError:
                return False  # whoever makes it otherwise is told
            else:
                self._drop()
                return True
        return False

    def _drop(self) -> None:
        self._ready.pop()
        self._taken.set()

    async def _keep(self) -> None:
        while True:
            await self._taken.wait()
            await asyncio.sleep(REST_SECONDS)
            self._taken.clear()
            await asyncio.to_thread(self._fill)

    def _fill(self) -> None:
        while len(self._ready) < self._count:
            directory = self._place / str(next(self._numbers))
            try:
                self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
                directory.mkdir(mode=0o700)
                for name in self._files:
                    os.close(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except OSError as error:  # a full disk: starts do without, and are told
                log.warning("no directory can be made ahead", directory=str(directory), problem=str(error))
                with contextlib.suppress(OSError):
                    shutil.rmtree(directory)
                return
            self._ready.append(directory)
