"""The gRPC servers: one per role, since a call does not tell which socket it came by, all with the same services."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hvd.api.audit import AuditLog
from hvd.api.endpoints import Endpoint, claim, closed_to_others, open_to_group
from hvd.api.interceptors import CallInterceptor, Observer, Streams, nobody
from hvd.api.limits import RECEIVE_BYTES, CallLimits
from hvd.api.roles import Role
from hvd.config import Config
from hvd.errors import HvdError

# Registers a service on a server: the generated add_XServicer_to_server with its servicer bound.
Register = Callable[[grpc.aio.Server], None]
# Streams have been told to end; unary calls get this long to finish.
STOP_SECONDS = 3.0
_OPTIONS = (
    # Two daemons on one port would share its connections by chance.
    ("grpc.so_reuseport", 0),
    # A viewer whose host vanished is noticed within a minute, and pings of clients are no offence.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.max_receive_message_length", RECEIVE_BYTES),
    # More wait in the client for their turn.
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class ApiServer:
    """Serves on all endpoints from `start` on; NOT_SERVING until `ready`."""

    def __init__(
        self,
        registrations: Sequence[Register],
        service_names: Iterable[str],
        observe: Observer = nobody,
    ) -> None:
        self._registrations = registrations
        self._names = (*service_names, health.OVERALL_HEALTH)
        self._observe = observe
        self._health = health.aio.HealthServicer()
        self._streams = Streams()
        self._servers: dict[Role | None, grpc.aio.Server] = {}
        self._sockets: list[tuple[Path, int]] = []
        self._audit: AuditLog | None = None
        self.limits: CallLimits | None = None

    async def start(self, endpoints: Iterable[Endpoint], config: Config) -> None:
        """Raises HvdError ENDPOINT_IN_USE, ENDPOINT_UNUSABLE, CONFIG_INVALID."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._audit = AuditLog(config.audit_log)
        limits = self.limits = CallLimits(config.call_rate, config.max_calls)
        endpoints = list(endpoints)
        for role in dict.fromkeys(endpoint.role for endpoint in endpoints):
            paths = [endpoint.path for endpoint in endpoints if endpoint.role == role and endpoint.path is not None]
            self._servers[role] = self._server(
                CallInterceptor(role, self._streams, self._observe, limits, self._audit, paths, config.log_level == "debug")
            )
        for endpoint in endpoints:
            self._bind(endpoint, config)
        for server in self._servers.values():
            await server.start()

    def _server(self, interceptor: CallInterceptor) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        for register in self._registrations:
            register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [name for name in self._names if name]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        return server

    def _bind(self, endpoint: Endpoint, config: Config) -> None:
        server = self._servers[endpoint.role]
        path = endpoint.path
        try:
            if path is None:
                server.add_secure_port(endpoint.address, _credentials(config))
                return
            claim(path)
            with closed_to_others():
                server.add_insecure_port(endpoint.address)
            open_to_group(endpoint, config)
            self._sockets.append((path, path.stat().st_ino))
        except RuntimeError as error:
            raise HvdError(
                "ENDPOINT_UNUSABLE",
                endpoint=endpoint.address,
                problem=str(error).splitlines()[0],
                remedy="choose another --listen, or stop what listens there",
            ) from error

    async def ready(self) -> None:
        """The guests are adopted."""
        await self._set(health_pb2.HealthCheckResponse.SERVING)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._names:
            await self._health.set(name, status)

    async def stop(self) -> None:
        """End streams with SHUTTING_DOWN, let unary calls finish, remove the sockets."""
        await self._health.enter_graceful_shutdown()
        self._streams.close()
        for server in self._servers.values():
            await server.stop(STOP_SECONDS)
        for path, inode in self._sockets:
            # Only if it is still ours: another daemon may have been started on it.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
        if self._audit is not None:
            self._audit.close()


def _credentials(config: Config) -> Any:
    def read(setting: str, path: Path | None) -> bytes:
        if path is None:
            raise HvdError(
                "CONFIG_INVALID", setting=setting, value="''", problem="is needed to listen on TCP", remedy="give it"
            )
        try:
            return path.read_bytes()
        except OSError as error:
            raise HvdError(
                "CONFIG_INVALID", setting=setting, value=path, problem=error.strerror, remedy="name a readable PEM file"
            ) from error

    return grpc.ssl_server_credentials(
        [(read("tls-key", config.tls_key), read("tls-cert", config.tls_cert))],
        root_certificates=read("tls-client-ca", config.tls_client_ca),
        require_client_auth=True,
    )
