"""Copying out: a file or folder as a tar, by a process whose root is the container's (enter.py).

Links are given as links. Files that vanish meanwhile are left out; /proc, /sys and /dev are given as empty folders, unless they are what
was asked for.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from typing import Any

from hvd.errors import HvdError

_COPY_BYTES = 1 << 20
_KINDS = {stat.S_IFREG: "FILE", stat.S_IFDIR: "FOLDER", stat.S_IFLNK: "LINK"}
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_NOT_ENTERED = frozenset({"/proc", "/sys", "/dev"})


class Giver:
    """Gives one path."""

    def __init__(self, path: str, follow_link: bool) -> None:
        """Raises HvdError COPY_PATH_MISSING, COPY_REFUSED, OSError."""
        # "FOLDER/." and "FOLDER/" are the folder, links followed, as for cp.
        inside = path.rstrip("/") == "" or path.endswith("/.")
        if inside or path.endswith("/") or follow_link:
            try:
                real = os.path.realpath(path, strict=True)
            except FileNotFoundError:
                raise HvdError("COPY_PATH_MISSING", path=path) from None
        else:
            real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            self._status = os.lstat(real)
        except FileNotFoundError:
            raise HvdError("COPY_PATH_MISSING", path=path) from None
        if path.endswith(("/", "/.")) and not stat.S_ISDIR(self._status.st_mode):
            raise HvdError("COPY_REFUSED", path=path, problem="is no folder", remedy="leave the / at its end out")
        self._path = real
        self._name = "." if inside else os.path.basename(path.rstrip("/"))
        # A file's names after the first are links to that.
        self._seen: dict[tuple[int, int], str] = {}

    def info(self) -> dict[str, Any]:
        """The fields of CopyOutInfo."""
        kind = stat.S_IFMT(self._status.st_mode)
        return {
            "kind": _KINDS.get(kind, "OTHER"),
            "base_name": _shown(self._name),
            "size_bytes": self._status.st_size if kind == stat.S_IFREG else 0,
            "mode": stat.S_IMODE(self._status.st_mode),
            "link_target": _shown(os.readlink(self._path)) if kind == stat.S_IFLNK else "",
        }

    def archive(self) -> Iterator[bytes]:
        """Raises HvdError, OSError."""
        yield from self._entry(self._path, self._name, self._status)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _entry(self, path: str, name: str, status: os.stat_result) -> Iterator[bytes]:
        kind = stat.S_IFMT(status.st_mode)
        if kind not in _TYPES:
            if path != self._path:
                return  # sockets and devices mean nothing elsewhere
            raise HvdError(
                "COPY_REFUSED", path=path, problem="is a device or a socket", remedy="copy files and folders"
            )
        if kind == stat.S_IFREG:
            yield from self._file(path, name)
            return
        entry = _entry_of(name, status, _TYPES[kind])
        if kind == stat.S_IFLNK:
            entry.linkname = os.readlink(path)
        yield _header(entry)
        if kind == stat.S_IFDIR and (path == self._path or path not in _NOT_ENTERED):
            yield from self._folder(path, name)

    def _folder(self, path: str, name: str) -> Iterator[bytes]:
        try:
            names = sorted(os.listdir(path))
        except FileNotFoundError:
            return
        for each in names:
            below = os.path.join(path, each)
            try:
                status = os.lstat(below)
            except FileNotFoundError:
                continue
            yield from self._entry(below, f"{name}/{each}", status)

    def _file(self, path: str, name: str) -> Iterator[bytes]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            if path == self._path:
                raise
            return
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return  # it has become something else
            identity = (status.st_dev, status.st_ino)
            if (first := self._seen.get(identity)) is not None:
                entry = _entry_of(name, status, tarfile.LNKTYPE)
                entry.linkname = first
                yield _header(entry)
                return
            if status.st_nlink > 1:
                self._seen[identity] = name
            entry = _entry_of(name, status, tarfile.REGTYPE)
            entry.size = left = status.st_size
            yield _header(entry)
            while left:
                if not (block := file.read(min(left, _COPY_BYTES))):
                    problem = "became smaller while it was read"
                    raise HvdError(
                        "COPY_REFUSED", path=path, problem=problem, remedy="repeat it, or pause the guest first"
                    )
                left -= len(block)
                yield block
            yield bytes(-entry.size % tarfile.BLOCKSIZE)


def _entry_of(name: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    entry.mtime = int(status.st_mtime)
    return entry


def _header(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _shown(name: str) -> str:
    """As text of the API, which odd bytes are not."""
    return name.encode("utf-8", "replace").decode()
