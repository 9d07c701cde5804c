"""Requests made of plain Python values: the Guest to be created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hvctl.sdk.guest_message import Boot, OnReset, guest_message

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

    from hvctl.sdk.blobs import Path


@dataclass(slots=True, kw_only=True)
class GuestSpec:
    """What a guest is to be. Files are uploaded by the client; 0 and "" leave the choice to the daemon.

    memory_bytes: a multiple of 4096. flat_load_address: guest-physical, of flat binaries only. append: kernel command
    line, added to the image's. args: for the guest's program. disks: the API's messages. networks: of each network card
    the fields of a NetworkInterface; its network is "user", "none" or a network's name. boot: what is started; "" is
    the kernel, if there is one, otherwise the first disk. symbols: an ELF file with the kernel's symbols.
    """

    name: str = ""
    backend: str = ""
    engine: str = ""
    image: str = ""
    kernel: Path | None = None
    initrd: Path | None = None
    symbols: Path | None = None
    append: str = ""
    memory_bytes: int = 0
    cpus: int = 0
    flat_load_address: int = 0
    args: Sequence[str] = ()
    disks: Sequence[guest_pb2.Disk] = ()
    networks: Sequence[Mapping[str, str]] = ()
    boot: Boot = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    on_reset: OnReset = ""
    restart: guest_pb2.RestartPolicy | None = None
    autostart: bool = False  # with the host
    container: guest_pb2.ContainerConfig | None = None  # what only containers have; args are its command
    limits: guest_pb2.Limits | None = None

    def message(self, kernel_digest: str, initrd_digest: str, symbols_digest: str = "") -> guest_pb2.Guest:
        """The Guest for CreateGuest, its files replaced by their digests."""
        return guest_message(
            backend=self.backend,
            engine=self.engine,
            image=self.image,
            kernel_digest=kernel_digest,
            initrd_digest=initrd_digest,
            symbols_digest=symbols_digest,
            append=self.append,
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            flat_load_address=self.flat_load_address,
            args=self.args,
            disks=self.disks,
            networks=self.networks,
            boot=self.boot,
            labels=self.labels,
            on_reset=self.on_reset,
            restart=self.restart,
            autostart=self.autostart,
            container=self.container,
            limits=self.limits,
        )
