"""Taking a snapshot that another daemon exported: into a guest that there is, or one that is made for it."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import Final

from hvapi.v1 import guest_pb2

from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.lifecycle import GuestLife
from hvd.guests.snapshot_files import SUFFIX, Stored, parse_name, read, snapshot_name
from hvd.guests.snapshot_transfer import bring_images, take_blobs
from hvd.guests.snapshots import Snapshots
from hvd.snapshot.container import FULL

INCOMING: Final = "incoming"


class Import:
    """One import: `async with Import(...) as taken: ... await taken.write(chunk) ...; await taken.commit()`."""

    def __init__(self, snapshots: Snapshots, parent: str, identifier: str) -> None:
        """Raises HvdError NAME_INVALID, NAME_TAKEN."""
        self._snapshots = snapshots
        self._parent = model.PREFIX + model.parse_name(parent) if parent else ""
        self._identifier = model.check_id(identifier, "snapshot") if identifier else ""
        self._directory = snapshots.incoming
        self._path = self._directory / f"{uuid.uuid4()}{SUFFIX}"
        self._fd = -1
        if self._parent and self._identifier:
            self._check_free(self._parent, self._identifier)

    def _check_free(self, parent: str, identifier: str) -> None:
        if parent.removeprefix(model.PREFIX) in self._snapshots.supervisor.names():
            self._snapshots.check_free(self._snapshots.supervisor.get(parent), identifier)

    async def __aenter__(self) -> Import:
        await asyncio.to_thread(self._open)
        return self

    def _open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def __aexit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._path.unlink(missing_ok=True)

    async def write(self, chunk: bytes) -> None:
        """Raises HvdError DISK_FULL."""
        await asyncio.to_thread(self._write, chunk)

    def _write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in FULL:
                raise HvdError("DISK_FULL", directory=self._directory, what="the snapshot") from error
            raise

    async def commit(self) -> Stored:
        """Raises HvdError SNAPSHOT_*, BLOB_NOT_FOUND, NAME_TAKEN, DISK_FULL, and what making a guest raises."""
        await asyncio.to_thread(self._check)
        stored = await asyncio.to_thread(read, self._path, "to be imported")
        their_guest, their_id = self._names(stored)
        identifier, parent = self._identifier or their_id, self._parent or their_guest
        self._check_free(parent, identifier)
        for digest in sorted(stored.blobs):
            self._snapshots.blobs.path(digest)  # what the file did not bring must be here
        life = await self._guest(stored, parent)
        path = self._snapshots.directory(life.guest) / f"{identifier}{SUFFIX}"
        return await self._snapshots.put(life, identifier, await asyncio.to_thread(self._move, path, life, identifier))

    def _check(self) -> None:
        take_blobs(self._path, self._snapshots.blobs)
        os.fsync(self._fd)

    def _names(self, stored: Stored) -> tuple[str, str]:
        """Of its guest and its own, where it was taken."""
        try:
            return parse_name(stored.origin)
        except HvdError as error:
            raise HvdError("SNAPSHOT_DAMAGED", name="to be imported", problem=str(error)) from error

    async def _guest(self, stored: Stored, parent: str) -> GuestLife:
        supervisor = self._snapshots.supervisor
        identifier = parent.removeprefix(model.PREFIX)
        if identifier in supervisor.names():
            return supervisor.get(parent)
        request = guest_pb2.CreateGuestRequest(guest_id=identifier)
        names = bring_images(stored, self._snapshots.catalog)
        request.guest.CopyFrom(self._snapshots.config_of(stored))
        if request.guest.image and request.guest.image in names:
            request.guest.image = names[request.guest.image]
        for disk in request.guest.machine.disks:
            disk.image = names.get(disk.image, disk.image)
        await supervisor.create(request)
        return supervisor.get(parent)

    def _move(self, path: Path, life: GuestLife, identifier: str) -> Stored:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.rename(self._path, path)
        return read(path, snapshot_name(life.guest.name, identifier))
