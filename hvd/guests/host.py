"""What a guest needs of the daemon around it: the seam between lifecycle.py and supervisor.py."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hvapi.v1 import guest_pb2

from hvd.backends.contract import Backend, LaunchSpec
from hvd.trace.session import TraceSwitch

if TYPE_CHECKING:
    from hvd.guests.lifecycle import GuestLife


class Host(Protocol):
    """What a guest needs of the daemon around it."""

    stop_grace: float
    trace: TraceSwitch

    def directory(self, uid: str) -> Path: ...
    def disks_directory(self, uid: str) -> Path:
        """Where its disks are: what they hold outlives its runs."""

    def take_blank(self, guest: guest_pb2.Guest) -> bool:
        """Its directory, and that of its disks, of those that were made ahead. False: directory() is as it was."""

    def backend(self, name: str) -> Backend: ...
    def plugged(self, guest: guest_pb2.Guest, spec: LaunchSpec) -> AbstractAsyncContextManager[LaunchSpec]:
        """The spec with its network cards plugged in, for a launch within the block. Raises HvdError NETWORK_*,
        LINK_FAILED, FILTER_FAILED."""

    def resolve(self, guest: guest_pb2.Guest, paused: bool) -> LaunchSpec: ...

    def changed(self, life: GuestLife, kind: guest_pb2.GuestEvent.Type.ValueType, message: str) -> None:
        """Tell watchers, and in a moment the store."""

    def keep(self, life: GuestLife) -> Awaitable[None]:
        """The store has it as it is now when that is awaited, unless the store cannot be written at the moment."""

    async def forget(self, life: GuestLife) -> None:
        """Take it out of the store and the tables. Raises HvdError DISK_FULL."""

    async def remove(self, uid: str) -> None:
        """The files of one that has been forgotten."""
