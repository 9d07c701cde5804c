"""hvd.v1.ImageService."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from hvapi.v1 import image_pb2, image_pb2_grpc

from hvd.errors import HvdError
from hvd.images.blobs import BlobStore
from hvd.images.builder import ImageBuilder
from hvd.images.catalog import ROOTFS, ImageCatalog, image_id, layer_digests
from hvd.images.formats import check_rootfs
from hvd.images.layers import LayerStore
from hvd.images.puller import ImagePuller
from hvd.images.registry_access import RegistryAccess

MOST_CHUNK_BYTES = 1 << 20
# They are hashed in one go, during which an upload cannot be cancelled.
MOST_ZEROES = 1 << 30
CHUNK_BYTES = 1 << 18
DEFAULT_PAGE, MOST_PAGE = 100, 1000

# grpc.aio's context; nothing of it is used here.
_Context = Any


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """Images, their blobs and their builds. Errors are HvdError; the server's interceptor makes a Status of them."""

    def __init__(
        self,
        catalog: ImageCatalog,
        blobs: BlobStore,
        builder: ImageBuilder,
        layers: LayerStore,
        access: RegistryAccess | None = None,
    ) -> None:
        self.layers = layers
        self.catalog = catalog
        self.blobs = blobs
        self.builder = builder
        self.puller = ImagePuller(blobs, catalog, layers, access)

    async def UploadBlob(
        self, request_iterator: AsyncIterator[image_pb2.UploadBlobRequest], context: _Context
    ) -> image_pb2.UploadBlobResponse:
        requests = aiter(request_iterator)
        first = await anext(requests, image_pb2.UploadBlobRequest())
        if first.WhichOneof("frame") != "info":
            raise HvdError(
                "REQUEST_INVALID", problem="an upload begins with its digest and size", remedy="send info first"
            )
        digest = first.info.digest
        if self.blobs.find([digest]):
            return image_pb2.UploadBlobResponse(digest=digest, existed=True)
        # Leaving the block without commit(), by an error or because the client went, removes what was written.
        with self.blobs.writer(digest, first.info.size_bytes, first.info.zero_bytes) as writer:
            async for request in requests:
                if request.WhichOneof("frame") == "zeroes":
                    if request.zeroes > MOST_ZEROES:
                        raise HvdError(
                            "REQUEST_INVALID",
                            problem=f"{request.zeroes} zeroes at once",
                            remedy=f"send at most {MOST_ZEROES} in each",
                        )
                    await asyncio.to_thread(writer.write_zeroes, request.zeroes)
                    continue
                if request.WhichOneof("frame") != "chunk":
                    raise HvdError(
                        "REQUEST_INVALID", problem="an upload has one info only", remedy="send chunks after it"
                    )
                if len(request.chunk) > MOST_CHUNK_BYTES:
                    raise HvdError(
                        "REQUEST_INVALID",
                        problem=f"a chunk has {len(request.chunk)} bytes",
                        remedy=f"send at most {MOST_CHUNK_BYTES} in each",
                    )
                await asyncio.to_thread(writer.write, request.chunk)
            await asyncio.to_thread(writer.commit)
        return image_pb2.UploadBlobResponse(digest=digest)

    async def FindBlobs(self, request: image_pb2.FindBlobsRequest, context: _Context) -> image_pb2.FindBlobsResponse:
        return image_pb2.FindBlobsResponse(digests=self.blobs.find(request.digests))

    async def DownloadBlob(
        self, request: image_pb2.DownloadBlobRequest, context: _Context
    ) -> AsyncIterator[image_pb2.DownloadBlobResponse]:
        # The descriptor keeps the content although the blob may be collected meanwhile.
        with await asyncio.to_thread(self.blobs.path(request.digest).open, "rb") as file:
            size: int | None = os.fstat(file.fileno()).st_size
            while (chunk := await asyncio.to_thread(file.read, CHUNK_BYTES)) or size is not None:
                yield image_pb2.DownloadBlobResponse(size_bytes=size, chunk=chunk)
                size = None

    async def CreateImage(self, request: image_pb2.CreateImageRequest, context: _Context) -> image_pb2.Image:
        image = request.image
        if image.kind == ROOTFS and self.layers.usable:
            if image.rootfs:
                check_rootfs(self.blobs.path(image.rootfs))
            # Now, so that whoever brings the image is told what is wrong with it.
            for digest in layer_digests(image):
                await self.layers.unpack(digest, self.blobs.path(digest))
        return self.catalog.create(request.image_id, image, request.request_id)

    async def GetImage(self, request: image_pb2.GetImageRequest, context: _Context) -> image_pb2.Image:
        return self._with_users(self.catalog.get(request.name))

    def _with_users(self, image: image_pb2.Image) -> image_pb2.Image:
        image.used_by.extend(sorted(self.catalog.users_of(image.name)))
        return image

    async def ListImages(self, request: image_pb2.ListImagesRequest, context: _Context) -> image_pb2.ListImagesResponse:
        if request.page_size < 0:
            raise HvdError(
                "FIELD_INVALID",
                field="page_size",
                value=request.page_size,
                problem="is negative",
                remedy=f"use 1-{MOST_PAGE}, or 0 for {DEFAULT_PAGE}",
            )
        size = min(request.page_size or DEFAULT_PAGE, MOST_PAGE)
        if request.page_token:
            try:
                image_id(request.page_token)
            except HvdError:
                raise HvdError("PAGE_TOKEN_INVALID", token=request.page_token[:100]) from None
        images = self.catalog.list(after=request.page_token, limit=size + 1)
        more = image_id(images[size - 1].name) if len(images) > size else ""
        return image_pb2.ListImagesResponse(images=map(self._with_users, images[:size]), next_page_token=more)

    async def DeleteImage(self, request: image_pb2.DeleteImageRequest, context: _Context) -> empty_pb2.Empty:
        self.catalog.delete(request.name, request.allow_missing)
        return empty_pb2.Empty()

    async def BuildImage(
        self, request: image_pb2.BuildImageRequest, context: _Context
    ) -> AsyncIterator[image_pb2.BuildImageResponse]:
        build = self.builder.build(request.recipe, request.arch, request.image_id, request.force, dict(request.options))
        async with contextlib.aclosing(build) as frames:
            async for frame in frames:
                if isinstance(frame, image_pb2.Image):
                    yield image_pb2.BuildImageResponse(image=frame)
                else:
                    yield image_pb2.BuildImageResponse(progress=frame)

    async def PullImage(
        self, request: image_pb2.PullImageRequest, context: _Context
    ) -> AsyncIterator[image_pb2.PullImageResponse]:
        pull = self.puller.pull(request.reference, request.image_id, request.insecure)
        async with contextlib.aclosing(pull) as frames:
            async for frame in frames:
                if isinstance(frame, image_pb2.Image):
                    yield image_pb2.PullImageResponse(image=frame)
                else:
                    yield image_pb2.PullImageResponse(progress=frame)
