"""Removes blobs, and layers unpacked of them, that nobody refers to, now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from hvd.images.blobs import BlobStore
from hvd.images.layers import LayerStore

INTERVAL = 600.0

_log = structlog.get_logger(__name__)


async def collect_for_ever(
    blobs: BlobStore, layers: LayerStore, references: Callable[[], Iterable[str]], interval: float = INTERVAL
) -> None:
    """Runs until it is cancelled. references: the digests that images and guests name; interval in seconds."""
    while True:
        try:
            removed = blobs.collect(references)
            removed += await asyncio.to_thread(layers.collect, set(references()))
        except OSError as error:
            # A disk that fails now may work later; uploads and launches report it to those who need the blobs.
            _log.error("blobs could not be collected", directory=str(blobs.directory), error=str(error))
        else:
            if removed:
                _log.info("unreferenced blobs removed", digests=removed)
        await asyncio.sleep(interval)
