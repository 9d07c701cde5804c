"""Every RPC of the API, once: Client and AsyncClient both get their methods from the table in Calls.

A method takes a request message, or its fields as keyword arguments, and `timeout` in seconds:

    client.get_guest(name="guests/web-1")
    client.get_guest(guest_pb2.GetGuestRequest(name="guests/web-1"), timeout=5)
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from google.protobuf import empty_pb2
    from google.protobuf.message import Message
    from hvapi.v1 import guest_pb2, image_pb2, inspect_pb2, metrics_pb2, network_pb2, system_pb2, trace_pb2, volume_pb2

    from hvctl.sdk.aio import AsyncClient, AsyncServerStreamMethod, AsyncUnaryMethod
    from hvctl.sdk.client import Client, ServerStreamMethod, UnaryMethod

# grpc.health.v1, whose library the client does without: the empty request asks for the whole daemon, and field 1 of the
# answer is 1 when it serves, which it says when it knows what became of its guests.
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
HEALTH_SERVING = b"\x08\x01"


class _Messages:
    """A module of messages that is imported when one of them is asked for: connecting needs none, and few programs call every service."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


if not TYPE_CHECKING:
    empty_pb2 = _Messages("google.protobuf.empty_pb2")
    guest_pb2, image_pb2, inspect_pb2, metrics_pb2, network_pb2, system_pb2, trace_pb2, volume_pb2 = (
        _Messages(f"hvapi.v1.{name}_pb2") for name in ("guest", "image", "inspect", "metrics", "network", "system", "trace", "volume")
    )

Q = TypeVar("Q", bound="Message")
R = TypeVar("R", bound="Message")


class _Call(Generic[Q, R]):
    """One RPC. messages: types of request and response, asked for when it is called: a service's messages need not be there for the calls of
    others. idempotent: repeating it changes nothing, so it is retried when the daemon is away for a moment. waits: it answers when something
    happens, so it has no deadline unless one is given."""

    def __init__(
        self,
        service: str,
        method: str,
        messages: Callable[[], tuple[type[Q], type[R]]],
        *,
        idempotent: bool = False,
        waits: bool = False,
    ):
        self.service = f"hvd.v1.{service}"
        self.method = method
        self._messages = messages
        self.idempotent = idempotent
        self.waits = waits

    @property
    def request(self) -> type[Q]:
        return self._messages()[0]

    @property
    def response(self) -> type[R]:
        return self._messages()[1]

    @property
    def path(self) -> str:
        """The method's name on the wire."""
        return f"/{self.service}/{self.method}"

    def make(self, request: Q | None, fields: dict[str, Any]) -> Q:
        """The request to send; one that can carry a request_id gets one (AIP-155), which makes its creation safe to
        repeat."""
        if request is None:
            request = self.request(**fields)
        elif fields:
            raise TypeError(f"{self.method}: give a request or its fields, not both")
        if "request_id" in self.request.DESCRIPTOR.fields_by_name and not getattr(request, "request_id"):  # noqa: B009
            complete = self.request()
            complete.CopyFrom(request)
            setattr(complete, "request_id", _uuid4())  # noqa: B010
            return complete
        return request


def _uuid4() -> str:
    """RFC 9562, version 4. Importing uuid takes as long as a call does."""
    data = bytearray(os.urandom(16))
    data[6], data[8] = data[6] & 0x0F | 0x40, data[8] & 0x3F | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Unary(_Call[Q, R]):
    """One request, one response."""

    @overload
    def __get__(self, client: Client, owner: type) -> UnaryMethod[Q, R]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> AsyncUnaryMethod[Q, R]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self if client is None else client._unary(self)


class ServerStream(_Call[Q, R]):
    """One request, a stream of responses. goes_on: it may be silent for as long as nothing happens; with the name of a field, only when
    the request says so there."""

    def __init__(
        self,
        service: str,
        method: str,
        messages: Callable[[], tuple[type[Q], type[R]]],
        *,
        idempotent: bool = False,
        goes_on: bool | str = False,
    ):
        super().__init__(service, method, messages, idempotent=idempotent)
        self.goes_on = goes_on

    def is_bounded(self, request: Q) -> bool:
        """The next response, or the end, must come within the client's timeout."""
        return not (getattr(request, self.goes_on) if isinstance(self.goes_on, str) else self.goes_on)

    @overload
    def __get__(self, client: Client, owner: type) -> ServerStreamMethod[Q, R]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> AsyncServerStreamMethod[Q, R]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self if client is None else client._server_stream(self)


