"""Local files as a tar for CopyIn, and CopyOut's tar as local files.

What comes from a guest is not trusted: every folder on the way is opened by itself, no link is followed, and nothing but files, folders, links
and pipes is made, in the place that was named or below it.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO

from hvapi.v1 import guest_pb2

from hvctl.sdk.errors import HvctlError

# The API's limit for one message.
CHUNK_BYTES = 1 << 20
FOLDER = guest_pb2.CopyOutInfo.FOLDER
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What is executed with another's rights must not come from a guest.
_MODE = 0o1777


def copy_in_frames(
    name: str, path: str, chunks: Iterable[bytes], place: bool, keep_owners: bool
) -> Iterator[guest_pb2.CopyInRequest]:
    """The messages of CopyIn."""
    setup = guest_pb2.CopyInSetup(name=name, path=path, place=place, keep_owners=keep_owners)
    yield guest_pb2.CopyInRequest(setup=setup)
    for chunk in chunks:
        for at in range(0, len(chunk), CHUNK_BYTES):
            yield guest_pb2.CopyInRequest(chunk=chunk[at : at + CHUNK_BYTES])


def pieces_of(file: IO[bytes]) -> Iterator[bytes]:
    """A stream, piece by piece as it comes. Raises HvctlError FILE_UNREADABLE."""
    try:
        while piece := os.read(file.fileno(), CHUNK_BYTES):
            yield piece
    except OSError as error:
        raise HvctlError.local("FILE_UNREADABLE", path=file.name, problem=error.strerror) from error


def archive_of(path: str, follow_link: bool = False) -> Iterator[bytes]:
    """A local file or folder as a tar with it at its top; "FOLDER/." has "." there. Links are taken as links, the first only
    with follow_link followed. Raises HvctlError FILE_UNREADABLE: before the first piece when there is nothing there."""
    try:
        is_inside = os.path.basename(path) == "." or path.rstrip("/") == ""
        status = os.stat(path) if follow_link or is_inside or path.endswith("/") else os.lstat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    name = os.path.basename(path.rstrip("/"))
    if name == "..":
        name = os.path.basename(os.path.realpath(path))
    return _packed(path, "." if is_inside else name, status)


def _packed(path: str, name: str, status: os.stat_result) -> Iterator[bytes]:
    seen: dict[tuple[int, int], str] = {}
    gathered = bytearray()
    try:
        for piece in _entry(path, name, status, seen, is_first=True):
            gathered += piece
            if len(gathered) >= CHUNK_BYTES:
                yield bytes(gathered)
                gathered.clear()
    except OSError as error:
        raise _unreadable(error.filename or path, error) from error
    yield bytes(gathered) + bytes(2 * tarfile.BLOCKSIZE)


def _unreadable(path: str, error: OSError | ValueError) -> HvctlError:
    problem = getattr(error, "strerror", None) or error
    return HvctlError.local("FILE_UNREADABLE", path=path, problem=problem)


def _entry(
    path: str, name: str, status: os.stat_result, seen: dict[tuple[int, int], str], is_first: bool = False
) -> Iterator[bytes]:
    kind = stat.S_IFMT(status.st_mode)
    if kind not in _TYPES:
        if is_first:
            raise HvctlError.local("FILE_UNREADABLE", path=path, problem="it is a device or a socket")
        return  # sockets and devices mean nothing elsewhere
    entry = tarfile.TarInfo(name)
    entry.type = _TYPES[kind]
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    if kind == stat.S_IFREG:
        yield from _file(path, entry, status, seen)
        return
    if kind == stat.S_IFLNK:
        entry.linkname = os.readlink(path)
    yield _header(entry)
    if kind == stat.S_IFDIR:
        for each in sorted(os.listdir(path)):
            below = os.path.join(path, each)
            yield from _entry(below, f"{name}/{each}", os.lstat(below), seen)


def _file(
    path: str, entry: tarfile.TarInfo, status: os.stat_result, seen: dict[tuple[int, int], str]
) -> Iterator[bytes]:
    identity = (status.st_dev, status.st_ino)
    if (first := seen.get(identity)) is not None:
        entry.type, entry.linkname = tarfile.LNKTYPE, first
        yield _header(entry)
        return
    if status.st_nlink > 1:
        seen[identity] = entry.name
    with open(path, "rb", buffering=0) as file:
        entry.size = left = os.fstat(file.fileno()).st_size
        yield _header(entry)
        while left:
            if not (block := file.read(min(left, CHUNK_BYTES))):
                raise HvctlError.local("FILE_UNREADABLE", path=path, problem="it became smaller while it was read")
            left -= len(block)
            yield block
    yield bytes(-entry.size % tarfile.BLOCKSIZE)


def _header(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _Pieces(io.RawIOBase):
    """The chunks of a stream as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._rest = piece
        length = min(len(buffer), len(self._rest))
        buffer[:length] = self._rest[:length]
        self._rest = self._rest[length:]
        return length


def unpack(info: guest_pb2.CopyOutInfo, pieces: Iterator[bytes], path: str, keep_owners: bool = False) -> None:
    """CopyOut's archive to where cp would put it: into `path` when that is a folder, otherwise it becomes `path`. Raises HvctlError
    COPY_TARGET, COPY_UNSAFE, FILE_UNWRITABLE, and what `pieces` raises."""
    folder, name = _place(info, path)
    try:
        with _Unpacker(folder, info.base_name, name, keep_owners) as unpacker:
            file = io.BufferedReader(_Pieces(pieces), CHUNK_BYTES)
            with tarfile.open(fileobj=file, mode="r|") as archive:
                while (member := archive.next()) is not None:
                    unpacker.take(archive, member)
                    archive.members.clear()  # type: ignore[attr-defined]
            for _ in pieces:  # what is behind the archive's end: whether it went well
                pass
    except tarfile.TarError as error:
        raise HvctlError.local("COPY_UNSAFE", problem=f"is damaged: {error}") from error
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise HvctlError.local("FILE_UNWRITABLE", path=where, problem=error.strerror or error) from error


