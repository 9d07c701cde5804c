"""Builds images by recipes, one run for everybody who asks for the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from hvapi.v1 import image_pb2

from hvd.errors import HvdError
from hvd.images import recipes
from hvd.images.blobs import BlobStore
from hvd.images.catalog import ROOTFS, ImageCatalog, image_id
from hvd.images.layers import LayerStore
from hvd.images.recipes.recipe import Recipe


class ImageBuilder:
    """The builds of one daemon. All calls in its event loop."""

    def __init__(
        self, cache_dir: Path, blobs: BlobStore, catalog: ImageCatalog, layers: LayerStore | None = None
    ) -> None:
        self.cache_dir = cache_dir
        self.blobs = blobs
        self.catalog = catalog
        self.layers = layers
        self._runs: dict[tuple[str, str, str, bool], Run] = {}

    async def build(
        self,
        recipe_name: str,
        arch: str = "",
        identifier: str = "",
        force: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[image_pb2.BuildProgress | image_pb2.Image, None]:
        """Tells how far the build is, then the image. A reader that is slow skips progress. The build ends when its
        last reader goes; the next one goes on from there.

        Raises HvdError RECIPE_UNKNOWN, NAME_INVALID, FIELD_INVALID, NAME_TAKEN, IMAGE_IN_USE and what the recipe's
        build() raises.
        """
        recipe = recipes.find(recipe_name).with_options(options or {})
        arch = arch or next(iter(recipe.images))
        if arch not in recipe.images:
            known = ", ".join(recipe.images)
            raise HvdError(
                "FIELD_INVALID", field="arch", value=arch[:100], problem="is not known", remedy=f"use {known}"
            )
        identifier = image_id(identifier or recipe.images[arch])
        key = (recipe.name, arch, identifier, force)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = Run()
            run.task = asyncio.create_task(self._make(run, recipe, arch, identifier, force), name=f"build-{identifier}")
            run.task.add_done_callback(lambda task: self._ended(key))
        run.readers += 1
        try:
            told = 0
            while not run.task.done():
                if told != run.number:
                    told = run.number
                    yield run.progress
                await run.news()
            yield run.task.result()
        finally:
            run.readers -= 1
            if not run.readers and not run.task.done():
                # Whoever asks from now on gets a run of their own, which waits for this one to let go.
                self._runs.pop(key, None)
                run.task.cancel()

    async def close(self) -> None:
        """Ends what is being built: the daemon goes."""
        tasks = [run.task for run in self._runs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: tuple[str, str, str, bool]) -> None:
        run = self._runs.get(key)
        if run is not None and run.task.done():
            del self._runs[key]
            run.wake()

    async def _make(self, run: Run, recipe: Recipe, arch: str, identifier: str, force: bool) -> image_pb2.Image:
        built = await recipe.build(arch, self.cache_dir, force, run.tell)
        parts = ("kernel", "initrd", "symbols", "disk", "rootfs")
        files = {what: path for what in parts if (path := getattr(built, what)) is not None}
        digests = {what: await asyncio.to_thread(self.blobs.add, path) for what, path in files.items()}
        if built.rootfs is not None and self.layers is not None and self.layers.usable:
            run.tell("unpack", -1, built.rootfs.name)
            await self.layers.unpack(digests["rootfs"], self.blobs.path(digests["rootfs"]))
        image = image_pb2.Image(
            kind=ROOTFS if built.rootfs is not None else "linux",
            append=built.append,
            memory_bytes=built.memory_bytes,
            arch=arch,
            description=built.description,
            config=image_pb2.RootfsConfig(command=built.command) if built.command else None,
        )
        for what, digest in digests.items():
            setattr(image, what, digest)
        return self.catalog.put_built(identifier, image, recipe.name)


class Run:
    """One build or pull under way: its latest progress and who reads it."""

    task: asyncio.Task[image_pb2.Image]

    def __init__(self) -> None:
        self.progress = image_pb2.BuildProgress()
        self.number = 0
        self.readers = 0
        self._news = asyncio.Event()

    def tell(self, step: str, fraction: float, message: str) -> None:
        self.progress = image_pb2.BuildProgress(step=step, fraction=fraction, message=message)
        self.number += 1
        self.wake()

    def wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def news(self) -> None:
        """Returns at the next progress or at the end. There is no await between looking and waiting, so none is
        missed."""
        news = self._news
        waiter = asyncio.ensure_future(news.wait())
        try:
            await asyncio.wait({self.task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
