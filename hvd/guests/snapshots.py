"""Snapshots of guests: which there are, and taking one, which is done beside the guest's other verbs: a kill cuts it short.

What is made of them is in snapshot_restore.py and snapshot_clone.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hvapi.v1 import guest_pb2, image_pb2

from hvd.backends.contract import Backend, Capability
from hvd.errors import HvdError
from hvd.guests import model
from hvd.guests.lifecycle import CLOSE_SECONDS, GuestLife
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
from hvd.jail.user import give_as
from hvd.snapshot.container import FULL, unfinished

log = structlog.get_logger()

DEFAULT_PAGE, MOST_PAGE = 100, 1000
MOST_DESCRIPTION = 4096
T = TypeVar("T")


class Snapshots:
    """All snapshots of this daemon. Belongs to the event loop."""

    def __init__(self, supervisor: Supervisor, catalog: ImageCatalog, blobs: Blobs) -> None:
        self.supervisor = supervisor
        self.catalog = catalog
        self.blobs = blobs
        # By the guest's uid, then by id, in the order of their creation.
        self._stored: defaultdict[str, dict[str, Stored]] = defaultdict(dict)
        self._writing: set[Path] = set()
        # What something is being made of, by the file that it is held with.
        self._held: dict[Path, Stored] = {}
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Given up when the daemon goes, and seen through.
        self._taking: set[asyncio.Task[Any]] = set()
        self._making: set[asyncio.Task[Any]] = set()

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
        return {digest for stored in (*self, *self._held.values()) for digest in stored.blobs}

    @contextlib.contextmanager
    def held(self, stored: Stored, verb: str) -> Iterator[Stored]:
        """The snapshot with another name of its file, and its blobs: it is not deleted meanwhile, and stays readable when its
        guest is. Raises HvdError SNAPSHOT_NOT_FOUND. Not asynchronous: a stream whose client went cannot wait in its end."""
        link = self.incoming / f"{uuid.uuid4()}.{verb}"
        self._held[link] = stored
        with stored.used_by(verb):
            try:
                yield replace(stored, path=_link(stored, link))
            finally:
                link.unlink(missing_ok=True)
                del self._held[link]

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
        stored: Stored = await self._or_nothing(self.write(life, path, name, description), remove)
        return await self.put(life, identifier, stored)

    def check_free(self, life: GuestLife, identifier: str) -> None:
        """Raises HvdError NAME_TAKEN."""
        if identifier in self._of(life) or self.directory(life.guest) / f"{identifier}{SUFFIX}" in self._writing:
            raise HvdError("NAME_TAKEN", what="snapshot", name=identifier)

    async def put(self, life: GuestLife, identifier: str, stored: Stored) -> Stored:
        """It is one of the guest's from now on. Raises HvdError GUEST_NOT_FOUND: the guest is deleted, and so is this."""
        if life.deleted:
            await asyncio.to_thread(remove, stored)
            raise HvdError("GUEST_NOT_FOUND", name=life.guest.name)
        self._of(life)[identifier] = stored
        return stored

    @property
    def incoming(self) -> Path:
        """Where imports are until they are whole, and files that are held; what an earlier daemon left there is removed by load()."""
        return self.supervisor.config.state_dir / "snapshots-incoming"

    def _make_up_id(self, life: GuestLife) -> str:
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        taken = self._of(life)
        return next(name for n in range(len(taken) + 2) if (name := f"{moment}-{n}" if n else moment) not in taken)

    async def write(self, life: GuestLife, path: Path, name: str, description: str) -> Stored:
        """Its file, checked by reading it once."""
        check_engine(life.backend, life.guest.engine)
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
                await asyncio.to_thread(make_directory, path.parent)
                saved = await instance.save_snapshot(path, document)
                log.info(
                    "snapshot taken", snapshot=name, bytes=saved.size_bytes, paused_ms=round(saved.paused_ns / 1e6)
                )
            return await asyncio.to_thread(read, path, name)
        except BaseException as error:
            await asyncio.to_thread(unlink_all, [path, unfinished(path)])  # of a runner that ended while it wrote
            if isinstance(error, OSError):
                raise file_error(error, path.parent) from error
            raise
        finally:
            self._writing.discard(path)

    def _images_of(self, guest: guest_pb2.Guest) -> list[image_pb2.Image]:
        return [self.catalog.get(f"images/{name}") for name in sorted(model.images_of(guest))]

    async def _or_nothing(self, work: Coroutine[Any, Any, T], undo: Callable[[T], None]) -> T:
        """Do it whether or not the caller stays; what it made for one that went is undone."""
        task = asyncio.create_task(work)
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:

            def went(done: asyncio.Task[T]) -> None:
                if not done.cancelled() and done.exception() is None:
                    undo(done.result())

            task.add_done_callback(went)
            raise

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it whether or not the caller stays: what is made of a snapshot is there completely or not at all."""
        task = asyncio.create_task(work)
        self._making.add(task)
        task.add_done_callback(self._made)
        return await asyncio.shield(task)

    def _made(self, task: asyncio.Task[Any]) -> None:
        self._making.discard(task)
        # Fetched here, since the caller may be gone; it gets the same exception if it is not.
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, HvdError):
            log.error("snapshot could not be used", error=repr(error))

    async def close(self) -> None:
        """The daemon goes: a snapshot that is being written is given up, what is made of others is seen through, if it is
        quick."""
        for task in self._taking:
            task.cancel()
        if self._making:
            await asyncio.wait(self._making, timeout=CLOSE_SECONDS)
        for task in self._making:
            task.cancel()
        await asyncio.gather(*self._taking, *self._making, return_exceptions=True)

    # ---- what it was of

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


def make_directory(directory: Path) -> None:
    """The guest's own, as what it lies in."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    give_as(directory, directory.parent)


def remove(stored: Stored) -> None:
    stored.path.unlink(missing_ok=True)


def not_found(stored: Stored) -> HvdError:
    guest, identifier = parse_name(stored.message.name)
    return HvdError("SNAPSHOT_NOT_FOUND", guest=guest.removeprefix(model.PREFIX), name=identifier)


def _link(stored: Stored, link: Path) -> Path:
    """The file's other name; its own where there can be no other. Raises HvdError SNAPSHOT_NOT_FOUND."""
    make_directory(link.parent)
    try:
        os.link(stored.path, link)
    except FileNotFoundError:
        raise not_found(stored) from None
    except OSError:  # a file system without links, or a full one
        return stored.path
    return link


def check_engine(backend: Backend, engine: str) -> None:
    """Raises HvdError CAPABILITY_MISSING unless its vcpus can be saved."""
    if not backend.vcpu_format(engine):
        where = f"{backend.name}, engine {engine}" if engine else backend.name
        raise HvdError("CAPABILITY_MISSING", backend=where, capability=Capability.SNAPSHOT.value)


def unlink_all(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def file_error(error: OSError, directory: Path) -> HvdError:
    if error.errno in FULL:
        return HvdError("DISK_FULL", directory=directory, what="the snapshot")
    return HvdError("SNAPSHOT_FAILED", problem=str(error))
