"""`hvd`: wires everything together, serves until it is told to end, and leaves the guests running."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog
from hvapi.v1 import (
    guest_pb2,
    guest_pb2_grpc,
    image_pb2_grpc,
    inspect_pb2_grpc,
    metrics_pb2_grpc,
    network_pb2_grpc,
    system_pb2_grpc,
    trace_pb2_grpc,
    volume_pb2_grpc,
)

from hvd import config as settings
from hvd import systemd
from hvd.api.endpoints import Endpoint, endpoints
from hvd.api.guest_service import GuestService
from hvd.api.image_service import ImageService
from hvd.api.inspect_service import InspectService
from hvd.api.metrics_service import MetricsService
from hvd.api.network_service import NetworkService
from hvd.api.server import ApiServer, Register
from hvd.api.system_service import SystemService
from hvd.api.trace_service import TraceService
from hvd.api.volume_service import VolumeService
from hvd.backends import all_backends
from hvd.backends.contract import Backend
from hvd.backends.usage import Usage
from hvd.config import Config
from hvd.errors import HvdError
from hvd.guests.placement import Backends
from hvd.guests.snapshots import Snapshots
from hvd.guests.store import Store
from hvd.guests.supervisor import Supervisor
from hvd.guests.trace_sessions import TraceSessions
from hvd.guests.volumes import Volumes
from hvd.images.blobs import BlobStore
from hvd.images.builder import ImageBuilder
from hvd.images.catalog import ImageCatalog
from hvd.images.collector import collect_for_ever
from hvd.images.layers import LayerStore
from hvd.images.registry_access import RegistryAccess
from hvd.logs import configure_logging
from hvd.metrics.endpoint import MetricsEndpoint
from hvd.metrics.metrics import Metrics
from hvd.network.cards import Cards
from hvd.network.networks import Networks
from hvd.private import private_directory
from hvd.systemd import notify
from hvd.trace.points import BY_ID, Point
from hvd.trace.session import TraceSwitch

log = structlog.get_logger()

LOCK = "lock"
# So long a lock is waited for whose holder has ended.
DEAD_HOLDER_SECONDS = 5.0
SERVICES = tuple(f"hvd.v1.{noun}Service" for noun in ("Guest", "Image", "Inspect", "Trace", "Metrics", "Network", "Volume", "System"))


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The directory, made if need be, for this daemon alone. Raises HvdError DIRECTORY_IN_USE, DIRECTORY_UNUSABLE."""
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HvdError("DIRECTORY_UNUSABLE", directory=directory, problem=error.strerror) from error
    try:
        deadline = time.monotonic() + DEAD_HOLDER_SECONDS
        while not _lock(descriptor):
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            # One that was killed in the middle of starting a process: its lock is also that one's, until it executes its program.
            if not holder.isdecimal() or os.path.exists(f"/proc/{holder}") or time.monotonic() > deadline:
                raise HvdError("DIRECTORY_IN_USE", holder=holder, directory=directory)
            time.sleep(0.01)
        # A full disk must not keep the daemon from starting: the number is for people only.
        with contextlib.suppress(OSError):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class Daemon:
    """One hvd: what it is made of, and the order in which that begins and ends."""

    def __init__(self, config: Config, backends: Mapping[str, Backend]) -> None:
        """Raises HvdError STORE_DAMAGED, STORE_VERSION, DISK_FULL, DIRECTORY_UNUSABLE."""
        self.config = config
        try:
            private_directory(config.guests_dir)
            for roots in (config.disks_dir, config.layers_dir):
                private_directory(roots, 0o711)
            private_directory(config.state_dir / "blobs")
            self.blobs = BlobStore(config.state_dir / "blobs")
        except OSError as error:
            raise HvdError("DIRECTORY_UNUSABLE", directory=error.filename, problem=error.strerror) from error
        self.store = Store(config.state_dir)
        self.catalog = ImageCatalog(
            config.state_dir / "images.sqlite", self.blobs, lambda name: self.supervisor.users_of(name)
        )
        for backend in backends.values():
            backend.configure(config)
        self.switch = TraceSwitch()
        self.networks = Networks(config.state_dir / "networks.sqlite", config.network_pool, self._guest_messages)
        self.layers = LayerStore(config.layers_dir)
        self.cards = Cards(self.networks)
        self.supervisor = Supervisor(
            config, self.store, Backends(backends), self.catalog, self.blobs, self.switch, self.cards, self.layers
        )
        self.volumes = Volumes(config.volumes_dir, self.supervisor.messages)
        self.snapshots = Snapshots(self.supervisor, self.catalog, self.blobs)
        self.metrics = Metrics(
            self._guests, lambda: self.supervisor.backends.available, self._points, usage=self._usage
        )
        self.metrics_endpoint = MetricsEndpoint(self.metrics)
        self.traces = TraceSessions(config.traces_dir, self.supervisor, self.switch, self.metrics.trace_lost)
        self.system = SystemService(self.supervisor, config)
        self.endpoints: list[Endpoint] = endpoints(config)
        self.server = ApiServer(self._registrations(), SERVICES, self.metrics.observe_operation)
        self._tasks: list[asyncio.Task[None]] = []

    def _usage(self, backend: str, directory: Path) -> Usage | None:
        try:
            return self.supervisor.backends.get(backend).usage(directory)
        except HvdError:  # of a backend that this build has not
            return None

    def _registrations(self) -> list[Register]:
        config = self.config
        access = RegistryAccess(config.registry_ca, frozenset(config.insecure_registries), config.registry_auth_file)
        access.tls()  # what is wrong with it is told now
        guests = GuestService(self.supervisor, self.snapshots)
        images = ImageService(self.catalog, self.blobs, self._builder(), self.layers, access)
        tracing = TraceService(self.supervisor, self.switch, self.traces, self.metrics.trace_lost)
        networks, volumes = NetworkService(self.networks), VolumeService(self.volumes)
        inspection, metrics = InspectService(self.supervisor), MetricsService(self.metrics)
        return [
            lambda server: guest_pb2_grpc.add_GuestServiceServicer_to_server(guests, server),
            lambda server: image_pb2_grpc.add_ImageServiceServicer_to_server(images, server),
            lambda server: inspect_pb2_grpc.add_InspectServiceServicer_to_server(inspection, server),
            lambda server: trace_pb2_grpc.add_TraceServiceServicer_to_server(tracing, server),
            lambda server: metrics_pb2_grpc.add_MetricsServiceServicer_to_server(metrics, server),
            lambda server: network_pb2_grpc.add_NetworkServiceServicer_to_server(networks, server),
            lambda server: volume_pb2_grpc.add_VolumeServiceServicer_to_server(volumes, server),
            lambda server: system_pb2_grpc.add_SystemServiceServicer_to_server(self.system, server),
        ]

    def _builder(self) -> ImageBuilder:
        return ImageBuilder(self.config.cache_dir, self.blobs, self.catalog, self.layers)

    def _guests(self) -> list[tuple[guest_pb2.Guest, Path]]:
        return [(life.guest, life.directory) for life in self.supervisor]

    def _guest_messages(self) -> Iterator[guest_pb2.Guest]:
        return (life.guest for life in self.supervisor)

    def _points(self, backend: str) -> Mapping[int, Point]:
        try:
            return {point.id: point for point in self.supervisor.backend(backend).trace_points}
        except HvdError:  # of a guest whose backend this build does not have
            return BY_ID

    async def start(self) -> None:
        """Serve, then adopt: whoever asks meanwhile is answered, and health says NOT_SERVING until all is known."""
        await self.store.open()
        await self.supervisor.load()  # or the first to ask would hear that there is no such guest
        await self.snapshots.load()
        await asyncio.to_thread(self.traces.load)
        if self.config.metrics_listen:
            port = await self.metrics_endpoint.start(self.config.metrics_listen)
            host = self.config.metrics_listen.rpartition(":")[0]
            self.system.metrics_address = f"http://{host}:{port}/metrics"
        await self.server.start(self.endpoints, self.config)
        await self.networks.start()
        await self.volumes.start()
        await self.supervisor.start()
        self.metrics.adoption_finished()
        self.begin(self.metrics.follow(self.supervisor.events))
        for life in self.supervisor:
            self.switch.apply(life.directory)  # an earlier daemon may have left recording on
        self.begin(collect_for_ever(self.blobs, self.layers, self._references))
        # Asked before anybody waits for the answer: a backend's self-check takes a while.
        self.begin(self.supervisor.backends.probe_all())
        await self.server.ready()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on until the end."""
        self._tasks.append(asyncio.create_task(work))

    def _references(self) -> set[str]:
        return self.catalog.references() | self.supervisor.references() | self.snapshots.references()

    async def close(self) -> None:
        """Stop serving; the guests stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.traces.close()
        self.supervisor.leave()
        await self.metrics_endpoint.close()
        await self.server.stop()
        await self.snapshots.close()
        await self.supervisor.close()
        await self.networks.close()
        self.cards.close()
        await self.store.close()
        self.catalog.close()


