"""Copying in: a tar is unpacked where cp(1) would put it, by a process whose root is the container's (enter.py)."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from typing import IO

from hvd.errors import HvdError

_COPY_BYTES = 1 << 20
_NEW = ".hvd-copy-"


def refused(path: str, problem: str, remedy: str) -> HvdError:
    return HvdError("COPY_REFUSED", path=path, problem=problem, remedy=remedy)


class Taker:
    """Takes one archive."""

    def __init__(self, path: str, place: bool, keep_owners: bool) -> None:
        """As CopyInSetup."""
        self._path, self._place, self._keep_owners = path, place, keep_owners
        self.entries = self.bytes = 0
        # With `place`: the archive's top, and where it goes.
        self._top: str | None = None
        self._target = ""
        # Folders that were made: their modes may forbid writing, and their times change with what comes into them.
        self._made: dict[str, tarfile.TarInfo] = {}
        self._name = f"{_NEW}{os.getpid()}"
        # What is half done, or was.
        self._new = ""

    def put_away(self) -> None:
        """What is half done goes: whoever must end at once calls this, wherever `take` is."""
        with contextlib.suppress(OSError):
            os.unlink(self._new)

    def take(self, source: IO[bytes]) -> None:
        """Raises HvdError, OSError, tarfile.TarError."""
        if not self._place:
            self._target = _folder(self._path)
        with tarfile.open(fileobj=source, mode="r|*", errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                self._take(archive, member)
                self.entries += 1
                archive.members.clear()  # type: ignore[attr-defined]  # of a long archive they are many
        if self._place and self._top is None:
            raise HvdError("COPY_ARCHIVE", problem="it is empty")
        for path, member in reversed(self._made.items()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # replaced meanwhile
                self._own(path, member)

    # ---- where

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = _parts(member, member.name)
        if self._place:
            if self._top is None:
                self._top = parts[0] if parts else ""
                self._target = self._place_of(member)
            where = self._within(member, parts)
        else:
            where = parts
        path = os.path.join(self._target, *where)
        if member.isdir():
            self._folder(path, member)
            return
        if not where and not self._place:
            raise HvdError("COPY_ARCHIVE", problem="its first entry has no name")
        if where:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if os.path.isdir(path) and not os.path.islink(path):
            raise refused(path, "is a folder, which a file cannot replace", "remove it first, or choose another name")
        self._file(archive, member, path)

    def _place_of(self, member: tarfile.TarInfo) -> str:
        """Where cp puts what is called so."""
        path = self._path
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except FileNotFoundError:
            target = os.path.realpath(path)
            parent = os.path.dirname(target)
            if not os.path.isdir(parent):
                raise HvdError("COPY_PATH_MISSING", path=parent) from None
            if path.endswith("/") and not member.isdir():
                raise HvdError("COPY_PATH_MISSING", path=path) from None
            return target
        target = os.path.realpath(path)
        if is_folder:
            return os.path.join(target, self._top) if self._top else target
        if member.isdir() or path.endswith("/"):
            raise refused(path, "is no folder", "name a folder, or one that does not exist yet")
        return target

    def _within(self, member: tarfile.TarInfo, parts: list[str]) -> list[str]:
        if not self._top:
            return parts
        if parts[:1] != [self._top]:
            problem = f"beside {self._top!a} it has {member.name!a} at its top"
            raise HvdError("COPY_ARCHIVE", problem=problem)
        return parts[1:]

    # ---- what

    def _folder(self, path: str, member: tarfile.TarInfo) -> None:
        if os.path.isdir(path):
            return  # it stays as it is, as cp has it
        if os.path.lexists(path):
            raise refused(
                path, "is no folder, and a folder cannot replace it", "remove it first, or choose another name"
            )
        os.makedirs(path, mode=0o755)
        self._made[path] = member

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        """Made beside it and then put in its place, so that whoever reads it sees the old or the new one."""
        new = self._new = os.path.join(os.path.dirname(path), self._name)
        try:
            if member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                self._copy(content, new)
            elif member.issym():
                os.symlink(member.linkname, new)
            elif member.islnk():
                os.link(self._linked(member), new, follow_symlinks=False)
            elif member.isfifo():
                os.mkfifo(new)
            else:
                kind = "a device" if member.isdev() else f"of type {member.type!r}"
                raise refused(path, f"would be {kind}", "leave it out: containers have a /dev of their own")
            if not member.islnk():
                self._own(new, member)
            os.rename(new, path)
        except OSError as error:
            error.filename = path
            raise
        finally:
            # Also what rename(2) leaves alone: another name of the same file.
            self.put_away()

    def _linked(self, member: tarfile.TarInfo) -> str:
        parts = _parts(member, member.linkname)
        return os.path.join(self._target, *(self._within(member, parts) if self._place else parts))

    def _copy(self, content: IO[bytes], path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:
            while block := content.read(_COPY_BYTES):
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
                self.bytes += len(block)

    def _own(self, path: str, member: tarfile.TarInfo) -> None:
        user, group = (member.uid, member.gid) if self._keep_owners else (0, 0)
        try:
            os.chown(path, user, group, follow_symlinks=False)
        except OSError as error:
            problem = f"cannot belong to user {user}, group {group}: {error.strerror}"
            raise refused(path, problem, "the container has users 0 to 65535; do not keep owners") from error
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
        time_ns = max(0, int(member.mtime * 1_000_000_000))
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def _folder(path: str) -> str:
    if not os.path.lexists(path):
        raise HvdError("COPY_PATH_MISSING", path=path)
    if not os.path.isdir(path):
        raise refused(path, "is no folder", "name a folder: an archive is unpacked into one")
    return os.path.realpath(path)


def _parts(member: tarfile.TarInfo, name: str) -> list[str]:
    """Raises HvdError COPY_ARCHIVE: it leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise HvdError("COPY_ARCHIVE", problem=f"{member.name!a} leads out of it")
    return parts
