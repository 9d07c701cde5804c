"""The container that a guest is asked to be: checks, the image's defaults, and what becomes of it for the backend."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from hvapi.v1 import guest_pb2, image_pb2

from hvd.backends.container_spec import ContainerSpec, LimitsSpec, MountSpec, SecuritySpec
from hvd.backends.contract import LaunchSpec
from hvd.errors import HvdError
from hvd.guests import interfaces, volumes
from hvd.images.catalog import ROOTFS, layer_digests
from hvd.network import ports

Guest = guest_pb2.Guest
Mount = guest_pb2.Mount

# Where a container has its programs, unless its image says otherwise (as Docker's default).
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STOP_SIGNAL = "SIGTERM"
DEFAULT_TMPFS_BYTES = 64 << 20
MOST_ARGUMENT_BYTES = 1 << 17
MOST_MOUNTS = 64
LEAST_MEMORY = 4 << 20
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_ENVIRONMENT_NAME = re.compile(r"[^=\0]+")
_CAPABILITY = re.compile(r"(CAP_)?[A-Z_]{2,40}")


class Layers(Protocol):
    """The unpacked layers of images. Raises HvdError LAYER_MISSING when it has not been unpacked (or is gone)."""

    def path(self, digest: str) -> Path: ...


def is_container(guest: guest_pb2.Guest) -> bool:
    return guest.HasField("container")


def normalise(guest: guest_pb2.Guest, image: image_pb2.Image | None, backend: str = "container") -> None:
    """A guest of a root file system is a container although only a machine was described, as `hvctl run --image debian --
    sh` does: what fits moves over. Raises HvdError FIELD_INVALID for what does not."""
    if not guest.HasField("container"):
        if (image is None or image.kind != ROOTFS) and guest.backend != backend:
            return
        guest.container.SetInParent()
    machine = guest.machine
    for field in ("kernel", "initrd", "append", "symbols", "flat_load_address", "boot", "disks"):
        if getattr(machine, field):
            raise _invalid(f"machine.{field}", "set", "a container has no machine", "leave it out")
    if machine.args and not guest.container.command:
        guest.container.command.extend(machine.args)
    if machine.network_interfaces and not guest.container.network_interfaces:
        guest.container.network_interfaces.extend(machine.network_interfaces)
    guest.limits.memory_bytes = guest.limits.memory_bytes or machine.memory_bytes
    guest.limits.cpus = guest.limits.cpus or machine.cpus
    guest.ClearField("machine")


def check_container(guest: guest_pb2.Guest) -> None:
    """What can be seen without the image. Raises HvdError FIELD_INVALID."""
    container = guest.container
    if container.hostname and not _HOSTNAME.fullmatch(container.hostname):
        raise _invalid(
            "container.hostname", repr(container.hostname[:80]), "is no host name", "use letters, digits, - and ."
        )
    check_texts("container.command", container.command)
    check_texts("container.env", [f"{key}={value}" for key, value in container.env.items()])
    for name in container.env:
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise _invalid("container.env", repr(name[:80]), "is no name of a variable", "use NAME=VALUE")
    if container.working_directory and not container.working_directory.startswith("/"):
        where = repr(container.working_directory[:80])
        raise _invalid("container.working_directory", where, "is not absolute", "begin it with /")
    if container.stop_signal and container.stop_signal not in signal.Signals.__members__:
        raise _invalid(
            "container.stop_signal", repr(container.stop_signal[:40]), "is no signal", "use SIGTERM, SIGINT, ..."
        )
    for field in ("capabilities_add", "capabilities_drop"):
        for name in getattr(container.security, field):
            if not _CAPABILITY.fullmatch(name):
                raise _invalid(
                    f"container.security.{field}", repr(name[:60]), "is no capability", "use CAP_NET_ADMIN or ALL"
                )
    if len(container.mounts) > MOST_MOUNTS:
        raise _invalid("container.mounts", f"{len(container.mounts)} of them", f"more than {MOST_MOUNTS}", "give fewer")
    for number, mount in enumerate(container.mounts):
        _check_mount(f"container.mounts[{number}]", mount)
    interfaces.check_container_interfaces(container)
    ports.check_ports(container)
    check_limits(guest.limits)


def check_texts(field: str, texts: Iterable[str]) -> None:
    """Raises HvdError FIELD_INVALID: a NUL, or too much in all."""
    size = 0
    for text in texts:
        if "\0" in text:
            raise _invalid(field, repr(text[:80]), "contains a NUL byte", "leave it out")
        size += len(text.encode()) + 1
    if size > MOST_ARGUMENT_BYTES:
        raise _invalid(field, f"{size} bytes", f"more than {MOST_ARGUMENT_BYTES}", "give fewer or shorter ones")


def _check_mount(field: str, mount: guest_pb2.Mount) -> None:
    if mount.kind not in (Mount.BIND, Mount.VOLUME, Mount.TMPFS):
        raise _invalid(f"{field}.kind", mount.kind, "is unknown", "use BIND, VOLUME or TMPFS")
    parts = mount.target.split("/")
    if not mount.target.startswith("/") or mount.target == "/" or ".." in parts or "\0" in mount.target:
        raise _invalid(
            f"{field}.target", repr(mount.target[:80]), "is no place for a mount", "use an absolute path below /"
        )
    if mount.kind == Mount.VOLUME and not volumes.is_id(mount.source):
        raise _invalid(f"{field}.source", repr(mount.source[:80]), "is no volume's name", "use 1-63 of [a-z0-9._-]")
    if mount.kind == Mount.BIND and (not mount.source.startswith("/") or "\0" in mount.source):
        raise _invalid(f"{field}.source", repr(mount.source[:80]), "is not absolute", "begin it with /")
    if mount.size_bytes < 0 or (mount.size_bytes and mount.kind != Mount.TMPFS):
        raise _invalid(f"{field}.size_bytes", mount.size_bytes, "only a tmpfs has a size", "leave it out")


def check_limits(limits: guest_pb2.Limits) -> None:
    """Raises HvdError FIELD_INVALID."""
    for field in limits.DESCRIPTOR.fields_by_name:
        if getattr(limits, field) < 0:
            raise _invalid(f"limits.{field}", getattr(limits, field), "is negative", "use 0 for no limit")
    if 0 < limits.memory_bytes < LEAST_MEMORY:
        raise _invalid(
            "limits.memory_bytes", limits.memory_bytes, f"is below {LEAST_MEMORY}", "a runtime needs that much"
        )
    if 0 < limits.cpus < 0.01:
        raise _invalid("limits.cpus", limits.cpus, "is below 0.01", "give more")


@dataclass(frozen=True, slots=True)
class Places:
    """Where on the host the parts of containers are."""

    layers: Layers
    disks_dir: Path  # a directory per guest's uid, which outlives its runs
    volumes_dir: Path
    image_dirs: tuple[Path, ...]


def resolve(
    guest: guest_pb2.Guest, image: image_pb2.Image, places: Places, log_max_bytes: int, paused: bool
) -> LaunchSpec:
    """What a backend needs to start the container. Raises HvdError FIELD_INVALID, IMAGE_KIND, LAYER_MISSING,
    PATH_REFUSED, PATH_MISSING."""
    return LaunchSpec(
        uid=guest.uid,
        name=guest.name.removeprefix("guests/"),
        engine=guest.engine,
        memory_bytes=0,
        cpus=0,
        kernel=None,
        initrd=None,
        command_line="",
        flat_load_address=0,
        restart_on_reset=False,
        start_paused=paused,
        log_max_bytes=log_max_bytes,
        container=_spec(guest, image, places),
    )


def _spec(guest: guest_pb2.Guest, image: image_pb2.Image, places: Places) -> ContainerSpec:
    container, config = guest.container, image.config
    if image.kind != ROOTFS:
        remedy = "`hvctl image list` shows the kinds; `hvctl image import` makes one of a folder or a tar"
        raise HvdError("IMAGE_KIND", name=guest.image, kind=image.kind or "none", needed=ROOTFS, remedy=remedy)
    command = tuple(container.command) or tuple(config.command)
    if not container.command or config.entrypoint:
        command = (*config.entrypoint, *command)
    if not command:
        raise _invalid("container.command", "''", "neither the guest nor its image has one", "give one behind --")
    networks = {card.network for card in container.network_interfaces}
    return ContainerSpec(
        layers=tuple(places.layers.path(digest) for digest in layer_digests(image)),
        state_dir=places.disks_dir / guest.uid,
        command=command,
        environment={"PATH": PATH, **({"TERM": "xterm"} if container.tty else {}), **config.env, **container.env},
        working_directory=container.working_directory or config.working_directory or "/",
        user=container.user or config.user or "0",
        hostname=container.hostname or guest.name.removeprefix("guests/"),
        tty=container.tty,
        stdin=container.stdin,
        mounts=tuple(_resolve_mount(mount, places) for mount in container.mounts),
        read_only_root=container.read_only_root,
        stop_signal=container.stop_signal or config.stop_signal or DEFAULT_STOP_SIGNAL,
        limits=limits_spec(guest.limits),
        security=SecuritySpec(
            capabilities_add=tuple(container.security.capabilities_add),
            capabilities_drop=tuple(container.security.capabilities_drop),
            host_user_namespace=container.security.host_user_namespace,
            seccomp_unconfined=container.security.seccomp_unconfined,
            new_privileges=container.security.new_privileges,
        ),
        init=container.init,
        host_network=interfaces.HOST in networks,
    )


def with_stdin(spec: LaunchSpec) -> LaunchSpec:
    """For a run whose standard input a client gives and ends; a terminal's has no end."""
    if spec.container is None or spec.container.tty:
        return spec
    return replace(spec, container=replace(spec.container, stdin=True, stdin_ends=True))


