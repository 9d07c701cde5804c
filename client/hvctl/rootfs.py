"""Root file systems on their way into an image: a folder as a tar file, a folder or tar file as a disk with ext4.

Both are made here, on the client's side, so that the daemon never unpacks what a client gives.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hvctl.filekind import opener_of
from hvctl.sdk.errors import HvctlError

# Debian's mke2fs is in /usr/sbin, which is not on everybody's PATH.
SBIN = "/usr/sbin:/sbin"
# What a file system needs besides the files: inodes, journal, some room to begin with.
SPARE_BYTES = 64 << 20
BLOCK = 4096
MIB = 1 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"


def pack(folder: str, target: IO[bytes]) -> list[str]:
    """The folder as a tar file, always the same bytes for the same files: sorted, with owners by number, modes, times in
    seconds, extended attributes and hard links. Device nodes and sockets stay out: whoever unpacks it makes his own.
    Names of what was left out. Raises HvctlError FILE_UNREADABLE."""
    left_out: list[str] = []
    links: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, name in _walk(folder):
            try:
                _add(archive, path, name, links, left_out)
            except OSError as error:
                raise HvctlError.local("FILE_UNREADABLE", path=path, problem=error.strerror or error) from error
    return left_out


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    """(path, name in the archive) of the folder itself and all below it, sorted by name."""
    yield folder, "./"
    pending = [(folder, "./")]
    while pending:
        directory, prefix = pending.pop(0)
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise HvctlError.local("FILE_UNREADABLE", path=directory, problem=error.strerror or error) from error
        for entry in entries:
            yield entry.path, prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, f"{prefix}{entry.name}/"))


def _add(
    archive: tarfile.TarFile, path: str, name: str, links: dict[tuple[int, int], str], left_out: list[str]
) -> None:
    status = os.lstat(path)
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.mode = status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)
    info.mtime = int(status.st_mtime)
    info.pax_headers = {
        # surrogateescape: an attribute's value is bytes, and so is what the archive gets of it.
        f"SCHILY.xattr.{attribute}": os.getxattr(path, attribute, follow_symlinks=False).decode(
            "utf-8", "surrogateescape"
        )
        for attribute in sorted(os.listxattr(path, follow_symlinks=False))
    }
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        archive.addfile(info)
    elif stat.S_ISFIFO(status.st_mode):
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    elif not stat.S_ISREG(status.st_mode):
        left_out.append(name)
    elif status.st_nlink > 1 and (first := links.setdefault((status.st_dev, status.st_ino), name)) != name:
        info.type, info.linkname = tarfile.LNKTYPE, first
        archive.addfile(info)
    else:
        info.size = status.st_size
        with open(path, "rb") as file:
            archive.addfile(info, file)


def unpacked_tar(path: str, target: IO[bytes]) -> bool:
    """Write a packed tar file unpacked; False = it was not packed, nothing is written. Raises HvctlError
    FILE_UNREADABLE."""
    try:
        opener = opener_of(path)
        if opener is None:
            return False
        packed: Any = opener(path)
        with packed:
            shutil.copyfileobj(packed, target, MIB)
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise HvctlError.local("FILE_UNREADABLE", path=path, problem=error) from error
    return True


def without_zstd(path: str, target: Path) -> str:
    """The file itself or, when zstd packed it, what it was, at the target. Raises HvctlError FILE_UNREADABLE, PROGRAM_MISSING,
    PROGRAM_FAILED."""
    try:
        if not os.path.isfile(path):
            return path
        with open(path, "rb") as file:
            if file.read(len(_ZSTD)) != _ZSTD:
                return path
    except (OSError, ValueError) as error:
        raise HvctlError.local("FILE_UNREADABLE", path=path, problem=getattr(error, "strerror", None) or error) from error
    _run("zstd", "zstd", "-dqo", str(target), "--", path)
    return str(target)


def make_disk(source: str, target: Path, size: int) -> None:
    """An ext4 file system with the files of a folder or of a tar file, in a sparse file of so many bytes (0 = as many as
    it takes, and some room). As root everything keeps its owner; otherwise what is the caller's becomes root's, and of
    tar files that is not possible.

    Raises HvctlError PROGRAM_MISSING, PROGRAM_FAILED, FILE_UNREADABLE.
    """
    if os.path.isdir(source):
        _make_ext4(source, target, size)
        return
    if os.geteuid():
        raise HvctlError.local(
            "PROGRAM_FAILED",
            program="tar",
            problem="only root can unpack a root file system with its owners and devices",
            remedy="run this as root, or import an ext4 image",
        )
    with tempfile.TemporaryDirectory(prefix="hvctl-", dir=target.parent) as directory:
        _run("tar", "tar", "--extract", "--file", source, "--directory", directory, "--numeric-owner", "--same-permissions",
             "--same-owner", "--xattrs", "--xattrs-include=*")  # fmt: skip
        _make_ext4(directory, target, size)


def _make_ext4(folder: str, target: Path, size: int) -> None:
    size = size or _room(folder)
    with target.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "e2fsprogs", "-q", "-F", "-b", str(BLOCK), "-E", "root_owner=0:0", "-d", folder, str(target))
    if os.geteuid():
        _give_to_root(folder, target)


def _room(folder: str) -> int:
    """Bytes for a file system with these files."""
    files, needed = 0, 0
    for path, _ in _walk(folder):
        files += 1
        needed += -(-os.lstat(path).st_size // BLOCK) * BLOCK
    # An inode for each 16 KiB is what mkfs makes, 256 bytes each; a fifth of the room stays free.
    needed = max(needed, files * 16384) * 6 // 5 + SPARE_BYTES
    return -(-needed // MIB) * MIB


def _give_to_root(folder: str, target: Path) -> None:
    """mkfs keeps the owners as they are: those of a caller who is not root mean nothing in the guest."""
    own = (os.geteuid(), os.getegid())
    lines = []
    for path, name in _walk(folder):
        status = os.lstat(path)
        quoted = '"' + name[1:].replace('"', '""') + '"'
        if status.st_uid == own[0]:
            lines.append(f"set_inode_field {quoted} uid 0")
        if status.st_gid == own[1]:
            lines.append(f"set_inode_field {quoted} gid 0")
    with tempfile.NamedTemporaryFile("w", prefix="hvctl-", encoding="utf-8", errors="surrogateescape") as script:
        script.write("\n".join(lines) + "\n")
        script.flush()
        _run("debugfs", "e2fsprogs", "-w", "-f", script.name, str(target))


def _run(program: str, package: str, *arguments: str) -> None:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), SBIN))
    found = shutil.which(program, path=path)
    if found is None:
        raise HvctlError.local("PROGRAM_MISSING", program=program, package=package)
    done = subprocess.run([found, *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        remedy = "give it more --size" if "could not allocate" in last[0].lower() else "see what it says"
        raise HvctlError.local("PROGRAM_FAILED", program=program, problem=last[0], remedy=remedy)
