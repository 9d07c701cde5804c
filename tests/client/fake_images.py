"""The client tests' daemon: its images and blobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fake_state import FakeState, refuse
from google.protobuf import empty_pb2
from hvapi.v1 import image_pb2, image_pb2_grpc


class FakeImages(FakeState, image_pb2_grpc.ImageServiceServicer):
    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, bytes] = {}
        self.chunks: list[int] = []
        self.searches = 0
        self.images: dict[str, image_pb2.Image] = {}

    def FindBlobs(self, request: Any, context: Any) -> image_pb2.FindBlobsResponse:
        self.searches += 1
        return image_pb2.FindBlobsResponse(digests=[digest for digest in request.digests if digest in self.blobs])

    def UploadBlob(self, requests: Any, context: Any) -> image_pb2.UploadBlobResponse:
        info = next(requests).info
        content = b""
        for request in requests:
            self.chunks.append(len(request.chunk))
            content += request.chunk or bytes(request.zeroes)
        if len(content) != info.size_bytes:
            refuse(context, "INVALID_ARGUMENT", "BLOB_SIZE", "wrong size", "upload it again")
        self.blobs[info.digest] = content
        return image_pb2.UploadBlobResponse(digest=info.digest)

    def CreateImage(self, request: Any, context: Any) -> image_pb2.Image:
        self.calls.append(("CreateImage", request))
        image = image_pb2.Image()
        image.CopyFrom(request.image)
        image.name = f"images/{request.image_id}"
        self.images[image.name] = image
        return image

    def ListImages(self, request: Any, context: Any) -> image_pb2.ListImagesResponse:
        return image_pb2.ListImagesResponse(images=self.images.values())

    def DeleteImage(self, request: Any, context: Any) -> empty_pb2.Empty:
        if request.name not in self.images and not request.allow_missing:
            refuse(context, "NOT_FOUND", "IMAGE_NOT_FOUND", "there is no such image", "`hvctl image list`")
        self.images.pop(request.name, None)
        return empty_pb2.Empty()

    def BuildImage(self, request: Any, context: Any) -> Iterator[image_pb2.BuildImageResponse]:
        for step, fraction in (("fetch", -1.0), ("compile", 0.5), ("compile", 1.0)):
            progress = image_pb2.BuildProgress(step=step, fraction=fraction, message="linux")
            yield image_pb2.BuildImageResponse(progress=progress)
        yield image_pb2.BuildImageResponse(image=image_pb2.Image(name=f"images/{request.recipe}", kind="linux"))
