"""The Guest to be created, of plain Python values; GuestSpec (guests.py) says what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from hvapi.v1 import guest_pb2

from hvctl.sdk.names import image_name, network_name

OnReset = Literal["", "stop", "restart"]
Boot = Literal["", "kernel", "disk", "cdrom"]
_ON_RESET = {
    "": guest_pb2.Guest.ON_RESET_UNSPECIFIED,
    "stop": guest_pb2.Guest.STOP,
    "restart": guest_pb2.Guest.RESTART,
}
_BOOT = {
    "": guest_pb2.BOOT_SOURCE_UNSPECIFIED,
    "kernel": guest_pb2.BOOT_SOURCE_KERNEL,
    "disk": guest_pb2.BOOT_SOURCE_DISK,
    "cdrom": guest_pb2.BOOT_SOURCE_CDROM,
}


def guest_message(
    *,
    backend: str,
    engine: str,
    image: str,
    kernel_digest: str,
    initrd_digest: str,
    symbols_digest: str,
    append: str,
    memory_bytes: int,
    cpus: int,
    flat_load_address: int,
    args: Sequence[str],
    disks: Sequence[guest_pb2.Disk],
    networks: Sequence[Mapping[str, str]],
    boot: Boot,
    labels: Mapping[str, str],
    on_reset: OnReset,
    restart: guest_pb2.RestartPolicy | None,
    autostart: bool,
    container: guest_pb2.ContainerConfig | None,
    limits: guest_pb2.Limits | None,
) -> guest_pb2.Guest:
    """For CreateGuest. A digest of "" = there is no such file."""
    return guest_pb2.Guest(
        container=container,
        limits=limits,
        backend=backend,
        engine=engine,
        image=image_name(image),
        labels=labels,
        on_reset=_ON_RESET[on_reset],
        restart_policy=restart,
        autostart=autostart,
        machine=guest_pb2.MachineConfig(
            memory_bytes=memory_bytes,
            cpus=cpus,
            kernel=kernel_digest,
            initrd=initrd_digest,
            append=append,
            flat_load_address=flat_load_address,
            args=args,
            disks=disks,
            network_interfaces=[
                guest_pb2.NetworkInterface(**{**card, "network": network_name(card["network"])})
                for card in networks
            ],
            boot=_BOOT[boot],
            symbols=symbols_digest,
        ),
    )