async def serve(config: Config) -> None:
    """Until SIGTERM or SIGINT. Raises HvdError when it cannot start."""
    systemd.notify_socket()  # before there are children
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    daemon = Daemon(config, all_backends())
    starting = asyncio.create_task(daemon.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            addresses = [endpoint.address for endpoint in daemon.endpoints]
            log.info(
                "ready", endpoints=addresses, guests=len(daemon.supervisor), pid=os.getpid(), version=settings.version()
            )
            notify("READY=1\nSTATUS=serving on " + " ".join(addresses))
            if (seconds := systemd.watchdog_seconds()) is not None:
                daemon.begin(systemd.keep_watchdog(seconds))
            await stopping
            log.info("ending; the guests go on", guests=sum(life.is_alive for life in daemon.supervisor))
        notify("STOPPING=1")
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await daemon.close()


def main() -> None:
    """The command `hvd`. Exit status: 0 after a signal, 1 when it cannot start, 2 for wrong settings."""
    if sys.argv[1:2] == ["certs"]:
        from hvd import certificates

        sys.exit(certificates.main(sys.argv[2:]))
    if sys.argv[1:2] == ["store"]:
        from hvd import store_command

        sys.exit(store_command.main(sys.argv[2:]))
    try:
        config = settings.load(sys.argv[1:], os.environ)
    except HvdError as error:
        sys.exit(_complaint(error, 2))
    configure_logging(config)
    try:
        with locked(config.state_dir), locked(config.runtime_dir):
            if sys.version_info < (3, 12):  # later ones do so by themselves: no thread for each process that is waited for
                asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
            asyncio.run(serve(config))
    except HvdError as error:
        sys.exit(_complaint(error, 1))


def _complaint(error: HvdError, status: int) -> int:
    print(f"hvd: {error.message}\nhvd: {error.help} [{error.reason}]", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
