"""hvd.v1.VolumeService."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2
from hvapi.v1 import volume_pb2, volume_pb2_grpc

from hvd.errors import HvdError
from hvd.guests.volumes import Volumes, is_id

DEFAULT_PAGE, MOST_PAGE = 100, 1000

# grpc.aio's context; nothing of it is used here.
_Context = Any


class VolumeService(volume_pb2_grpc.VolumeServiceServicer):
    """Volumes of containers. Errors are HvdError; the server's interceptor makes a Status of them."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes

    async def CreateVolume(self, request: volume_pb2.CreateVolumeRequest, context: _Context) -> volume_pb2.Volume:
        return await self._volumes.create(request.volume_id)

    async def GetVolume(self, request: volume_pb2.GetVolumeRequest, context: _Context) -> volume_pb2.Volume:
        return await self._volumes.get(request.name)

    async def ListVolumes(
        self, request: volume_pb2.ListVolumesRequest, context: _Context
    ) -> volume_pb2.ListVolumesResponse:
        if request.page_size < 0:
            raise HvdError(
                "FIELD_INVALID",
                field="page_size",
                value=request.page_size,
                problem="is negative",
                remedy=f"use 1-{MOST_PAGE}, or 0 for {DEFAULT_PAGE}",
            )
        if request.page_token and not is_id(request.page_token):
            raise HvdError("PAGE_TOKEN_INVALID", token=request.page_token[:100])
        volumes, more = self._volumes.page(min(request.page_size or DEFAULT_PAGE, MOST_PAGE), request.page_token)
        return volume_pb2.ListVolumesResponse(volumes=volumes, next_page_token=more)

    async def DeleteVolume(self, request: volume_pb2.DeleteVolumeRequest, context: _Context) -> empty_pb2.Empty:
        await self._volumes.delete(request.name, request.allow_missing)
        return empty_pb2.Empty()