class ClientStream(_Call[Q, R]):
    """A stream of requests; not a method of its own: upload_file and console use it."""


# The service of each row; spelled once because grpc wants it in every path.
_GUEST = "GuestService"
_INSPECT = "InspectService"
_TRACE = "TraceService"
_METRICS = "MetricsService"
_IMAGE = "ImageService"
_SYSTEM = "SystemService"
_NETWORK = "NetworkService"
_VOLUME = "VolumeService"


class Calls:
    """The table. proto/hvd/v1 documents each RPC under the same name."""

    create_guest = Unary(_GUEST, "CreateGuest", lambda: (guest_pb2.CreateGuestRequest, guest_pb2.Guest), idempotent=True)
    get_guest = Unary(_GUEST, "GetGuest", lambda: (guest_pb2.GetGuestRequest, guest_pb2.Guest), idempotent=True)
    list_guests = Unary(
        _GUEST, "ListGuests", lambda: (guest_pb2.ListGuestsRequest, guest_pb2.ListGuestsResponse), idempotent=True
    )
    update_guest = Unary(_GUEST, "UpdateGuest", lambda: (guest_pb2.UpdateGuestRequest, guest_pb2.Guest), idempotent=True)
    delete_guest = Unary(_GUEST, "DeleteGuest", lambda: (guest_pb2.DeleteGuestRequest, empty_pb2.Empty))
    start_guest = Unary(_GUEST, "StartGuest", lambda: (guest_pb2.StartGuestRequest, guest_pb2.Guest))
    stop_guest = Unary(_GUEST, "StopGuest", lambda: (guest_pb2.StopGuestRequest, guest_pb2.Guest), idempotent=True)
    kill_guest = Unary(_GUEST, "KillGuest", lambda: (guest_pb2.KillGuestRequest, guest_pb2.Guest), idempotent=True)
    pause_guest = Unary(_GUEST, "PauseGuest", lambda: (guest_pb2.PauseGuestRequest, guest_pb2.Guest), idempotent=True)
    resume_guest = Unary(_GUEST, "ResumeGuest", lambda: (guest_pb2.ResumeGuestRequest, guest_pb2.Guest), idempotent=True)
    reset_guest = Unary(_GUEST, "ResetGuest", lambda: (guest_pb2.ResetGuestRequest, guest_pb2.Guest))
    wait_guest = Unary(_GUEST, "WaitGuest", lambda: (guest_pb2.WaitGuestRequest, guest_pb2.Guest), idempotent=True, waits=True)
    watch_guests = ServerStream(
        _GUEST, "WatchGuests", lambda: (guest_pb2.WatchGuestsRequest, guest_pb2.GuestEvent), idempotent=True, goes_on=True
    )
    _attach_console = ClientStream(
        _GUEST, "AttachConsole", lambda: (guest_pb2.AttachConsoleRequest, guest_pb2.AttachConsoleResponse)
    )
    get_logs = ServerStream(
        _GUEST, "GetLogs", lambda: (guest_pb2.GetLogsRequest, guest_pb2.GetLogsResponse), idempotent=True, goes_on="follow"
    )
    get_screen = ServerStream(
        _GUEST, "GetScreen", lambda: (guest_pb2.GetScreenRequest, guest_pb2.GetScreenResponse), idempotent=True, goes_on="watch"
    )
    type_keys = Unary(_GUEST, "TypeKeys", lambda: (guest_pb2.TypeKeysRequest, guest_pb2.TypeKeysResponse), waits=True)
    snapshot_guest = Unary(_GUEST, "SnapshotGuest", lambda: (guest_pb2.SnapshotGuestRequest, guest_pb2.Snapshot), waits=True)
    list_snapshots = Unary(
        _GUEST, "ListSnapshots", lambda: (guest_pb2.ListSnapshotsRequest, guest_pb2.ListSnapshotsResponse), idempotent=True
    )
    delete_snapshot = Unary(_GUEST, "DeleteSnapshot", lambda: (guest_pb2.DeleteSnapshotRequest, empty_pb2.Empty))
    restore_guest = Unary(_GUEST, "RestoreGuest", lambda: (guest_pb2.RestoreGuestRequest, guest_pb2.Guest), waits=True)
    clone_guest = Unary(_GUEST, "CloneGuest", lambda: (guest_pb2.CloneGuestRequest, guest_pb2.Guest), idempotent=True, waits=True)
    export_snapshot = ServerStream(
        _GUEST, "ExportSnapshot", lambda: (guest_pb2.ExportSnapshotRequest, guest_pb2.ExportSnapshotResponse)
    )
    _exec_guest = ClientStream(_GUEST, "ExecGuest", lambda: (guest_pb2.ExecGuestRequest, guest_pb2.ExecGuestResponse))
    _copy_in = ClientStream(_GUEST, "CopyIn", lambda: (guest_pb2.CopyInRequest, guest_pb2.CopyInResponse))
    copy_out = ServerStream(_GUEST, "CopyOut", lambda: (guest_pb2.CopyOutRequest, guest_pb2.CopyOutResponse))
    _import_snapshot = ClientStream(_GUEST, "ImportSnapshot", lambda: (guest_pb2.ImportSnapshotRequest, guest_pb2.Snapshot))

    read_memory = ServerStream(
        _INSPECT, "ReadMemory", lambda: (inspect_pb2.ReadMemoryRequest, inspect_pb2.ReadMemoryResponse), idempotent=True
    )
    write_memory = Unary(_INSPECT, "WriteMemory", lambda: (inspect_pb2.WriteMemoryRequest, inspect_pb2.WriteMemoryResponse))
    get_memory_map = Unary(
        _INSPECT, "GetMemoryMap", lambda: (inspect_pb2.GetMemoryMapRequest, inspect_pb2.MemoryMap), idempotent=True
    )
    translate_address = Unary(
        _INSPECT,
        "TranslateAddress",
        lambda: (inspect_pb2.TranslateAddressRequest, inspect_pb2.AddressTranslation),
        idempotent=True,
    )
    get_registers = Unary(
        _INSPECT, "GetRegisters", lambda: (inspect_pb2.GetRegistersRequest, inspect_pb2.Registers), idempotent=True
    )
    get_census = Unary(_INSPECT, "GetCensus", lambda: (inspect_pb2.GetCensusRequest, inspect_pb2.Census), waits=True)
    _debug = ClientStream(_INSPECT, "Debug", lambda: (inspect_pb2.DebugRequest, inspect_pb2.DebugResponse))

    stream_trace = ServerStream(
        _TRACE, "StreamTrace", lambda: (trace_pb2.StreamTraceRequest, trace_pb2.StreamTraceResponse), idempotent=True, goes_on=True
    )
    summarize_trace = Unary(
        _TRACE, "SummarizeTrace", lambda: (trace_pb2.SummarizeTraceRequest, trace_pb2.TraceSummary), idempotent=True
    )
    list_trace_points = Unary(
        _TRACE, "ListTracePoints", lambda: (trace_pb2.ListTracePointsRequest, trace_pb2.ListTracePointsResponse), idempotent=True
    )

    start_trace = Unary(_TRACE, "StartTrace", lambda: (trace_pb2.StartTraceRequest, trace_pb2.TraceSession))
    get_trace = Unary(_TRACE, "GetTrace", lambda: (trace_pb2.GetTraceRequest, trace_pb2.TraceSession), idempotent=True)
    list_traces = Unary(_TRACE, "ListTraces", lambda: (trace_pb2.ListTracesRequest, trace_pb2.ListTracesResponse), idempotent=True)
    stop_trace = Unary(_TRACE, "StopTrace", lambda: (trace_pb2.StopTraceRequest, trace_pb2.TraceSession), idempotent=True)
    delete_trace = Unary(_TRACE, "DeleteTrace", lambda: (trace_pb2.DeleteTraceRequest, empty_pb2.Empty))
    read_trace = ServerStream(
        _TRACE, "ReadTrace", lambda: (trace_pb2.ReadTraceRequest, trace_pb2.ReadTraceResponse), idempotent=True, goes_on="follow"
    )

    get_metrics = Unary(
        _METRICS, "GetMetrics", lambda: (metrics_pb2.GetMetricsRequest, metrics_pb2.GetMetricsResponse), idempotent=True
    )
    watch_stats = ServerStream(
        _METRICS, "WatchStats", lambda: (metrics_pb2.WatchStatsRequest, metrics_pb2.WatchStatsResponse), idempotent=True, goes_on=True
    )

    _upload_blob = ClientStream(_IMAGE, "UploadBlob", lambda: (image_pb2.UploadBlobRequest, image_pb2.UploadBlobResponse))
    find_blobs = Unary(_IMAGE, "FindBlobs", lambda: (image_pb2.FindBlobsRequest, image_pb2.FindBlobsResponse), idempotent=True)
    download_blob = ServerStream(
        _IMAGE, "DownloadBlob", lambda: (image_pb2.DownloadBlobRequest, image_pb2.DownloadBlobResponse), idempotent=True
    )
    create_image = Unary(_IMAGE, "CreateImage", lambda: (image_pb2.CreateImageRequest, image_pb2.Image), idempotent=True)
    get_image = Unary(_IMAGE, "GetImage", lambda: (image_pb2.GetImageRequest, image_pb2.Image), idempotent=True)
    list_images = Unary(
        _IMAGE, "ListImages", lambda: (image_pb2.ListImagesRequest, image_pb2.ListImagesResponse), idempotent=True
    )
    delete_image = Unary(_IMAGE, "DeleteImage", lambda: (image_pb2.DeleteImageRequest, empty_pb2.Empty))
    # The tools that they run may be silent for long.
    pull_image = ServerStream(_IMAGE, "PullImage", lambda: (image_pb2.PullImageRequest, image_pb2.PullImageResponse), goes_on=True)
    build_image = ServerStream(_IMAGE, "BuildImage", lambda: (image_pb2.BuildImageRequest, image_pb2.BuildImageResponse), goes_on=True)

    create_network = Unary(
        _NETWORK, "CreateNetwork", lambda: (network_pb2.CreateNetworkRequest, network_pb2.Network), idempotent=True
    )
    get_network = Unary(_NETWORK, "GetNetwork", lambda: (network_pb2.GetNetworkRequest, network_pb2.Network), idempotent=True)
    list_networks = Unary(
        _NETWORK, "ListNetworks", lambda: (network_pb2.ListNetworksRequest, network_pb2.ListNetworksResponse), idempotent=True
    )
    delete_network = Unary(_NETWORK, "DeleteNetwork", lambda: (network_pb2.DeleteNetworkRequest, empty_pb2.Empty))

    create_volume = Unary(_VOLUME, "CreateVolume", lambda: (volume_pb2.CreateVolumeRequest, volume_pb2.Volume))
    get_volume = Unary(_VOLUME, "GetVolume", lambda: (volume_pb2.GetVolumeRequest, volume_pb2.Volume), idempotent=True)
    list_volumes = Unary(
        _VOLUME, "ListVolumes", lambda: (volume_pb2.ListVolumesRequest, volume_pb2.ListVolumesResponse), idempotent=True
    )
    delete_volume = Unary(_VOLUME, "DeleteVolume", lambda: (volume_pb2.DeleteVolumeRequest, empty_pb2.Empty))

    get_info = Unary(_SYSTEM, "GetInfo", lambda: (system_pb2.GetInfoRequest, system_pb2.SystemInfo), idempotent=True)
    list_backends = Unary(
        _SYSTEM, "ListBackends", lambda: (system_pb2.ListBackendsRequest, system_pb2.ListBackendsResponse), idempotent=True
    )
    # fmt: on


