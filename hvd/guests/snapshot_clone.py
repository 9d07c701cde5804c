"""Cloning: another guest like one, from where that is now, or from one of its snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from hvapi.v1 import guest_pb2

from hvd.backends.contract import Capability
from hvd.board.block.sparse import copy_sparse
from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.lifecycle import GuestLife
from hvd.guests.snapshot_files import COLLECTION, Stored, snapshot_name
from hvd.guests.snapshot_restore import Restorer, verify
from hvd.guests.snapshots import file_error, remove


class Cloner:
    """Belongs to the event loop."""

    def __init__(self, restorer: Restorer) -> None:
        self.snapshots = restorer.snapshots
        self.supervisor = restorer.supervisor
        self._restorer = restorer

    async def clone(self, source: str, identifier: str, request_id: str) -> guest_pb2.Guest:
        """Another guest, with a name, uid and network addresses of its own: from a snapshot, of a guest as it is now
        (it pauses shortly), of a stopped guest's disks, or of what a container has written (which pauses, too, if it runs;
        its processes are not copied). Nothing is left when it fails."""
        if COLLECTION in source:
            stored = self.snapshots.get(source)
            return await self.snapshots.whole(self._clone_from(stored, identifier, request_id))
        life = self.supervisor.get(source)
        if not life.is_alive or life.guest.HasField("container"):
            return await self.snapshots.whole(self._clone_stopped(life, identifier, request_id))
        if identifier:
            model.check_id(identifier)
            if identifier in self.supervisor.names():
                raise HvdError("NAME_TAKEN", what="guest", name=identifier)
        return await self.snapshots.whole(self._clone_running(life, identifier, request_id))

    async def _clone_running(self, life: GuestLife, identifier: str, request_id: str) -> guest_pb2.Guest:
        path = self.snapshots.directory(life.guest) / f".clone-{uuid.uuid4()}"
        stored = await self.snapshots.write(life, path, snapshot_name(life.guest.name, "clone"), "")
        try:
            return await self._clone_from(stored, identifier, request_id)
        finally:
            await asyncio.to_thread(remove, stored)

    async def _clone_from(self, stored: Stored, identifier: str, request_id: str) -> guest_pb2.Guest:
        with self.snapshots.held(stored, "clone") as held:
            await asyncio.to_thread(verify, held)
            clone, is_new = await self._make(self.snapshots.config_of(held), identifier, request_id)
            if is_new:
                try:
                    await self._restorer.into(clone, held, "", paused=False)
                except BaseException:
                    await clone.delete(force=True, etag="")
                    raise
                await self.supervisor.completed(clone.guest)
            return clone.guest

    async def _clone_stopped(self, life: GuestLife, identifier: str, request_id: str) -> guest_pb2.Guest:
        clone, is_new = await self._make(life.guest, identifier, request_id)
        if not is_new:
            return clone.guest
        from_, to = (self.supervisor.resolve(guest, paused=False) for guest in (life.guest, clone.guest))
        pairs = list(zip(from_.disks, to.disks, strict=True))

        async def copy() -> None:
            if life.is_alive:
                if from_.container is None:
                    raise HvdError("GUEST_BUSY", verb="start", name=life.guest.name)
                async with _frozen(life):
                    await copy_files()
            else:
                await copy_files()

        async def copy_files() -> None:
            for source, target in pairs:
                if source.overlay:
                    await asyncio.to_thread(_copy_overlay, Path(source.overlay), Path(target.overlay))
            if from_.container is not None and to.container is not None:
                await asyncio.to_thread(_copy_written, from_.container.state_dir, to.container.state_dir)

        try:
            await life.exclusively(copy)
            await self.supervisor.completed(clone.guest)
        except BaseException:
            await clone.delete(force=True, etag="")
            raise
        return clone.guest

    async def _make(
        self, like: guest_pb2.Guest, identifier: str, request_id: str
    ) -> tuple[GuestLife, bool]:
        """A guest like that one, STOPPED, and whether this request made it. Raises as Supervisor.create()."""
        before = set(self.supervisor.names())
        request = guest_pb2.CreateGuestRequest(guest_id=identifier, request_id=request_id)
        guest = request.guest
        guest.CopyFrom(like)
        for card in (*guest.machine.network_interfaces, *guest.container.network_interfaces):
            card.mac_address = card.ip_address = ""  # made from its own uid; a free one
        if not like.HasField("container"):
            guest.ClearField("container")  # asking for its cards has made one
        for port in guest.container.ports if like.HasField("container") else ():
            port.host_port = 0  # a free one
        made = await self.supervisor.create(request, whole=False)
        life = self.supervisor.get(made.name)
        return life, made.name.removeprefix(model.PREFIX) not in before


@contextlib.asynccontextmanager
async def _frozen(life: GuestLife) -> AsyncIterator[None]:
    """A running container stands still within the block. Raises HvdError GUEST_BUSY."""
    if life.guest.state == guest_pb2.Guest.STOPPING:
        raise HvdError("GUEST_BUSY", verb="stop", name=life.guest.name)
    instance = life.reachable("clone", Capability.PAUSE)
    runs = life.guest.state == guest_pb2.Guest.RUNNING
    if runs:
        await instance.pause()
    try:
        yield
    finally:
        if runs:
            await instance.resume()


def _copy_overlay(source: Path, target: Path) -> None:
    new = target.with_name(f"{target.name}.new")
    try:
        with source.open("rb") as read_from, new.open("wb") as write_to:
            copy_sparse(read_from.fileno(), write_to.fileno())
            os.fsync(write_to.fileno())
        new.rename(target)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise file_error(error, target.parent) from error


def _copy_written(source: Path, target: Path) -> None:
    """What a container has written: owners, attributes and overlayfs's marks of what it removed included. Raises HvdError
    CONTAINER_FAILED."""
    if not (source / "upper").is_dir():
        return
    target.mkdir(mode=0o711, parents=True, exist_ok=True)
    words = ["env", "LC_ALL=C", "cp", "--archive", "--reflink=auto", "--", str(source / "upper"), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise HvdError("DISK_FULL", directory=target, what="what a container wrote")
        raise HvdError("CONTAINER_FAILED", what="copying what it wrote", problem=done.stderr.strip()[-300:])
