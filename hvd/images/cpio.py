"""A writer of cpio archives in the "newc" form, the one that Linux unpacks as its initramfs.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. The same entries give the same
bytes: owner 0, time 0, inode numbers counted. Written here because the cpio program needs root to make device nodes,
and copies times.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive. path is relative to the root, without a leading slash; mode holds type and permissions
    (stat.S_IF*)."""

    path: str
    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, b"", major, minor)


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of the entries, in their order, padded to 512 bytes.

    Raises ValueError for a path that is absolute, climbs, is given twice or whose directory was not given before it:
    Linux would silently leave such a file out.
    """
    out = bytearray()
    known: set[str] = set()
    for inode, entry in enumerate(entries, start=1):
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or not path.parts or str(path) != entry.path:
            raise ValueError(f"cpio: '{entry.path}' is not a plain relative path")
        if entry.path in known:
            raise ValueError(f"cpio: '{entry.path}' is given twice")
        if str(path.parent) != "." and str(path.parent) not in known:
            raise ValueError(f"cpio: '{entry.path}' comes before its directory")
        known.add(entry.path)
        _append(out, entry, inode)
    _append(out, Entry(_TRAILER, 0), 0)
    out += bytes(-len(out) % 512)
    return bytes(out)


def _append(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, entry.major, entry.minor, len(name), 0)
    out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
