"""All guests: making, finding, changing and deleting them, adoption at the daemon's start, and what each needs of the
daemon around it.

The tables here are in memory and are the present; the store follows. What a client asked for is in the store before it
is answered; what was merely observed is written behind, in one transaction for all that changed meanwhile, since the
runtime directory tells it again anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hvapi.v1 import guest_pb2, image_pb2

from hvd.backends.contract import Backend, LaunchSpec
from hvd.config import Config
from hvd.errors import HvdError
from hvd.guests import adoption, containers, disks, limits, model, records
from hvd.guests.autostart import start_after_boot
from hvd.guests.blank import BlankDirectories
from hvd.guests.changes import asked_fields, take
from hvd.guests.events import EventLog, now
from hvd.guests.lifecycle import GuestLife
from hvd.guests.model import Guest
from hvd.guests.pages import decode_token, encode_token
from hvd.guests.placement import Backends
from hvd.guests.store import Store
from hvd.guests.write_behind import WriteBehind
from hvd.jail import group
from hvd.network.cards import Cards
from hvd.runner.directory import FIRST_FILES
from hvd.trace.session import TraceSwitch

log = structlog.get_logger()

GuestEvent = guest_pb2.GuestEvent
_BOOT = "boot-id"
# Beside the directories of guests, in the runtime and in the state directory.
BLANK = "blank"
T = TypeVar("T")


class Supervisor:
    """Every guest of this daemon."""

    def __init__(
        self,
        config: Config,
        store: Store,
        backends: Backends,
        images: model.Images,
        blobs: model.Blobs,
        trace: TraceSwitch,
        cards: Cards,
        layers: containers.Layers,
    ) -> None:
        self.config = config
        self.backends = backends
        self.trace = trace
        self.events = EventLog()
        self.stop_grace = config.stop_grace
        # What was found odd at the start and left alone: for `hvctl doctor`.
        self.oddities: list[str] = []
        self.adopted = asyncio.Event()
        self._store = store
        self._images = images
        self._blobs = blobs
        self._cards = cards
        self._places = containers.Places(layers, config.disks_dir, config.volumes_dir, config.image_dirs)
        self._guests: dict[str, GuestLife] = {}
        self._blank = BlankDirectories(config.runtime_dir / BLANK, (records.GUEST, *FIRST_FILES), config.spare_runners)
        self._blank_disks = BlankDirectories(config.state_dir / BLANK, (), config.spare_runners)
        # The one that is being made: it needs its images and blobs already.
        self._coming: guest_pb2.Guest | None = None
        # Held while what was asked for changes: creation and updates, one at a time.
        self._asking = asyncio.Lock()
        self._behind = WriteBehind(store)
        # uid -> what an earlier daemon did not end (hvd.guests.store).
        self._half_made: dict[str, str] = {}
        self._autostart: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- tables ---

    def __iter__(self) -> Iterator[GuestLife]:
        return iter(self._guests.values())

    def __len__(self) -> int:
        return len(self._guests)

    def names(self) -> Set[str]:
        """The {guest} of every guest."""
        return self._guests.keys()

    def get(self, name: str) -> GuestLife:
        """The guest of "guests/{guest}". Raises HvdError NAME_INVALID, GUEST_NOT_FOUND."""
        identifier = model.parse_name(name)
        try:
            return self._guests[identifier]
        except KeyError:
            raise HvdError("GUEST_NOT_FOUND", name=identifier) from None

    def page(self, size: int, token: str, labels: dict[str, str]) -> tuple[list[guest_pb2.Guest], str]:
        """The guests by name after the token's, and the token of the next page. Raises HvdError FIELD_INVALID,
        PAGE_TOKEN_INVALID.
        """
        if size < 0:
            raise HvdError(
                "FIELD_INVALID", field="page_size", value=size, problem="is negative", remedy="use 0 for the default"
            )
        size = min(size or 100, 1000)
        after = decode_token(token)
        fitting = [name for name in sorted(self._guests) if name > after and self._carries(name, labels)]
        page = fitting[:size]
        return [self._guests[name].guest for name in page], encode_token(page[-1]) if len(fitting) > size else ""

    def _carries(self, name: str, labels: dict[str, str]) -> bool:
        carried = self._guests[name].guest.labels
        return all(key in carried and carried[key] == value for key, value in labels.items())

    async def shown(self, life: GuestLife) -> guest_pb2.Guest:
        """The guest, with what has to be looked up for that."""
        stored = 0
        if life.guest.machine.disks or life.guest.image:  # without, nothing is worth a thread
            stored = await asyncio.to_thread(disks.stored_bytes, self.disks_directory(life.guest.uid))
        effects = await limits.effects(life)
        guest = model.copy_of(life.guest)
        guest.disk_stored_bytes = stored
        if effects is not None:
            guest.limit_effects.CopyFrom(effects)
        return guest

    def users_of(self, image: str) -> list[str]:
        """Names of the guests that an image has, as theirs or behind a disk."""
        wanted = image.removeprefix("images/")
        return [guest.name for guest in self.messages() if wanted in model.images_of(guest)]

    def references(self) -> set[str]:
        """Digests of the blobs that guests name themselves."""
        return {digest for guest in self.messages() for digest in model.digests_of(guest)}

    def messages(self) -> Iterator[guest_pb2.Guest]:
        """Every guest, and the one that is being made."""
        yield from (life.guest for life in self)
        if self._coming is not None:
            yield self._coming

    def symbols_of(self, guest: guest_pb2.Guest) -> str:
        """Digest of the guest's symbols, its own or its image's; empty when it has none."""
        if guest.machine.symbols or not guest.image:
            return guest.machine.symbols
        try:
            return self._images.get(guest.image).symbols
        except HvdError:  # deleted meanwhile
            return ""

    def symbol_files(self, guest: guest_pb2.Guest) -> list[Path]:
        """ELF files that may name what stands at an address of the guest's kernel, the best first."""
        digests = [self.symbols_of(guest), guest.machine.kernel]
        if guest.image:
            with contextlib.suppress(HvdError):  # deleted meanwhile
                digests.append(self._images.get(guest.image).kernel)
        return [self._blobs.path(digest) for digest in digests if digest]

    # --- what a guest needs (lifecycle.Host) ---

    def directory(self, uid: str) -> Path:
        return self.config.guests_dir / uid

    def disks_directory(self, uid: str) -> Path:
        return self.config.disks_dir / uid

    def take_blank(self, guest: guest_pb2.Guest) -> bool:
        if containers.is_container(guest):
            return False
        if self.config.jail != "off":
            self._blank_disks.take(self.disks_directory(guest.uid))
        return self._blank.take(self.directory(guest.uid))

    def backend(self, name: str) -> Backend:
        return self.backends.get(name)

    def resolve(self, guest: guest_pb2.Guest, paused: bool) -> LaunchSpec:
        config = self.config
        if containers.is_container(guest):
            image = self._images.get(guest.image) if guest.image else image_pb2.Image()
            spec = containers.resolve(guest, image, self._places, config.log_max_bytes, paused)
        else:
            spec = model.resolve(
                guest,
                self._images,
                self._blobs,
                self.disks_directory(guest.uid),
                config.default_memory,
                config.log_max_bytes,
                paused,
            )
        directory, jailed = self.disks_directory(guest.uid), config.jail != "off"
        return replace(
            spec, log_files=config.log_files, state_directory=directory, jailed=jailed, grouped=jailed, spare_runners=config.spare_runners
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def plugged(self, guest: guest_pb2.Guest, spec: LaunchSpec) -> AsyncIterator[LaunchSpec]:
        if spec.container is not None:
            yield replace(spec, container=await self._cards.container(guest, spec.container))
            return
        async with self._cards.plugged(guest, spec.network_interfaces) as (cards, descriptors):
            yield replace(spec, network_interfaces=cards, card_descriptors=descriptors)

    def changed(self, life: GuestLife, kind: guest_pb2.GuestEvent.Type.ValueType, message: str) -> None:
        self.events.publish(kind, life.guest, message)
        self._cards.changed(life.guest)
        if kind == GuestEvent.CHANGED:
            self._behind.add(life)

    def keep(self, life: GuestLife) -> Awaitable[None]:
        return self._behind.keep(life)

    @property
    def store_problem(self) -> str:
        """Why the store cannot be written at the moment; empty = it can."""
        return self._behind.problem

    async def forget(self, life: GuestLife) -> None:
        await self._store.delete(life.guest.uid)
        self._behind.forget(life)
        self._guests.pop(model.parse_name(life.guest.name), None)
        self._cards.gone(life.guest)

    async def remove(self, uid: str) -> None:
        """What there is of a guest that has been forgotten. Should this be cut short, the next daemon does it."""
        directories = (self.directory(uid), self.disks_directory(uid))
        await asyncio.gather(*(asyncio.to_thread(records.remove_directory, each) for each in directories))
        await asyncio.to_thread(group.put_away, uid)  # of a run that no daemon saw end
        with contextlib.suppress(HvdError):  # then the next daemon looks again, and finds nothing
            await self._store.finished([uid])

    # --- creation and change ---

    async def create(self, request: guest_pb2.CreateGuestRequest, *, whole: bool = True) -> guest_pb2.Guest:
        """whole: nothing is to be added to it; otherwise completed() ends its creation, and a daemon that died before leaves
        nothing of it. Raises HvdError NAME_INVALID, NAME_TAKEN, FIELD_INVALID, REQUEST_ID_REUSED, TOO_MANY_GUESTS, DISK_FULL, and
        what resolve and Backends.place raise.
        """
        if request.request_id:
            model.check_request_id(request.request_id)
        guest = self._asked(request)
        if request.validate_only:
            if request.guest_id:
                self._check_free(request.guest_id)
            await self._place(guest)
            return guest
        return await self._whole(self._create(request, guest, whole))

    async def completed(self, guest: guest_pb2.Guest) -> None:
        """Of a guest that was created in parts. Raises HvdError DISK_FULL and the like."""
        await self._store.finished([guest.uid], durable=True)

    async def _create(
        self, request: guest_pb2.CreateGuestRequest, guest: guest_pb2.Guest, whole: bool
    ) -> guest_pb2.Guest:
        async with self._asking:
            unidentified = guest_pb2.CreateGuestRequest()
            unidentified.CopyFrom(request)
            unidentified.ClearField("request_id")
            fingerprint = hashlib.sha256(unidentified.SerializeToString(deterministic=True)).digest()
            if request.request_id and (earlier := await self._store.request(request.request_id)):
                if earlier.fingerprint != fingerprint:
                    raise HvdError("REQUEST_ID_REUSED", request_id=request.request_id)
                for life in self:
                    if life.guest.uid == earlier.uid:
                        return life.guest
                raise HvdError("GUEST_NOT_FOUND", name=request.guest_id or f"of request {request.request_id}")
            identifier = request.guest_id or model.make_up_id(self._guests)
            self._check_free(identifier)
            if len(self._guests) >= self.config.max_guests:
                raise HvdError("TOO_MANY_GUESTS", limit=self.config.max_guests)
            guest.name = model.PREFIX + identifier
            self._coming = guest
            try:
                await self._keep(guest, request.request_id, fingerprint, whole)
            finally:
                self._coming = None
            life = self._guests[identifier] = GuestLife(guest, self)
            self.changed(life, GuestEvent.CREATED, "created")
            return guest

    async def _keep(self, guest: guest_pb2.Guest, request_id: str, fingerprint: bytes, whole: bool) -> None:
        """Place it, make its disks, store it; nothing of it is left when one of these fails."""
        spec = await self._place(guest)
        noted = bool(spec.disks) or not whole
        if noted:
            await self._store.begin_creation(guest.uid)
        try:
            await asyncio.to_thread(disks.make_overlays, spec.disks, self.disks_directory(guest.uid))
            await self._store.create(guest, request_id, fingerprint, whole=whole)
        except BaseException:
            if noted:
                await self.remove(guest.uid)
            raise

    def _check_free(self, identifier: str) -> None:
        model.check_id(identifier)
        if identifier in self._guests:
            raise HvdError("NAME_TAKEN", what="guest", name=identifier)

    def _asked(self, request: guest_pb2.CreateGuestRequest) -> guest_pb2.Guest:
        """The guest that is asked for, checked; output-only fields are ignored (AIP-203)."""
        asked = request.guest
        if request.guest_id:
            model.check_id(request.guest_id)
        guest = Guest(
            backend=asked.backend, engine=asked.engine, labels=asked.labels, image=asked.image, on_reset=asked.on_reset,
            autostart=asked.autostart,
        )  # fmt: skip
        guest.machine.CopyFrom(asked.machine)
        if asked.HasField("container"):
            guest.container.CopyFrom(asked.container)
        guest.limits.CopyFrom(asked.limits)
        guest.restart_policy.CopyFrom(asked.restart_policy)
        if guest.image and not guest.image.startswith("images/"):
            guest.image = f"images/{guest.image}"
        for disk in guest.machine.disks:
            if disk.image and not disk.image.startswith("images/"):
                disk.image = f"images/{disk.image}"
        model.check_labels(guest.labels)
        model.check_policies(guest)
        containers.normalise(guest, self._images.get(guest.image) if guest.image else None)
        if containers.is_container(guest):
            containers.check_container(guest)
        else:
            model.check_machine(guest.machine)
        guest.uid = str(uuid.uuid4())
        guest.name = model.PREFIX + request.guest_id if request.guest_id else ""
        return guest

    async def _place(self, guest: guest_pb2.Guest) -> LaunchSpec:
        """Fill in what the daemon decides: backend, defaults, identity."""
        await self._cards.assign(guest)
        spec = self.resolve(guest, paused=False)
        placement = await self.backends.place(guest.backend, guest.engine, spec)
        guest.backend, guest.engine, guest.backend_reason = placement.backend.name, placement.engine, placement.reason
        if spec.container is None:
            guest.machine.memory_bytes, guest.machine.cpus = spec.memory_bytes, spec.cpus
        guest.on_reset = guest.on_reset or Guest.STOP
        guest.restart_policy.mode = guest.restart_policy.mode or guest_pb2.RestartPolicy.NEVER
        guest.state = Guest.STOPPED
        guest.create_time.CopyFrom(now())
        guest.capabilities.extend(sorted(placement.backend.capabilities))
        guest.etag = model.etag(guest)
        return spec

    async def update(self, asked: guest_pb2.Guest, paths: Sequence[str]) -> guest_pb2.Guest:
        """Change the named fields; no paths = all changeable fields that are set.

        Raises HvdError GUEST_NOT_FOUND, ETAG_MISMATCH, FIELD_IMMUTABLE, FIELD_INVALID, DISK_FULL (nothing is changed
        then), CAPABILITY_MISSING, LIMIT_*.
        """
        return await self._whole(self._update(self.get(asked.name), asked, asked_fields(asked, paths)))

    async def _update(
        self, life: GuestLife, asked: guest_pb2.Guest, wanted: Sequence[model.Mutable]
    ) -> guest_pb2.Guest:
        async with self._asking:
            if asked.etag and asked.etag != life.guest.etag:
                raise HvdError("ETAG_MISMATCH", name=life.guest.name)
            changed = guest_pb2.Guest()
            changed.CopyFrom(life.guest)
            take(changed, asked, wanted)
            changed.on_reset = changed.on_reset or Guest.STOP
            changed.restart_policy.mode = changed.restart_policy.mode or guest_pb2.RestartPolicy.NEVER
            model.check_labels(changed.labels)
            model.check_policies(changed)
            if "limits" in wanted:
                limits.check(life, changed.limits)
            changed.etag = model.etag(changed)
            if changed.etag == life.guest.etag:
                return life.guest
            await limits.change(life, changed.limits, lambda: self._store.put([changed], durable=True))
            if life.deleted:
                raise HvdError("GUEST_NOT_FOUND", name=life.guest.name)
            # Only these: the guest's state may have moved on while the disk was busy.
            take(life.guest, changed, model.MUTABLE)
            life.guest.etag = changed.etag
            life.update(f"changed {', '.join(wanted)}")
            return life.guest

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it whether or not the caller stays to see it done."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    # --- start and end of the daemon ---

    async def load(self) -> None:
        """The guests that the store knows; verbs wait until start() has found out how they are. Raises HvdError
        STORE_DAMAGED and the like; never for an odd guest.
        """
        loaded = await self._store.load()
        kept = {guest.uid for guest in loaded.guests}
        self._half_made = await self._store.unfinished()
        for uid in self._half_made.keys() - kept:
            log.warning("what an earlier daemon left half done is taken down", uid=uid, was=self._half_made[uid])
            await self.remove(uid)
        for name, problem in loaded.odd:
            log.error("guest in the store cannot be read", guest=name, problem=problem)
            self.oddities.append(f"the store's entry of {name} cannot be read: {problem}")
        for guest in loaded.guests:
            self._guests[guest.name.removeprefix(model.PREFIX)] = GuestLife(guest, self, known=False)

    async def start(self) -> None:
        """After load(): adopt what runs, all at once. Raises HvdError STORE_DAMAGED and the like; never for an odd
        guest.
        """
        began = time.monotonic()
        last_boot = await self._store.fact(_BOOT)
        self._behind.start()
        await self._adopt_strangers()
        # Whoever asked meanwhile may have made others, and be starting them.
        await asyncio.gather(*(life.adopt(last_boot) for life in self if not life.is_known))
        for life in [life for life in self if life.guest.uid in self._half_made]:
            log.warning("a guest whose creation was cut short is deleted", guest=life.guest.name)
            try:
                await self._store.forget_request(life.guest.uid)
                await life.delete(force=True, etag="")
            except HvdError as error:
                self.oddities.append(f"{life.guest.name} was made in parts, not to the end, and cannot be deleted: {error}")
        try:
            await self._store.set_fact(_BOOT, records.boot_id())
        except HvdError as error:
            log.error("store cannot be written", reason=error.reason, problem=error.message)
        known = {life.guest.uid for life in self}
        for directory in await asyncio.to_thread(disks.left_over, self.config.disks_dir, known):
            self.oddities.append(f"{directory} holds disks of a guest that is not known; it was left alone")
        self._cards.adopted(life.guest for life in self)
        seconds = round(time.monotonic() - began, 4)
        log.info("guests adopted", guests=len(self), alive=sum(life.is_alive for life in self), seconds=seconds)
        await asyncio.gather(self._blank.start(), self._blank_disks.start())
        self.adopted.set()
        if last_boot != records.boot_id():
            self._autostart = asyncio.create_task(start_after_boot(self))

    async def _adopt_strangers(self) -> None:
        """Guests that run but that the store does not know, since it was lost: the runtime directory is the truth."""
        known = {life.guest.uid for life in self}
        for directory, guest in await asyncio.to_thread(adoption.strangers, self.config.guests_dir, known):
            if guest is None:
                self.oddities.append(f"{directory} is no guest's directory; it was left alone")
                continue
            identifier = guest.name.removeprefix(model.PREFIX)
            if identifier in self._guests:
                if self._guests[identifier].guest.uid == guest.uid:
                    continue  # made while we looked
                self.oddities.append(f"{directory} holds another guest named {guest.name}; it was left alone")
                continue
            log.warning(
                "guest is not in the store, taken from its directory", guest=guest.name, directory=str(directory)
            )
            guest.state = Guest.RUNNING  # adoption finds out
            try:
                await self._store.create(guest, "", b"")
            except HvdError as error:
                log.error("store cannot be written", reason=error.reason, problem=error.message)
            self._guests[identifier] = GuestLife(guest, self, known=False)

    def leave(self) -> None:
        """The daemon is about to go: end what waits for guests."""
        for life in self:
            life.leave()

    async def close(self) -> None:
        """The daemon goes, the guests stay. Verbs under way are cut short: the next daemon finds out."""
        if self._autostart is not None:
            self._autostart.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(life.close() for life in self), return_exceptions=True)
        await asyncio.gather(self._blank.close(), self._blank_disks.close())
        await self._behind.close()
        if not self._guests:  # none were read, since the store could not be opened
            return
        try:
            await self._store.put([life.guest for life in self])
        except HvdError as error:
            log.error("store cannot be written", reason=error.reason, problem=error.message)