def table() -> Iterator[_Call[Any, Any]]:
    """Every RPC of Calls."""
    return (value for value in vars(Calls).values() if isinstance(value, _Call))


# gRFC A6: only UNAVAILABLE, which says that the call was not executed or can be repeated, and only where repeating
# changes nothing.
MOST_ATTEMPTS = 4
BACKOFF_SECONDS, LONGEST_BACKOFF = 0.1, 1.0


def _service_config() -> str:
    """JSON, written by hand: importing json takes as long as a call does."""
    # Streams are begun again in hvctl.sdk.streams, which says why.
    retried = (call for call in table() if call.idempotent and isinstance(call, Unary))
    names = ", ".join(f'{{"service": "{call.service}", "method": "{call.method}"}}' for call in retried)
    policy = (
        f'{{"maxAttempts": {MOST_ATTEMPTS}, "initialBackoff": "{BACKOFF_SECONDS}s", "maxBackoff": "{LONGEST_BACKOFF}s", '
        '"backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}'
    )
    return f'{{"methodConfig": [{{"name": [{names}], "retryPolicy": {policy}}}]}}'


def channel_options() -> list[tuple[str, Any]]:
    """For grpc.insecure_channel and its kin."""
    return [
        ("grpc.service_config", _service_config()),
        ("grpc.enable_retries", 1),
        # A daemon that comes back shall be found within a second, not after gRPC's default of up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A connection whose other end has vanished, or stands still, ends the calls that wait for it within two minutes; a stream that is
        # silent is no reason to ask less often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 60_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A page of 1000 guests is larger than the default of 4 MiB allows.
        ("grpc.max_receive_message_length", 64 << 20),
        # The daemon is never behind the proxy that http_proxy names.
        ("grpc.enable_http_proxy", 0),
    ]
