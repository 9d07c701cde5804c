"""The snapshots that the daemon has: files `<state-dir>/guests/<uid>/snapshots/<id>.hvdsnap`, and what stands in them.

The directory is the truth; what is read out of it at the daemon's start, and when a snapshot is made, is kept in memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf import json_format
from hvapi.v1 import guest_pb2, image_pb2

from hvd.backends.contract import LaunchSpec
from hvd.errors import HvdError
from hvd.guests.model import PREFIX, check_id
from hvd.snapshot import machine as sections
from hvd.snapshot.container import VERSION, Reader

log = structlog.get_logger()

SUFFIX: Final = ".hvdsnap"
DIRECTORY: Final = "snapshots"
COLLECTION: Final = "/snapshots/"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was booted: for a reset after the snapshot is restored. Digests; empty = none."""

    kernel: str = ""
    initrd: str = ""
    symbols: str = ""
    command_line: str = ""
    args: tuple[str, ...] = ()
    flat_load_address: int = 0
    boot: str = "kernel"

    @classmethod
    def of(cls, spec: LaunchSpec) -> Entry:
        return cls(
            digest_of(spec.kernel),
            digest_of(spec.initrd),
            digest_of(spec.symbols),
            spec.command_line,
            tuple(spec.args),
            spec.flat_load_address,
            spec.boot,
        )


def digest_of(path: Path | str | None) -> str:
    """Of a file of the blob store, which is named by it."""
    return f"sha256:{Path(path).name}" if path else ""


@dataclass(slots=True)
class Stored:
    """One snapshot of this daemon."""

    path: Path
    message: guest_pb2.Snapshot
    guest: guest_pb2.Guest  # as it was asked for
    entry: Entry
    images: list[image_pb2.Image]  # that the guest names
    blobs: frozenset[str]
    disks: list[dict[str, Any]]  # hvd.snapshot.machine.disk_state
    origin: str  # its name where it was taken
    users: list[str] = field(default_factory=list)  # verbs under way

    @property
    def identifier(self) -> str:
        return self.message.name.rpartition("/")[2]

    @contextlib.contextmanager
    def used_by(self, verb: str) -> Iterator[None]:
        """It is not deleted meanwhile."""
        self.users.append(verb)
        try:
            yield
        finally:
            self.users.remove(verb)


def snapshot_name(guest: str, identifier: str) -> str:
    """guest: "guests/{guest}"."""
    return f"{guest}{COLLECTION}{identifier}"


def parse_name(name: str) -> tuple[str, str]:
    """("guests/{guest}", {snapshot}). Raises HvdError NAME_INVALID."""
    guest, separator, identifier = name.partition(COLLECTION)
    if not separator:
        raise HvdError("NAME_INVALID", name=name[:200], what="snapshot")
    return PREFIX + check_id(guest.removeprefix(PREFIX)), check_id(identifier, "snapshot")


def asked_of(guest: guest_pb2.Guest) -> guest_pb2.Guest:
    """What of a guest was asked for, not what became of it."""
    asked = guest_pb2.Guest(
        name=guest.name,
        uid=guest.uid,
        backend=guest.backend,
        engine=guest.engine,
        labels=guest.labels,
        image=guest.image,
        on_reset=guest.on_reset,
        autostart=guest.autostart,
    )
    asked.machine.CopyFrom(guest.machine)
    asked.restart_policy.CopyFrom(guest.restart_policy)
    return asked


def about(
    name: str,
    uid: str,
    description: str,
    time_ns: int,
    guest: guest_pb2.Guest,
    spec: LaunchSpec,
    images: list[image_pb2.Image],
) -> bytes:
    """The section of that name."""
    entry = Entry.of(spec)
    blobs = {entry.kernel, entry.initrd, entry.symbols, *(digest_of(disk.base) for disk in spec.disks)} - {""}
    return json.dumps(
        {
            "name": name,
            "uid": uid,
            "description": description,
            "create_time_ns": time_ns,
            "guest": json_format.MessageToDict(asked_of(guest), preserving_proto_field_name=True),
            "entry": {slot: getattr(entry, slot) for slot in Entry.__slots__},
            "images": [json_format.MessageToDict(image, preserving_proto_field_name=True) for image in images],
            "blobs": sorted(blobs),
        }
    ).encode()


def read(path: Path, name: str) -> Stored:
    """What stands in a file; its memory and disks are not looked at. name: its own in this daemon. Raises HvdError
    SNAPSHOT_*, OSError."""
    with Reader(path, name) as reader:
        document, state = reader.read_json(sections.ABOUT), reader.read_json(sections.MACHINE)
        try:
            return _stored(reader, name, document, state)
        except (KeyError, ValueError, TypeError, AttributeError, json_format.ParseError) as error:
            raise reader.damaged(f"what it says about itself makes no sense: {error!r}"[:300]) from error


def _stored(reader: Reader, name: str, document: Mapping[str, Any], state: Mapping[str, Any]) -> Stored:
    guest = json_format.ParseDict(document["guest"], guest_pb2.Guest(), ignore_unknown_fields=True)
    entry = Entry(**{slot: document["entry"][slot] for slot in Entry.__slots__ if slot in document["entry"]})
    texts = (entry.kernel, entry.initrd, entry.symbols, entry.command_line, entry.boot, *entry.args)
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.flat_load_address, int):
        raise TypeError(entry)
    images = [
        json_format.ParseDict(image, image_pb2.Image(), ignore_unknown_fields=True) for image in document["images"]
    ]
    message = guest_pb2.Snapshot(
        name=name,
        uid=document["uid"],
        backend=guest.backend,
        vcpu_format=state["vcpu"]["format"],
        memory_bytes=state["memory_bytes"],
        size_bytes=reader.path.stat().st_blocks * 512,
        format_version=VERSION,
        description=document["description"],
    )
    message.create_time.FromNanoseconds(document["create_time_ns"])
    message.machine.CopyFrom(guest.machine)
    blobs = frozenset(str(digest) for digest in document["blobs"])
    return Stored(reader.path, message, guest, entry, images, blobs, list(state.get("disks", [])), str(document["name"]))


def scan(directory: Path, guest: str, oddities: list[str]) -> list[Stored]:
    """Every snapshot of one guest; what an earlier daemon left half written is removed. A file that cannot be read stays
    where it is and is told in oddities."""
    found: list[Stored] = []
    if not directory.is_dir():
        return found
    for path in sorted(directory.iterdir()):
        if path.suffix != SUFFIX:
            path.unlink(missing_ok=True)
            continue
        name = snapshot_name(guest, path.stem)
        try:
            check_id(path.stem, "snapshot")
            found.append(read(path, name))
        except (HvdError, OSError) as error:
            log.error("snapshot cannot be read", snapshot=name, problem=str(error))
            oddities.append(f"{path} cannot be read: {error}")
    return found
