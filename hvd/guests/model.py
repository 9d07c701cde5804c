"""What a guest is: names, the checks of what is asked for, and how that becomes a LaunchSpec.

A guest is one hvapi Guest message from the API down to the store; only what a backend needs to start it is resolved
further.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Literal, Protocol

from hvapi.v1 import guest_pb2, image_pb2

from hvd.backends.contract import LaunchSpec
from hvd.errors import HvdError
from hvd.guests import disks, interfaces

Guest = guest_pb2.Guest
State = guest_pb2.Guest.State

PREFIX = "guests/"
ENDED: frozenset[int] = frozenset({Guest.STOPPED, Guest.FAILED, Guest.LOST})
ALIVE: frozenset[int] = frozenset({Guest.STARTING, Guest.RUNNING, Guest.PAUSED, Guest.STOPPING})
# Fields of a Guest that UpdateGuest may change.
Mutable = Literal["labels", "on_reset", "restart_policy", "limits", "autostart"]
MUTABLE: tuple[Mutable, ...] = ("labels", "on_reset", "restart_policy", "limits", "autostart")
PAGE_BYTES = 4096
# A board needs room for its loaders' tables and the first megabyte of a PC.
LEAST_MEMORY = 1 << 20
MOST_CPUS = 64
MOST_LABELS = 64
MOST_COMMAND_LINE = 4096

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?")


class Images(Protocol):
    """The catalogue of images. Raises HvdError IMAGE_NOT_FOUND."""

    def get(self, name: str) -> image_pb2.Image: ...


class Blobs(Protocol):
    """Files by digest. Raises HvdError BLOB_NOT_FOUND, DIGEST_INVALID."""

    def path(self, digest: str) -> Path: ...


def check_id(identifier: str, what: str = "guest") -> str:
    """The identifier itself; raises HvdError NAME_INVALID."""
    if not _ID.fullmatch(identifier):
        raise HvdError("NAME_INVALID", name=identifier[:200], what=what)
    return identifier


def parse_name(name: str) -> str:
    """The {guest} of "guests/{guest}". Raises HvdError NAME_INVALID."""
    return check_id(name.removeprefix(PREFIX))


def check_request_id(request_id: str) -> None:
    """Raises HvdError FIELD_INVALID."""
    try:
        uuid.UUID(request_id)
    except ValueError:
        raise HvdError(
            "FIELD_INVALID",
            field="request_id",
            value=repr(request_id[:80]),
            problem="is no UUID",
            remedy="use a new UUID4",
        ) from None


def make_up_id(taken: Container[str]) -> str:
    """A free identifier for a guest that was given none."""
    while True:
        identifier = f"guest-{secrets.token_hex(4)}"
        if identifier not in taken:
            return identifier


def state_name(guest: Guest) -> str:
    return State.Name(guest.state)


def copy_of(guest: guest_pb2.Guest) -> guest_pb2.Guest:
    """The guest as it is now, for those who keep it while it changes."""
    copy = guest_pb2.Guest()
    copy.CopyFrom(guest)
    return copy


def etag(guest: Guest) -> str:
    """Changes when what was asked for changes, not when the guest's state does (AIP-154)."""
    asked = Guest(uid=guest.uid, labels=guest.labels, on_reset=guest.on_reset, autostart=guest.autostart)
    asked.restart_policy.CopyFrom(guest.restart_policy)
    if guest.HasField("limits"):
        asked.limits.CopyFrom(guest.limits)
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:16]


def host_memory_bytes() -> int:
    """MemTotal of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo has no MemTotal")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises HvdError FIELD_INVALID."""
    if len(labels) > MOST_LABELS:
        raise HvdError(
            "FIELD_INVALID", field="labels", value=len(labels), problem=f"more than {MOST_LABELS}", remedy="give fewer"
        )
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise HvdError(
                "FIELD_INVALID",
                field="labels",
                value=repr(key[:80]),
                problem="is no label key",
                remedy="use 1-253 letters, digits, '.', '_', '/' and '-', a letter or digit at both ends",
            )
        if len(value.encode()) > 1024 or not value.isprintable():
            raise HvdError(
                "FIELD_INVALID",
                field=f"labels.{key}",
                value=repr(value[:80]),
                problem="is no label value",
                remedy="use up to 1024 printable characters",
            )


def check_policies(guest: Guest) -> None:
    """on_reset and restart_policy. Raises HvdError FIELD_INVALID."""
    if guest.on_reset not in Guest.OnReset.values():
        raise HvdError(
            "FIELD_INVALID", field="on_reset", value=guest.on_reset, problem="is unknown", remedy="use STOP or RESTART"
        )
    policy = guest.restart_policy
    if policy.mode not in guest_pb2.RestartPolicy.Mode.values():
        raise HvdError(
            "FIELD_INVALID",
            field="restart_policy.mode",
            value=policy.mode,
            problem="is unknown",
            remedy="use NEVER, ON_FAILURE or ALWAYS",
        )
    if policy.max_retries < 0:
        raise HvdError(
            "FIELD_INVALID",
            field="restart_policy.max_retries",
            value=policy.max_retries,
            problem="is negative",
            remedy="use 0 for no limit",
        )


