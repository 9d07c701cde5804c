"""Layers of containers' images, unpacked.

    <directory>/sha256/<64 hex digits>/    one layer, shared by all containers and never written
    <directory>/incoming/*                 under way; what an earlier daemon left there is removed at start
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from hvd.errors import HvdError
from hvd.images.blobs import UNREFERENCED_AGE, check_digest

MOST_BYTES = 32 << 30
MOST_FILES = 2_000_000
SECONDS = 1800.0
_ZSTD = b"\x28\xb5\x2f\xfd"


class LayerStore:
    """The unpacked layers of one daemon."""

    def __init__(self, directory: Path, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES) -> None:
        self.unreferenced_age = UNREFERENCED_AGE
        self.directory = directory
        self._layers = directory / "sha256"
        self._incoming = directory / "incoming"
        self._most = (most_bytes, most_files)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # When they were last unpacked or asked for: between that and the image that names them lies some time.
        self._asked: dict[str, float] = {}
        shutil.rmtree(self._incoming, ignore_errors=True)

    @property
    def usable(self) -> bool:
        """Files get their owners: only root can do that, and only root can run containers."""
        return os.geteuid() == 0

    def path(self, digest: str) -> Path:
        """The layer's root. Raises HvdError DIGEST_INVALID, LAYER_MISSING."""
        path = self._layers / check_digest(digest)
        if not path.is_dir():
            raise HvdError("LAYER_MISSING", digest=digest)
        return path

    async def unpack(self, digest: str, blob: Path) -> None:
        """Unless it has been. Raises HvdError ARCHIVE_UNSAFE, ARCHIVE_DAMAGED, ARCHIVE_TOO_LARGE, TOOL_MISSING, DISK_FULL; then
        nothing is left of it."""
        target = self._layers / check_digest(digest)
        async with self._locks[digest]:
            self._asked[target.name] = time.monotonic()
            if target.is_dir():
                return
            for directory in (self._layers, self._incoming):
                directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            incoming = Path(tempfile.mkdtemp(dir=self._incoming))
            try:
                root = incoming / "root"
                root.mkdir(mode=0o755)
                answer = await self._run(root, blob)
                if "error" in answer:
                    raise HvdError(str(answer["error"]), **{"digest": digest, **answer["metadata"]})
                root.rename(target)
            finally:
                await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)

    async def _run(self, root: Path, blob: Path) -> dict[str, dict[str, str]]:
        words = [sys.executable, "-P", "-m", "hvd.images.unpack", str(root), *map(str, self._most)]
        # Unbuffered: the child reads on from where the descriptor stands.
        with blob.open("rb", buffering=0) as source:
            compressed = source.read(4) == _ZSTD
            source.seek(0)
            if compressed:
                if shutil.which("zstd") is None:
                    raise HvdError("TOOL_MISSING", tools="zstd", remedy="sudo apt-get install zstd")
                words = ["sh", "-c", 'zstd -dcq | "$@"', "unpack", *words]
            process = await asyncio.create_subprocess_exec(
                *words, stdin=source, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True
            )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        except TimeoutError:
            raise HvdError("ARCHIVE_TOO_LARGE", digest="", problem=f"not unpacked after {SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # zstd with it
                await process.wait()
        try:
            answer: dict[str, dict[str, str]] = json.loads(output)
        except ValueError:
            raise HvdError("INTERNAL", problem=f"unpacking ended with {process.returncode}: {errors.decode(errors='replace')[-300:]}") from None
        return answer

    def collect(self, keep: Iterable[str]) -> list[str]:
        """Remove the layers whose digests are not among these; the removed ones."""
        kept = {digest.removeprefix("sha256:") for digest in keep}
        removed = []
        for path in self._layers.iterdir() if self._layers.is_dir() else ():
            recent = path.name in self._asked and time.monotonic() - self._asked[path.name] < self.unreferenced_age
            if path.name not in kept and not recent:
                condemned = self._incoming / path.name
                self._incoming.mkdir(exist_ok=True)
                path.rename(condemned)
                shutil.rmtree(condemned, ignore_errors=True)
                self._asked.pop(path.name, None)
                removed.append(f"sha256:{path.name}")
        return removed
