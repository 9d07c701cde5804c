"""Volumes of containers: folders below one of the daemon's, which are the only record of them. A container that names one makes
it at its start, and it outlives the container."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from hvapi.v1 import guest_pb2, volume_pb2

from hvd.errors import HvdError

PREFIX = "volumes/"
# No volume is called so.
_CONDEMNED = "~"
_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


class Volumes:
    """Those of one daemon."""

    def __init__(self, directory: Path, guests: Callable[[], Iterable[guest_pb2.Guest]]) -> None:
        """guests: all there are, and the one that is being made."""
        self._directory, self._guests = directory, guests

    async def start(self) -> None:
        """What a daemon that died was removing."""
        if self._directory.is_dir():
            for path in self._directory.glob(f"{_CONDEMNED}*"):
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def create(self, identifier: str) -> volume_pb2.Volume:
        """Raises HvdError NAME_INVALID, NAME_TAKEN, DISK_FULL, DIRECTORY_UNUSABLE."""
        path = self._path(PREFIX + identifier)
        try:
            # The same as at a container's start (hvd/backends/container/mounts.py).
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o755)
        except FileExistsError:
            raise HvdError("NAME_TAKEN", what="volume", name=identifier) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HvdError("DISK_FULL", directory=self._directory, what="a volume") from error
            raise HvdError("DIRECTORY_UNUSABLE", directory=self._directory, problem=error.strerror) from error
        return self._message(identifier, self._users())

    async def get(self, name: str) -> volume_pb2.Volume:
        """Raises HvdError NAME_INVALID, VOLUME_NOT_FOUND."""
        path = self._existing(name)
        volume = self._message(path.name, self._users())
        volume.stored_bytes = await asyncio.to_thread(_stored_bytes, path)
        return volume

    def page(self, size: int, after: str) -> tuple[list[volume_pb2.Volume], str]:
        """By name, those behind volumes/{after}; and the last one's id when there are more."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._directory) if is_id(entry.name) and entry.is_dir())
        except FileNotFoundError:
            names = []
        names = [name for name in names if name > after]
        users = self._users()
        page = [self._message(name, users) for name in names[:size]]
        return page, page[-1].name.removeprefix(PREFIX) if len(names) > size else ""

    async def delete(self, name: str, allow_missing: bool) -> None:
        """Raises HvdError NAME_INVALID, VOLUME_NOT_FOUND, VOLUME_IN_USE."""
        try:
            path = self._existing(name)
        except HvdError as error:
            if error.reason == "VOLUME_NOT_FOUND" and allow_missing:
                return
            raise
        if users := self._users().get(path.name):
            raise HvdError("VOLUME_IN_USE", name=path.name, guests=", ".join(users))
        # In two steps: no guest can come to use it in between, and a crash leaves nothing that looks like one.
        condemned = path.with_name(f"{_CONDEMNED}{uuid.uuid4()}")
        path.rename(condemned)
        await asyncio.to_thread(shutil.rmtree, condemned, ignore_errors=True)

    def _path(self, name: str) -> Path:
        identifier = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or not is_id(identifier):
            raise HvdError(
                "FIELD_INVALID",
                field="volume",
                value=repr(name[:80]),
                problem="is no volume's name",
                remedy="use 1-63 of [a-z0-9._-], with a letter or digit at both ends",
            )
        return self._directory / identifier

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_dir():
            raise HvdError("VOLUME_NOT_FOUND", name=path.name)
        return path

    def _users(self) -> dict[str, list[str]]:
        """Volume -> the guests that name it."""
        found: dict[str, list[str]] = {}
        for guest in self._guests():
            for mount in guest.container.mounts if guest.HasField("container") else ():
                if mount.kind == guest_pb2.Mount.VOLUME and guest.name not in found.setdefault(mount.source, []):
                    found[mount.source].append(guest.name)
        return found

    def _message(self, identifier: str, users: dict[str, list[str]]) -> volume_pb2.Volume:
        path = str(self._directory / identifier)
        return volume_pb2.Volume(name=PREFIX + identifier, path=path, used_by=sorted(users.get(identifier, ())))


def _stored_bytes(directory: Path) -> int:
    size = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                size += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:  # it has gone meanwhile
                continue
    return size
