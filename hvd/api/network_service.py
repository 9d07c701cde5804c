"""hvd.v1.NetworkService."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2
from hvapi.v1 import network_pb2, network_pb2_grpc

from hvd.errors import HvdError
from hvd.guests.model import check_id
from hvd.network.networks import Networks

DEFAULT_PAGE, MOST_PAGE = 100, 1000

# grpc.aio's context; nothing of it is used here.
_Context = Any


class NetworkService(network_pb2_grpc.NetworkServiceServicer):
    """Networks of the host. Errors are HvdError; the server's interceptor makes a Status of them."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def CreateNetwork(self, request: network_pb2.CreateNetworkRequest, context: _Context) -> network_pb2.Network:
        return await self._networks.create(request.network_id, request.network, request.request_id)

    async def GetNetwork(self, request: network_pb2.GetNetworkRequest, context: _Context) -> network_pb2.Network:
        return self._networks.shown(self._networks.get(request.name))

    async def ListNetworks(
        self, request: network_pb2.ListNetworksRequest, context: _Context
    ) -> network_pb2.ListNetworksResponse:
        if request.page_size < 0:
            raise HvdError(
                "FIELD_INVALID",
                field="page_size",
                value=request.page_size,
                problem="is negative",
                remedy=f"use 1-{MOST_PAGE}, or 0 for {DEFAULT_PAGE}",
            )
        if request.page_token:
            try:
                check_id(request.page_token, "network")
            except HvdError:
                raise HvdError("PAGE_TOKEN_INVALID", token=request.page_token[:100]) from None
        networks, more = self._networks.page(min(request.page_size or DEFAULT_PAGE, MOST_PAGE), request.page_token)
        return network_pb2.ListNetworksResponse(networks=networks, next_page_token=more)

    async def DeleteNetwork(self, request: network_pb2.DeleteNetworkRequest, context: _Context) -> empty_pb2.Empty:
        await self._networks.delete(request.name, request.allow_missing)
        return empty_pb2.Empty()