def _place(info: guest_pb2.CopyOutInfo, path: str) -> tuple[str, str]:
    """(an existing folder, the name in it of what comes; "" = what is in it comes there)."""
    inner = "" if info.base_name == "." else info.base_name
    if os.path.isdir(path):
        return path, inner
    if os.path.exists(path):
        if info.kind == FOLDER or path.endswith("/"):
            raise HvctlError.local(
                "COPY_TARGET", path=path, problem="is no folder", remedy="name a folder, or a new one"
            )
        return os.path.split(os.path.realpath(path))
    if path.endswith("/") and info.kind != FOLDER:
        raise HvctlError.local("COPY_TARGET", path=path, problem="does not exist", remedy="make the folder first")
    folder, name = os.path.split(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise HvctlError.local("COPY_TARGET", path=folder, problem="does not exist", remedy="make the folder first")
    return folder, name


class _Unpacker:
    """Takes the entries of one archive."""

    def __init__(self, folder: str, top: str, name: str, keep_owners: bool) -> None:
        self._root = os.open(folder, _OPEN_FOLDER)
        self._folder, self._top, self._name, self._keep_owners = folder, top, name, keep_owners
        self._made: dict[tuple[str, ...], tarfile.TarInfo] = {}
        self._new = f".hvctl-cp-{os.getpid()}"

    def __enter__(self) -> _Unpacker:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            for parts, member in reversed(self._made.items()):
                with contextlib.suppress(OSError), self._opened(parts) as folder:
                    self._own(".", folder, member)
        finally:
            os.close(self._root)

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = self._within(member.name)
        if member.isdir():
            with self._opened(parts, member):
                return
        if not parts:
            raise HvctlError.local("COPY_UNSAFE", problem="has a file where a folder was announced")
        with self._opened(parts[:-1]) as folder:
            self._file(archive, member, parts, folder)

    def _within(self, name: str) -> tuple[str, ...]:
        """Where an entry goes, below the root."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or name.startswith("/") or "\0" in name:
            raise HvctlError.local("COPY_UNSAFE", problem=f"leads out of its folder: {name!a}")
        if self._top != ".":
            if not parts:
                raise HvctlError.local("COPY_UNSAFE", problem=f"has {name!a} in it")
            parts = parts[1:]  # there is one top, whatever it is called
        return (self._name, *parts) if self._name else tuple(parts)

    @contextlib.contextmanager
    def _opened(self, parts: tuple[str, ...], member: tarfile.TarInfo | None = None) -> Iterator[int]:
        """A folder; what is missing is made. A link in its place is refused."""
        folder = os.dup(self._root)
        try:
            for number, part in enumerate(parts, 1):
                try:
                    os.mkdir(part, 0o755, dir_fd=folder)
                    self._made[parts[:number]] = member if member and number == len(parts) else _plain_folder()
                except FileExistsError:
                    pass
                try:
                    below = os.open(part, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                except NotADirectoryError as error:
                    where = os.path.join(self._folder, *parts[:number])
                    problem = (
                        "is a link, which is not followed, or a file" if os.path.lexists(where) else "is no folder"
                    )
                    remedy = "remove it first, or choose another place"
                    raise HvctlError.local("COPY_TARGET", path=where, problem=problem, remedy=remedy) from error
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...], folder: int) -> None:
        name = parts[-1]
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                where = os.path.join(self._folder, *parts)
                problem, remedy = "is a folder, which a file cannot replace", "remove it first, or choose another name"
                raise HvctlError.local("COPY_TARGET", path=where, problem=problem, remedy=remedy)
        try:
            if member.isreg():
                self._write(archive, member, folder)
            elif member.issym():
                os.symlink(member.linkname, self._new, dir_fd=folder)
            elif member.islnk():
                source = self._within(member.linkname)
                with self._opened(source[:-1]) as other:
                    os.link(source[-1], self._new, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)
            elif member.isfifo():
                os.mkfifo(self._new, dir_fd=folder)
            else:
                raise HvctlError.local("COPY_UNSAFE", problem=f"has a device or the like in it: {member.name!a}")
            if not member.islnk():
                self._own(self._new, folder, member)
            os.rename(self._new, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            error.filename = os.path.join(self._folder, *parts)
            raise
        finally:
            # Also what rename(2) leaves alone: another name of the same file.
            with contextlib.suppress(OSError):
                os.unlink(self._new, dir_fd=folder)

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: int) -> None:
        content = archive.extractfile(member)
        assert content is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._new, flags, 0o600, dir_fd=folder), "wb", buffering=0) as file:
            while block := content.read(CHUNK_BYTES):
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]

    def _own(self, name: str, folder: int, member: tarfile.TarInfo) -> None:
        if self._keep_owners:
            os.chown(name, member.uid, member.gid, dir_fd=folder, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & _MODE, dir_fd=folder)
        time_ns = max(0, int(member.mtime * 1_000_000_000))
        os.utime(name, ns=(time_ns, time_ns), dir_fd=folder, follow_symlinks=False)


def _plain_folder() -> tarfile.TarInfo:
    """Of one that the archive does not describe."""
    found = tarfile.TarInfo()
    found.mode, found.mtime = 0o755, 0
    return found
