"""Pulls images from registries: manifest, configuration, layers into the blobs, layers unpacked, the image.

Layers that are here already are not fetched again: a pull that was ended goes on with the next layer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from hvapi.v1 import image_pb2

from hvd.errors import HvdError
from hvd.images import manifest, reference
from hvd.images.blobs import BlobStore
from hvd.images.builder import Run
from hvd.images.catalog import ROOTFS, ImageCatalog, image_id
from hvd.images.layers import LayerStore
from hvd.images.manifest import Descriptor, Manifest
from hvd.images.reference import Reference
from hvd.images.registry import Registry
from hvd.images.registry_access import RegistryAccess

T = TypeVar("T")
# After a cancellation, for a thread that is about to see it: a name's look-up cannot be ended.
_LETTING_GO = 5.0
_UPLOAD_REASONS = ("BLOB_SIZE", "DIGEST_MISMATCH")


class ImagePuller:
    """The pulls of one daemon. All calls in its event loop."""

    def __init__(
        self,
        blobs: BlobStore,
        catalog: ImageCatalog,
        layers: LayerStore,
        access: RegistryAccess | None = None,
        open_registry: Callable[[Reference, bool, RegistryAccess | None], Registry] = Registry,
    ) -> None:
        self.blobs = blobs
        self.catalog = catalog
        self.layers = layers
        self._access = access
        self._open = open_registry

    async def pull(
        self, name: str, identifier: str = "", insecure: bool = False
    ) -> AsyncGenerator[image_pb2.BuildProgress | image_pb2.Image, None]:
        """Tells how far it is, then the image. It ends when its reader goes.

        Raises HvdError REFERENCE_INVALID, NAME_INVALID, NAME_TAKEN, IMAGE_IN_USE, MANIFEST_*, PLATFORM_MISSING, REGISTRY_*, DISK_FULL
        and what LayerStore.unpack() raises.
        """
        wanted = reference.parse(name)
        identifier = image_id(identifier or wanted.image_id)
        self.catalog.check_pull(identifier, wanted.name)
        run = Run()
        run.task = asyncio.create_task(self._make(run, wanted, identifier, insecure), name=f"pull-{identifier}")
        run.task.add_done_callback(lambda task: run.wake())
        try:
            told = 0
            while not run.task.done():
                if told != run.number:
                    told = run.number
                    yield run.progress
                await run.news()
            yield run.task.result()
        finally:
            if not run.task.done():
                run.task.cancel()
                await asyncio.wait([run.task])

    async def _make(self, run: Run, wanted: Reference, identifier: str, insecure: bool) -> image_pb2.Image:
        registry = self._open(wanted, insecure, self._access)
        run.tell("fetch", -1, f"asking {wanted.registry} for {wanted}")
        digest, found, config = await _in_thread(registry, self._resolve, registry, wanted)
        total, done = sum(layer.size for layer in found.layers), 0
        loop = asyncio.get_running_loop()
        for number, layer in enumerate(found.layers, 1):
            text = f"layer {number} of {len(found.layers)}, {layer.digest[:19]}"

            def tell(received: int, before: int = done, text: str = text) -> None:
                loop.call_soon_threadsafe(run.tell, "fetch", (before + received) / max(1, total), text)

            tell(0)
            if not self.blobs.find([layer.digest]):
                await _in_thread(registry, self._fetch, registry, layer, tell)
            done += layer.size
        for number, layer in enumerate(found.layers):
            if self.layers.usable:
                run.tell(
                    "unpack",
                    number / len(found.layers),
                    f"layer {number + 1} of {len(found.layers)}, {layer.digest[:19]}",
                )
                await self.layers.unpack(layer.digest, self.blobs.path(layer.digest))
        image = image_pb2.Image(
            kind=ROOTFS,
            arch="x86_64",
            layers=[layer.digest for layer in found.layers],
            config=config,
            source=f"{wanted.name}@{digest}",
        )
        return self.catalog.put_pulled(identifier, image)

    def _resolve(self, registry: Registry, wanted: Reference) -> tuple[str, Manifest, image_pb2.RootfsConfig]:
        """In a worker thread: the digest of what the reference names, its manifest and its configuration."""
        content, media_type, named = registry.manifest(wanted.digest or wanted.tag)
        read = manifest.document(content, f"the manifest of {wanted}")
        if manifest.is_index(read, media_type):
            chosen = manifest.of_platform(read, f"the index of {wanted}")
            content, media_type, _ = registry.manifest(chosen.digest)
            read = manifest.document(content, f"the manifest of {wanted}")
        found = manifest.manifest(read, f"the manifest of {wanted}")
        if not self.blobs.find([found.config.digest]):
            self._fetch(registry, found.config, lambda received: None)
        config = self.blobs.path(found.config.digest).read_bytes()
        what = f"the configuration of {wanted}"
        return named, found, manifest.rootfs_config(manifest.document(config, what), what)

    def _fetch(self, registry: Registry, wanted: Descriptor, tell: Callable[[int], None]) -> None:
        """In a worker thread. What is not complete and right leaves nothing."""
        received = 0
        try:
            with (
                self.blobs.writer(wanted.digest, wanted.size) as writer,
                contextlib.closing(_pieces(registry, wanted)) as pieces,
            ):
                for piece in pieces:
                    writer.write(piece)
                    received += len(piece)
                    tell(received)
                writer.commit()
        except HvdError as error:
            if error.reason not in _UPLOAD_REASONS:
                raise
            problem = f"it has {error.metadata['found']}, announced was {error.metadata.get('size', wanted.digest)}"
            raise HvdError(
                "REGISTRY_CONTENT", registry=registry.reference.registry, what=f"blob {wanted.digest}", problem=problem
            ) from error


def _pieces(registry: Registry, wanted: Descriptor) -> Any:
    return registry.blob(wanted.digest)


async def _in_thread(registry: Registry, call: Callable[..., T], *arguments: object) -> T:
    """Whoever cancels it ends what the registry is asked for, and waits until nothing of it is left."""
    task = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        registry.close()
        await asyncio.wait([task], timeout=_LETTING_GO)
        if task.done() and not task.cancelled():
            task.exception()
        raise
