"""Snapshots of guests, and what is made of them: restoring, cloning.

A snapshot is taken beside the guest's other verbs: a kill cuts it short. Whatever is restored is checked to the last
byte, and against the guest that gets it, before anything is changed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from hvapi.v1 import guest_pb2, image_pb2

from hvd.backends.contract import Backend, Capability, LaunchSpec
from hvd.board.block.sparse import copy_sparse
from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.lifecycle import GuestLife
from hvd.guests.model import Guest
from hvd.guests.snapshot_files import (
    COLLECTION,
    DIRECTORY,
    SUFFIX,
    Stored,
    about,
    parse_name,
    read,
    scan,
    snapshot_name,
)
from hvd.guests.snapshot_transfer import Blobs
from hvd.guests.supervisor import Supervisor
from hvd.images.catalog import ImageCatalog
from hvd.snapshot.container import FULL, Reader, unfinished
from hvd.snapshot.machine import disk_state, mismatch
from hvd.snapshot.sparse import read_file

log = structlog.get_logger()

DEFAULT_PAGE, MOST_PAGE = 100, 1000
MOST_DESCRIPTION = 4096


class Snapshots:
    """All snapshots of this daemon. Belongs to the event loop."""

    def __init__(self, supervisor: Supervisor, catalog: ImageCatalog, blobs: Blobs) -> None:
        self.supervisor = supervisor
        self.catalog = catalog
        self.blobs = blobs
        # By the guest's uid, then by id, in the order of their creation.
        self._stored: defaultdict[str, dict[str, Stored]] = defaultdict(dict)
        self._writing: set[Path] = set()
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- tables

    def directory(self, guest: guest_pb2.Guest) -> Path:
        return self.supervisor.disks_directory(guest.uid).absolute() / DIRECTORY

    async def load(self) -> None:
        """At the daemon's start, when the guests are known."""
        await asyncio.to_thread(shutil.rmtree, self.incoming, ignore_errors=True)
        for life in self.supervisor:
            found = await asyncio.to_thread(
                scan, self.directory(life.guest), life.guest.name, self.supervisor.oddities
            )
            for stored in sorted(found, key=_age):
                self._stored[life.guest.uid][stored.identifier] = stored

    def _of(self, life: GuestLife) -> dict[str, Stored]:
        return self._stored[life.guest.uid]

    def __iter__(self) -> Iterator[Stored]:
        for life in self.supervisor:
            yield from self._of(life).values()

    def get(self, name: str) -> Stored:
        """Raises HvdError NAME_INVALID, GUEST_NOT_FOUND, SNAPSHOT_NOT_FOUND."""
        guest, identifier = parse_name(name)
        try:
            return self._of(self.supervisor.get(guest))[identifier]
        except KeyError:
            raise HvdError(
                "SNAPSHOT_NOT_FOUND", guest=guest.removeprefix(model.PREFIX), name=identifier
            ) from None

    def page(self, parent: str, size: int, token: str) -> tuple[list[guest_pb2.Snapshot], str]:
        """By guest, then in the order of their creation. Raises HvdError GUEST_NOT_FOUND, FIELD_INVALID,
        PAGE_TOKEN_INVALID."""
        if size < 0:
            raise HvdError(
                "FIELD_INVALID", field="page_size", value=size, problem="is negative", remedy="use 0 for the default"
            )
        size = min(size or DEFAULT_PAGE, MOST_PAGE)
        of_all = parent in ("guests/-", "-", "")
        found = self if of_all else self._of(self.supervisor.get(parent)).values()
        wanted = sorted(found, key=_place)
        if token:
            after = _decode_token(token)
            wanted = [stored for stored in wanted if _place(stored) > after]
        page = wanted[:size]
        more = json.dumps(_place(page[-1])) if len(wanted) > size else ""
        return [stored.message for stored in page], more

    def references(self) -> set[str]:
        """Digests of the blobs that snapshots need."""
        return {digest for stored in self for digest in stored.blobs}

    async def delete(self, name: str, allow_missing: bool) -> None:
        """Raises HvdError SNAPSHOT_NOT_FOUND, GUEST_NOT_FOUND, SNAPSHOT_IN_USE."""
        try:
            stored = self.get(name)
        except HvdError as error:
            if allow_missing and error.reason in ("SNAPSHOT_NOT_FOUND", "GUEST_NOT_FOUND"):
                return
            raise
        if stored.users:
            raise HvdError("SNAPSHOT_IN_USE", name=stored.message.name, verb=stored.users[0])
        life = self.supervisor.get(parse_name(name)[0])
        del self._of(life)[stored.identifier]
        await asyncio.to_thread(stored.path.unlink, missing_ok=True)

    # ---- taking one

    async def take(self, guest: str, identifier: str, description: str) -> Stored:
        """A snapshot of a guest that runs or is paused. Cancelled, it leaves nothing.

        Raises HvdError GUEST_*, NAME_INVALID, NAME_TAKEN, CAPABILITY_MISSING, DISK_FULL, RUNNER_GONE, FIELD_INVALID.
        """
        life = self.supervisor.get(guest)
        if len(description.encode()) > MOST_DESCRIPTION:
            raise HvdError(
                "FIELD_INVALID",
                field="description",
                value=f"{len(description)} characters",
                problem=f"more than {MOST_DESCRIPTION} bytes",
                remedy="be brief",
            )
        identifier = identifier or self._make_up_id(life)
        model.check_id(identifier, "snapshot")
        path = self.directory(life.guest) / f"{identifier}{SUFFIX}"
        self.check_free(life, identifier)
        name = snapshot_name(life.guest.name, identifier)
        stored: Stored = await self._or_nothing(self._write(life, path, name, description), _remove)
        return await self.put(life, identifier, stored)

    def check_free(self, life: GuestLife, identifier: str) -> None:
        """Raises HvdError NAME_TAKEN."""
        if identifier in self._of(life) or self.directory(life.guest) / f"{identifier}{SUFFIX}" in self._writing:
            raise HvdError("NAME_TAKEN", what="snapshot", name=identifier)

    async def put(self, life: GuestLife, identifier: str, stored: Stored) -> Stored:
        """It is one of the guest's from now on. Raises HvdError GUEST_NOT_FOUND: the guest is deleted, and so is this."""
        if life.deleted:
            await asyncio.to_thread(_remove, stored)
            raise HvdError("GUEST_NOT_FOUND", name=life.guest.name)
        self._of(life)[identifier] = stored
        return stored

    @property
    def incoming(self) -> Path:
        """Where imports are until they are whole; what an earlier daemon left there is removed by load()."""
        return self.supervisor.config.state_dir / "snapshots-incoming"

    def _make_up_id(self, life: GuestLife) -> str:
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        taken = self._of(life)
        return next(name for n in range(len(taken) + 2) if (name := f"{moment}-{n}" if n else moment) not in taken)

    async def _write(self, life: GuestLife, path: Path, name: str, description: str) -> Stored:
        """Its file, checked by reading it once."""
        self._check_engine(life.backend, life.guest.engine)
        life.reachable("snapshot", Capability.SNAPSHOT)
        self._writing.add(path)
        try:
            async with self._one_at_a_time[life.guest.uid]:
                instance = life.reachable("snapshot", Capability.SNAPSHOT)
                document = about(
                    name,
                    str(uuid.uuid4()),
                    description,
                    time.time_ns(),
                    life.guest,
                    self.supervisor.resolve(life.guest, paused=False),
                    self._images_of(life.guest),
                )
                await asyncio.to_thread(_make_directory, path.parent)
                saved = await instance.save_snapshot(path, document)
                log.info(
                    "snapshot taken", snapshot=name, bytes=saved.size_bytes, paused_ms=round(saved.paused_ns / 1e6)
                )
            return await asyncio.to_thread(read, path, name)
        except BaseException as error:
            await asyncio.to_thread(_unlink_all, [path, unfinished(path)])  # of a runner that ended while it wrote
            if isinstance(error, OSError):
                raise _file_error(error, path.parent) from error
            raise
        finally:
            self._writing.discard(path)

    def _images_of(self, guest: guest_pb2.Guest) -> list[image_pb2.Image]:
        return [self.catalog.get(f"images/{name}") for name in sorted(model.images_of(guest))]

    def _check_engine(self, backend: Backend, engine: str) -> None:
        if not backend.vcpu_format(engine):
            where = f"{backend.name}, engine {engine}" if engine else backend.name
            raise HvdError("CAPABILITY_MISSING", backend=where, capability=Capability.SNAPSHOT.value)

    async def _or_nothing(self, work: Any, undo: Callable[[Any], None]) -> Any:
        """Do it whether or not the caller stays; what it made for one that went is undone."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:

            def went(done: asyncio.Future[Any]) -> None:
                if not done.cancelled() and done.exception() is None:
                    undo(done.result())

            task.add_done_callback(went)
            raise

    async def close(self) -> None:
        """The daemon goes: a snapshot that is being written is given up, what is made of others is seen through."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- restoring

    async def restore(self, snapshot: str, guest: str, backend: str, paused: bool) -> guest_pb2.Guest:
        """Raises HvdError SNAPSHOT_*, GUEST_*, BACKEND_*, BLOB_NOT_FOUND, DISK_FULL, and what starting raises."""
        stored = self.get(snapshot)
        life = self.supervisor.get(guest or parse_name(snapshot)[0])
        with stored.used_by("restore"):
            await self._restore(stored, life, backend, paused)
        return life.guest

    async def _restore(self, stored: Stored, life: GuestLife, backend: str, paused: bool) -> None:
        spec = self.supervisor.resolve(life.guest, paused)
        chosen, engine = life.backend, life.guest.engine
        if backend and backend != life.guest.backend:
            placement = await self.supervisor.backends.place(backend, "", self._adapted(stored, spec))
            chosen, engine = placement.backend, placement.engine
        self._check_fits(stored, life, spec, chosen, engine)
        adapted = self._adapted(stored, spec)
        await asyncio.to_thread(_verify, stored)
        staged = await asyncio.to_thread(_stage_disks, stored, adapted)

        async def make_ready() -> None:
            await asyncio.to_thread(_put_disks, staged)

        def adapt(spec: LaunchSpec) -> LaunchSpec:
            return self._adapted(stored, spec)

        try:
            await life.begin_from(make_ready, adapt, paused, chosen.name if backend else "", engine if backend else "")
        finally:
            await asyncio.to_thread(_unlink_all, list(staged))

    def _adapted(self, stored: Stored, spec: LaunchSpec) -> LaunchSpec:
        """The machine that was saved, with this guest's identity, limits and files. Raises HvdError BLOB_NOT_FOUND."""
        entry = stored.entry

        def path(digest: str) -> Path | None:
            return self.blobs.path(digest) if digest else None

        return replace(
            spec,
            kernel=path(entry.kernel),
            initrd=path(entry.initrd),
            symbols=path(entry.symbols) or spec.symbols,
            command_line=entry.command_line,
            args=entry.args,
            flat_load_address=entry.flat_load_address,
            boot=entry.boot,
            snapshot=stored.path,
        )

    def _check_fits(
        self, stored: Stored, life: GuestLife, spec: LaunchSpec, backend: Backend, engine: str
    ) -> None:
        """Raises HvdError SNAPSHOT_MISMATCH, CAPABILITY_MISSING."""
        self._check_engine(backend, engine)
        name = stored.message.name
        saved, has = stored.message.vcpu_format, backend.vcpu_format(engine)
        if saved != has:
            raise mismatch(name, "form of the vcpu's state", saved, has)
        if stored.message.memory_bytes != spec.memory_bytes:
            raise mismatch(name, "memory", f"{stored.message.memory_bytes} bytes", f"{spec.memory_bytes} bytes")
        cards, own = len(stored.message.machine.network_interfaces), len(spec.network_interfaces)
        if cards != own:
            raise mismatch(name, "number of network cards", str(cards), str(own))
        disks = [disk_state(disk) for disk in spec.disks]
        if stored.disks != disks:
            raise mismatch(name, "set of disks", json.dumps(stored.disks), json.dumps(disks))

    # ---- cloning

    async def clone(self, source: str, identifier: str, request_id: str) -> guest_pb2.Guest:
        """Another guest, with a name, uid and network addresses of its own: from a snapshot, of a guest as it is now
        (it pauses shortly), or of a stopped guest's disks. Nothing is left when it fails."""
        if COLLECTION in source:
            stored = self.get(source)
            with stored.used_by("clone"):
                return await self._whole(self._clone_from(stored, identifier, request_id))
        life = self.supervisor.get(source)
        if not life.is_alive:
            return await self._whole(self._clone_stopped(life, identifier, request_id))
        if identifier:
            model.check_id(identifier)
            if identifier in self.supervisor.names():
                raise HvdError("NAME_TAKEN", what="guest", name=identifier)
        return await self._whole(self._clone_running(life, identifier, request_id))

    async def _clone_running(self, life: GuestLife, identifier: str, request_id: str) -> guest_pb2.Guest:
        path = self.directory(life.guest) / f".clone-{uuid.uuid4()}"
        stored = await self._write(life, path, snapshot_name(life.guest.name, "clone"), "")
        try:
            return await self._clone_from(stored, identifier, request_id)
        finally:
            await asyncio.to_thread(_remove, stored)

    async def _clone_from(self, stored: Stored, identifier: str, request_id: str) -> guest_pb2.Guest:
        await asyncio.to_thread(_verify, stored)
        clone, is_new = await self._make(self.config_of(stored), identifier, request_id)
        if is_new:
            try:
                await self._restore(stored, clone, "", paused=False)
            except BaseException:
                await clone.delete(force=True, etag="")
                raise
        return clone.guest

    async def _clone_stopped(self, life: GuestLife, identifier: str, request_id: str) -> guest_pb2.Guest:
        clone, is_new = await self._make(life.guest, identifier, request_id)
        if not is_new:
            return clone.guest
        from_, to = (self.supervisor.resolve(guest, paused=False) for guest in (life.guest, clone.guest))
        pairs = list(zip(from_.disks, to.disks, strict=True))

        async def copy() -> None:
            if life.is_alive:
                raise HvdError("GUEST_BUSY", verb="start", name=life.guest.name)
            for source, target in pairs:
                if source.overlay:
                    await asyncio.to_thread(_copy_overlay, Path(source.overlay), Path(target.overlay))
            if from_.container is not None and to.container is not None:
                await asyncio.to_thread(_copy_written, from_.container.state_dir, to.container.state_dir)

        try:
            await life.exclusively(copy)
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
        made = await self.supervisor.create(request)
        life = self.supervisor.get(made.name)
        return life, made.name.removeprefix(model.PREFIX) not in before

    def config_of(self, stored: Stored) -> guest_pb2.Guest:
        """The guest as it was asked for; of an image that is another one now, or gone, what it gave then."""
        guest = Guest()
        guest.CopyFrom(stored.guest)
        if guest.image and not self._is_same(guest.image, stored):
            entry, machine = stored.entry, guest.machine
            machine.kernel, machine.initrd, machine.symbols = entry.kernel, entry.initrd, entry.symbols
            machine.append = entry.command_line
            guest.image = ""
        return guest

    def _is_same(self, name: str, stored: Stored) -> bool:
        then = next((image for image in stored.images if image.name == name), None)
        try:
            now = self.catalog.get(name)
        except HvdError:
            return False
        return then is not None and all(
            getattr(now, part) == getattr(then, part) for part in ("kernel", "initrd", "append", "disk", "symbols")
        )

    async def _whole(self, work: Any) -> guest_pb2.Guest:
        """Do it whether or not the caller stays: a clone is there completely or not at all."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        made: guest_pb2.Guest = await asyncio.shield(task)
        return made


def _age(stored: Stored) -> int:
    return stored.message.create_time.ToNanoseconds()


def _place(stored: Stored) -> list[Any]:
    """In the order of ListSnapshots."""
    guest, _, identifier = stored.message.name.partition(COLLECTION)
    return [guest, _age(stored), identifier]


def _decode_token(token: str) -> list[Any]:
    try:
        guest, age, identifier = json.loads(token)
        if isinstance(guest, str) and isinstance(age, int) and isinstance(identifier, str):
            return [guest, age, identifier]
    except (ValueError, TypeError, RecursionError):
        pass
    raise HvdError("PAGE_TOKEN_INVALID", token=token[:80])


def _make_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _remove(stored: Stored) -> None:
    stored.path.unlink(missing_ok=True)


def _verify(stored: Stored) -> None:
    """To the last byte. Raises HvdError SNAPSHOT_DAMAGED, SNAPSHOT_NOT_FOUND."""
    try:
        with Reader(stored.path, stored.message.name) as reader:
            reader.verify()
    except FileNotFoundError:
        guest, identifier = parse_name(stored.message.name)
        raise HvdError("SNAPSHOT_NOT_FOUND", guest=guest.removeprefix(model.PREFIX), name=identifier) from None


def _stage_disks(stored: Stored, spec: LaunchSpec) -> dict[Path, Path]:
    """What the guest had written, in new files beside the overlays: {new file: overlay}. Raises HvdError SNAPSHOT_DAMAGED,
    DISK_FULL; nothing is left then."""
    staged: dict[Path, Path] = {}
    try:
        with Reader(stored.path, stored.message.name) as reader:
            for disk in spec.disks:
                if disk.overlay:
                    overlay = Path(disk.overlay)
                    _make_directory(overlay.parent)
                    new = overlay.with_name(f"{overlay.name}.restored")
                    staged[new] = overlay
                    read_file(reader, disk.name, new)
    except BaseException:
        _unlink_all(list(staged))
        raise
    return staged


def _put_disks(staged: dict[Path, Path]) -> None:
    for new, overlay in staged.items():
        new.rename(overlay)


def _unlink_all(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _copy_overlay(source: Path, target: Path) -> None:
    new = target.with_name(f"{target.name}.new")
    try:
        with source.open("rb") as read_from, new.open("wb") as write_to:
            copy_sparse(read_from.fileno(), write_to.fileno())
            os.fsync(write_to.fileno())
        new.rename(target)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise _file_error(error, target.parent) from error


def _copy_written(source: Path, target: Path) -> None:
    """What a container has written: owners, attributes and overlayfs's marks of what it removed included. Raises HvdError
    CONTAINER_FAILED."""
    if not (source / "upper").is_dir():
        return
    target.mkdir(mode=0o711, parents=True, exist_ok=True)
    words = ["cp", "--archive", "--reflink=auto", "--", str(source / "upper"), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise HvdError("CONTAINER_FAILED", what="copying what it wrote", problem=done.stderr.strip()[-300:])


def _file_error(error: OSError, directory: Path) -> HvdError:
    if error.errno in FULL:
        return HvdError("DISK_FULL", directory=directory, what="the snapshot")
    return HvdError("SNAPSHOT_FAILED", problem=str(error))
