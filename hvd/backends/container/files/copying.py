"""Copying as the daemon sees it: one helper process for each copy (helper.py), its standard streams the archive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from hvd.backends.contract import CopyFound, Files
from hvd.errors import HvdError

PIECE_BYTES = 1 << 18
# A helper that was told to end puts away what is half done.
END_SECONDS = 5.0


class ContainerFiles(Files):
    """Of one container."""

    def __init__(self, root: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """root: what the helper is told about it. descriptors: that it inherits."""
        self._root, self._descriptors = root, descriptors
        self._helpers: set[asyncio.subprocess.Process] = set()
        self._ended = False

    async def end(self) -> None:
        """The container has ended: no copy goes on, and none begins."""
        self._ended = True
        await asyncio.gather(*map(_end, tuple(self._helpers)))

    async def copy_in(self, path: str, place: bool, keep_owners: bool, chunks: AsyncIterator[bytes]) -> tuple[int, int]:
        async with self._helper({"in": [path, place, keep_owners]}) as helper:
            feeding = asyncio.create_task(_feed(helper, chunks))
            # It may end first, and takes nothing more then: because something is wrong, or the container has ended.
            ended = asyncio.create_task(helper.wait())
            try:
                await asyncio.wait((feeding, ended), return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    await feeding
            finally:
                feeding.cancel()
                ended.cancel()
                await asyncio.gather(feeding, ended, return_exceptions=True)
            answer = await self._answer(helper)
            return int(answer["entries"]), int(answer["bytes"])

    async def copy_out(self, path: str, follow_link: bool) -> AsyncGenerator[CopyFound | bytes, None]:
        async with self._helper({"out": [path, follow_link]}) as helper:
            assert helper.stdout is not None
            if line := await helper.stdout.readline():
                yield CopyFound(**json.loads(line))
            while piece := await helper.stdout.read(PIECE_BYTES):
                yield piece
            await self._answer(helper)

    @contextlib.asynccontextmanager
    async def _helper(self, job: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
        if self._ended:
            raise HvdError("RUNNER_GONE", problem="the container has ended")
        words = [sys.executable, "-P", "-m", "hvd.backends.container.files.helper", json.dumps({**self._root, **job})]
        pipe = asyncio.subprocess.PIPE
        helper = await asyncio.create_subprocess_exec(
            *words,
            stdin=pipe if "in" in job else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            limit=PIECE_BYTES,
            pass_fds=self._descriptors,
            start_new_session=True,
        )
        self._helpers.add(helper)
        try:
            yield helper
        finally:
            await _end(helper)
            self._helpers.discard(helper)

    async def _answer(self, helper: asyncio.subprocess.Process) -> dict[str, Any]:
        """Raises the HvdError that it tells."""
        assert helper.stderr is not None
        errors = await helper.stderr.read()
        await helper.wait()
        try:
            answer = json.loads(errors.splitlines()[-1])
        except (ValueError, IndexError):
            if self._ended:
                raise HvdError("RUNNER_GONE", problem="the container ended in the middle of the copy") from None
            problem = f"copying ended with {helper.returncode}: {errors.decode(errors='replace')[-500:]}"
            raise HvdError("INTERNAL", problem=problem) from None
        if "error" in answer:
            raise HvdError(str(answer["error"]), **answer["metadata"])
        return dict(answer)


async def _feed(helper: asyncio.subprocess.Process, chunks: AsyncIterator[bytes]) -> None:
    assert helper.stdin is not None
    with contextlib.suppress(ConnectionError):  # it says why it takes no more
        async for chunk in chunks:
            helper.stdin.write(chunk)
            await helper.stdin.drain()
        helper.stdin.close()


async def _end(helper: asyncio.subprocess.Process) -> None:
    """Told to, then made to."""
    if helper.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        helper.terminate()
    try:
        await asyncio.wait_for(helper.wait(), END_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            helper.kill()
        await helper.wait()
