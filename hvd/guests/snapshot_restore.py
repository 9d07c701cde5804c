"""Restoring: a guest goes on from a snapshot, its own or another's.

What is restored is checked to the last byte, and against the guest that gets it, before anything is changed.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from hvapi.v1 import guest_pb2

from hvd.backends.contract import Backend, LaunchSpec
from hvd.guests.lifecycle import GuestLife
from hvd.guests.snapshot_files import Stored, parse_name
from hvd.guests.snapshots import Snapshots, check_engine, make_directory, not_found, unlink_all
from hvd.snapshot.container import Reader
from hvd.snapshot.machine import disk_state, mismatch
from hvd.snapshot.sparse import read_file


class Restorer:
    """Belongs to the event loop."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self.supervisor = snapshots.supervisor

    async def restore(self, snapshot: str, guest: str, backend: str, paused: bool) -> guest_pb2.Guest:
        """Raises HvdError SNAPSHOT_*, GUEST_*, BACKEND_*, BLOB_NOT_FOUND, DISK_FULL, and what starting raises."""
        stored = self.snapshots.get(snapshot)
        life = self.supervisor.get(guest or parse_name(snapshot)[0])

        async def work() -> None:
            with self.snapshots.held(stored, "restore") as held:
                await self.into(life, held, backend, paused)

        await self.snapshots.whole(work())
        return life.guest

    async def into(self, life: GuestLife, stored: Stored, backend: str, paused: bool) -> None:
        """stored: held. backend: the guest's from now on; empty = as it is. Raises as restore() does."""
        spec = self.supervisor.resolve(life.guest, paused)
        chosen, engine = life.backend, life.guest.engine
        if backend and backend != life.guest.backend:
            placement = await self.supervisor.backends.place(backend, "", self._adapted(stored, spec))
            chosen, engine = placement.backend, placement.engine
        self._check_fits(stored, life, spec, chosen, engine)
        adapted = self._adapted(stored, spec)
        await asyncio.to_thread(verify, stored)
        staged = await asyncio.to_thread(_stage_disks, stored, adapted)

        async def make_ready() -> None:
            await asyncio.to_thread(_put_disks, staged)

        def adapt(spec: LaunchSpec) -> LaunchSpec:
            return self._adapted(stored, spec)

        try:
            await life.begin_from(make_ready, adapt, paused, chosen.name if backend else "", engine if backend else "")
        finally:
            await asyncio.to_thread(unlink_all, list(staged))

    def _adapted(self, stored: Stored, spec: LaunchSpec) -> LaunchSpec:
        """The machine that was saved, with this guest's identity, limits and files. Raises HvdError BLOB_NOT_FOUND."""
        entry = stored.entry

        def path(digest: str) -> Path | None:
            return self.snapshots.blobs.path(digest) if digest else None

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
        check_engine(backend, engine)
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


def verify(stored: Stored) -> None:
    """To the last byte. Raises HvdError SNAPSHOT_DAMAGED, SNAPSHOT_NOT_FOUND."""
    try:
        with Reader(stored.path, stored.message.name) as reader:
            reader.verify()
    except FileNotFoundError:
        raise not_found(stored) from None


def _stage_disks(stored: Stored, spec: LaunchSpec) -> dict[Path, Path]:
    """What the guest had written, in new files beside the overlays: {new file: overlay}. Raises HvdError SNAPSHOT_DAMAGED,
    DISK_FULL; nothing is left then."""
    staged: dict[Path, Path] = {}
    try:
        with Reader(stored.path, stored.message.name) as reader:
            for disk in spec.disks:
                if disk.overlay:
                    overlay = Path(disk.overlay)
                    make_directory(overlay.parent)
                    new = overlay.with_name(f"{overlay.name}.restored")
                    staged[new] = overlay
                    read_file(reader, disk.name, new)
    except BaseException:
        unlink_all(list(staged))
        raise
    return staged


def _put_disks(staged: dict[Path, Path]) -> None:
    for new, overlay in staged.items():
        new.rename(overlay)
