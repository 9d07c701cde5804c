"""Unpacks one layer, as a process of its own whose root is the folder it unpacks into: nothing that an archive says can
reach beyond it, and what tries to is refused by name besides.

    python -m hvd.images.unpack DIRECTORY MOST_BYTES MOST_FILES     with the tar (plain, gzip, bzip2 or xz) as standard input

Writes one JSON line: {"files": N, "bytes": N}, or {"error": REASON, "metadata": {..}} of hvd/errors.py. Whiteouts of the OCI
image specification (layer.md, "Whiteouts") become overlayfs's own: a character device 0:0, an opaque directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import stat
import sys
import tarfile
from typing import IO, NoReturn

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
OVERLAY_OPAQUE = "trusted.overlay.opaque"
# Capabilities of files, and what users attach; labels of security modules are the host's matter.
_KEPT_ATTRIBUTES = ("security.capability", "user.")
_PAX_ATTRIBUTE = "SCHILY.xattr."
_COPY_BYTES = 1 << 20
# Of headers as long as they like, and of what decompresses: it is more than any archive needs.
MOST_MEMORY = 1 << 30


class Refused(Exception):
    """A reason of hvd/errors.py and its metadata."""

    def __init__(self, reason: str, **metadata: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.metadata = {key: str(value)[:300] for key, value in metadata.items()}


def unsafe(member: tarfile.TarInfo, problem: str) -> NoReturn:
    raise Refused("ARCHIVE_UNSAFE", member=ascii(member.name), problem=problem)


class Unpacker:
    """Into the present root."""

    def __init__(self, most_bytes: int, most_files: int) -> None:
        self._most_bytes, self._most_files = most_bytes, most_files
        self.files = self.bytes = 0
        # Made writable while their contents come; their times change with those.
        self._directories: dict[str, tarfile.TarInfo] = {}
        # What lower layers have there does not count; what this one has does, wherever in the archive its whiteout stands.
        self._hidden: set[str] = set()

    def take(self, archive: tarfile.TarFile) -> None:
        """Raises Refused, tarfile.TarError, OSError."""
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it keeps them all
            self.files += 1
            if self.files > self._most_files:
                raise Refused("ARCHIVE_TOO_LARGE", problem=f"more than {self._most_files} files")
            self._take(archive, member)
        for path, member in self._directories.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # replaced by a later member
                self._own(path, member)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _inside(member, member.name, "its name")
        if path == "/":
            if member.isdir():
                self._directories[path] = member
            return
        parent, name = os.path.split(path)
        self._make_parents(parent)
        if name == OPAQUE:
            os.setxattr(parent, OVERLAY_OPAQUE, b"y")
            return
        if name.startswith(WHITEOUT):
            self._hide(os.path.join(parent, name.removeprefix(WHITEOUT)))
            return
        if member.isdir():
            if not os.path.isdir(path) or os.path.islink(path):
                self._make_directory(path)
            self._directories[path] = member
            return
        if member.ischr() or member.isblk():
            # Every container has a /dev of its own; what archives of whole systems have there is of no use.
            if path.startswith("/dev/"):
                return
            unsafe(member, "is a device")
        _remove(path)
        if member.islnk():
            os.link(_inside(member, member.linkname, "what it links to"), path, follow_symlinks=False)
            return
        if member.issym():
            os.symlink(member.linkname, path)
        elif member.isfifo():
            os.mkfifo(path)
        elif member.isreg():
            content = archive.extractfile(member)
            assert content is not None
            self._copy(content, path, member.size)
        else:
            unsafe(member, f"is of unknown type {member.type!r}")
        self._own(path, member)

    def _hide(self, path: str) -> None:
        if os.path.basename(path) in ("", ".", ".."):
            raise Refused("ARCHIVE_UNSAFE", member=ascii(path), problem="its whiteout leaves its folder")
        self._hidden.add(path)
        if os.path.isdir(path) and not os.path.islink(path):
            os.setxattr(path, OVERLAY_OPAQUE, b"y")
        elif not os.path.lexists(path):
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))

    def _make_parents(self, path: str) -> None:
        """Those that the archive does not have, or not yet. A link's target may be another layer's."""
        if os.path.isdir(path):
            return
        if (real := os.path.realpath(path)) != path:
            self._make_parents(real)
            return
        self._make_parents(os.path.dirname(path))
        self._make_directory(path)

    def _make_directory(self, path: str) -> None:
        _remove(path)
        os.mkdir(path, 0o755)
        if path in self._hidden:  # in its place: nothing of the lower one is seen
            os.setxattr(path, OVERLAY_OPAQUE, b"y")

    def _copy(self, content: IO[bytes], path: str, size: int) -> None:
        if self.bytes + size > self._most_bytes:
            raise Refused("ARCHIVE_TOO_LARGE", problem=f"more than {self._most_bytes} bytes unpacked")
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            while block := content.read(_COPY_BYTES):
                self.bytes += len(block)
                if block.count(0) == len(block):  # as in a sparse file
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate()

    def _own(self, path: str, member: tarfile.TarInfo) -> None:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
            for key, value in member.pax_headers.items():
                name = key.removeprefix(_PAX_ATTRIBUTE)
                if key.startswith(_PAX_ATTRIBUTE) and name.startswith(_KEPT_ATTRIBUTES):
                    os.setxattr(path, name, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
        time_ns = max(0, int(member.mtime * 1_000_000_000))
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def _inside(member: tarfile.TarInfo, name: str, what: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        unsafe(member, f"{what} leaves the archive's root")
    if "\0" in name:
        unsafe(member, f"{what} has a NUL in it")
    return "/" + "/".join(parts)


def _remove(path: str) -> None:
    """What an earlier member put there. A directory must be empty: archives of layers do not replace whole trees."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)


def unpack(directory: str, most_bytes: int, most_files: int, source: IO[bytes]) -> dict[str, object]:
    """Changes this process's root. What the JSON line says."""
    unpacker = Unpacker(most_bytes, most_files)
    os.umask(0)
    try:
        with tarfile.open(fileobj=source, mode="r|*", errorlevel=2) as archive:  # what decompresses is loaded now
            os.chroot(directory)
            os.chdir("/")
            unpacker.take(archive)
    except Refused as refused:
        return {"error": refused.reason, "metadata": refused.metadata}
    except MemoryError:
        return {"error": "ARCHIVE_TOO_LARGE", "metadata": {"problem": f"more than {MOST_MEMORY} bytes of memory needed to unpack it"}}
    except (tarfile.TarError, EOFError, ValueError, ImportError, RecursionError) as error:
        return {"error": "ARCHIVE_DAMAGED", "metadata": {"problem": str(error)[:300]}}
    except OSError as error:
        reason = "DISK_FULL" if error.errno in (28, 122) else "ARCHIVE_DAMAGED"
        where = error.filename if isinstance(error.filename, str) else ""
        return {"error": reason, "metadata": {"problem": f"{where}: {error.strerror or error}", "directory": directory, "what": "a layer"}}
    return {"files": unpacker.files, "bytes": unpacker.bytes}


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY if hard == resource.RLIM_INFINITY else min(hard, MOST_MEMORY), hard))
    # Encodings that names may need, before the root has no Python in it any more.
    "".encode("utf-8", "surrogateescape").decode("ascii", "replace")
    print(json.dumps(unpack(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer)))