def limits_spec(limits: guest_pb2.Limits) -> LimitsSpec:
    return LimitsSpec(**{field: getattr(limits, field) for field in limits.DESCRIPTOR.fields_by_name})


def _resolve_mount(mount: guest_pb2.Mount, places: Places) -> MountSpec:
    source: Path | None = None
    if mount.kind == Mount.VOLUME:
        source = places.volumes_dir / mount.source
    elif mount.kind == Mount.BIND:
        source = _allowed(Path(mount.source), places.image_dirs)
    return MountSpec(
        kind=Mount.Kind.Name(mount.kind).lower(),
        source=source,
        target=mount.target,
        read_only=mount.read_only,
        size_bytes=(mount.size_bytes or DEFAULT_TMPFS_BYTES) if mount.kind == Mount.TMPFS else 0,
    )


def _allowed(path: Path, image_dirs: tuple[Path, ...]) -> Path:
    """The path itself, links followed: the daemon opens none that is not below image_dirs. Raises HvdError PATH_REFUSED,
    PATH_MISSING."""
    real = path.resolve()
    if not any(real.is_relative_to(directory.resolve()) for directory in image_dirs):
        raise HvdError("PATH_REFUSED", path=path, allowed=", ".join(map(str, image_dirs)) or "none")
    if not real.exists():
        raise HvdError("PATH_MISSING", path=path)
    return real


def _invalid(field: str, value: object, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field=field, value=value, problem=problem, remedy=remedy)