def check_memory(memory: int) -> None:
    """Raises HvdError MEMORY_TOO_SMALL, MEMORY_ALIGNMENT, MEMORY_TOO_LARGE."""
    if memory < LEAST_MEMORY:
        raise HvdError("MEMORY_TOO_SMALL", memory=memory, least=LEAST_MEMORY)
    if memory > (available := host_memory_bytes()):
        raise HvdError("MEMORY_TOO_LARGE", memory=memory, available=available)
    if memory % PAGE_BYTES:
        raise HvdError("MEMORY_ALIGNMENT", memory=memory, granule=PAGE_BYTES)


def check_machine(machine: guest_pb2.MachineConfig) -> None:
    """All but memory, whose default is resolved first. Raises HvdError FIELD_INVALID."""
    if not 0 <= machine.cpus <= MOST_CPUS:
        raise HvdError(
            "FIELD_INVALID",
            field="machine.cpus",
            value=machine.cpus,
            problem="is out of range",
            remedy=f"use 1-{MOST_CPUS}",
        )
    if len(machine.append.encode()) > MOST_COMMAND_LINE or "\0" in machine.append or "\n" in machine.append:
        raise HvdError(
            "FIELD_INVALID",
            field="machine.append",
            value=repr(machine.append[:80]),
            problem="is no kernel command line",
            remedy=f"use one line of at most {MOST_COMMAND_LINE} bytes",
        )
    for argument in machine.args:
        if "\0" in argument:
            raise HvdError(
                "FIELD_INVALID",
                field="machine.args",
                value=repr(argument[:80]),
                problem="contains a NUL byte",
                remedy="leave it out",
            )
    if sum(len(argument.encode()) + 1 for argument in machine.args) > MOST_COMMAND_LINE:
        raise HvdError(
            "FIELD_INVALID",
            field="machine.args",
            value=f"{len(machine.args)} arguments",
            problem=f"they have more than {MOST_COMMAND_LINE} bytes",
            remedy="give fewer or shorter ones",
        )
    disks.check_disks(machine)
    interfaces.check_interfaces(machine)


def resolve(
    guest: Guest, images: Images, blobs: Blobs, disks_dir: Path, default_memory: int, log_max_bytes: int, paused: bool
) -> LaunchSpec:
    """What a backend needs to start the guest. Reads the image and blob catalogues. disks_dir: where its overlays are.

    Raises HvdError IMAGE_NOT_FOUND, IMAGE_KIND, BLOB_NOT_FOUND, KERNEL_MISSING, FIELD_INVALID, MEMORY_*.
    """
    machine = guest.machine
    image = images.get(guest.image) if guest.image else image_pb2.Image()
    kernel, initrd = machine.kernel or image.kernel, machine.initrd or image.initrd
    memory = machine.memory_bytes or image.memory_bytes or default_memory
    symbols = machine.symbols or image.symbols
    check_memory(memory)
    guest_disks = disks.resolve_disks(guest, images, blobs, disks_dir)
    boot = disks.resolve_boot(machine.boot, bool(kernel), guest_disks)
    if boot != "kernel":
        kernel = initrd = ""
    return LaunchSpec(
        uid=guest.uid,
        name=guest.name.removeprefix(PREFIX),
        engine=guest.engine,
        memory_bytes=memory,
        cpus=machine.cpus or 1,
        kernel=blobs.path(kernel) if kernel else None,
        initrd=blobs.path(initrd) if initrd else None,
        command_line=" ".join(part for part in (image.append, machine.append) if part),
        flat_load_address=machine.flat_load_address,
        restart_on_reset=guest.on_reset == Guest.RESTART,
        start_paused=paused,
        args=tuple(machine.args),
        log_max_bytes=log_max_bytes,
        boot=boot,
        disks=guest_disks,
        network_interfaces=interfaces.resolve_interfaces(guest),
        symbols=blobs.path(symbols) if symbols else None,
    )


def digests_of(guest: Guest) -> list[str]:
    """The blobs that the guest itself names; those of its images are the images'."""
    machine = guest.machine
    return [digest for digest in (machine.kernel, machine.initrd, machine.symbols) if digest]


def images_of(guest: Guest) -> set[str]:
    """Ids of the images that the guest needs."""
    names = (guest.image, *(disk.image for disk in guest.machine.disks))
    return {name.removeprefix("images/") for name in names if name}
