"""The root of a container: an overlay of the image's layers, which all share and none writes, and a folder of its own.

With a user namespace the layers are seen through an id-mapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP), so that the
container's root owns what the image's root owns without a copy. <state_dir>/upper holds what the container wrote,
<state_dir>/rootfs is where it is mounted while it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

from hvd.errors import HvdError

# The host's ids that are the container's 0 and on.
FIRST_ID = 100_000
IDS = 65_536
# Below the state directory: what is mounted into a container, until it has been created.
SOURCES = "sources"

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x0010_0000
_MNT_DETACH = 2
# mount(2) takes a page of options: images of many layers need shorter names for them.
_MOST_OPTION_BYTES = 4000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def user_namespace() -> int:
    """A descriptor of a user namespace that maps FIRST_ID.. to 0.., for id-mapped mounts. Raises OSError,
    subprocess.SubprocessError."""
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin and process.stdout
        # What cat gives back says that the namespace is there.
        process.stdin.write(b"\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise OSError(errno.EPERM, "user namespaces cannot be made here")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{kind}").write_text(f"0 {FIRST_ID} {IDS}\n", "ascii")
        descriptor = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        process.stdin.close()
        return descriptor


def mount(layers: tuple[Path, ...], state_dir: Path, mapping: int | None) -> Path:
    """The mounted root. layers: the lowest first. mapping: of user_namespace(); None = ids as they are.

    Raises HvdError CONTAINER_FAILED, DISK_FULL.
    """
    root, upper, work, lower = (state_dir / name for name in ("rootfs", "upper", "work", "lower"))
    owner = 0 if mapping is None else FIRST_ID
    lowest: list[Path] = []
    try:
        unmount(state_dir)
        for directory in (root, upper, work, lower):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for directory in (upper, work):
            os.chown(directory, owner, owner)
        os.chmod(upper, os.stat(layers[-1]).st_mode & 0o7777)
        if mapping is not None:
            _check_open(state_dir)
        for number, layer in enumerate(layers):
            lowest.append(map_ids(layer, lower / str(number), mapping) if mapping is not None else layer)
        # Overlay takes the highest first. A colon or comma in a path would be another option: these are ours and have none.
        writable = f"upperdir={upper},workdir={work}"
        options = f"lowerdir={':'.join(map(str, reversed(lowest)))},{writable}"
        with contextlib.ExitStack() as opened:
            if len(options) > _MOST_OPTION_BYTES:
                short = [f"/proc/self/fd/{_opened(path, opened)}" for path in reversed(lowest)]
                options = f"lowerdir={':'.join(short)},{writable}"
            _mount("overlay", root, "overlay", options)
    except OSError as error:
        unmount(state_dir)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HvdError("DISK_FULL", directory=state_dir, what="the container's root") from error
        raise HvdError("CONTAINER_FAILED", what="mounting its root", problem=error) from error
    finally:
        # The overlay has clones of its own.
        if mapping is not None:
            for path in lowest:
                unmount_at(path)
    return root


def _opened(path: Path, until: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    until.callback(os.close, descriptor)
    return descriptor


def _check_open(directory: Path) -> None:
    """Can anybody reach it? Raises HvdError PATH_CLOSED."""
    for path in (*reversed(directory.parents), directory):
        if not path.stat().st_mode & 0o001:
            raise HvdError("PATH_CLOSED", path=path)


def unmount(state_dir: Path) -> None:
    """Whatever is mounted for it; no error when nothing is."""
    unmount_at(state_dir / "rootfs")
    for name in ("lower", SOURCES):
        parent = state_dir / name
        if parent.is_dir():
            for path in parent.iterdir():
                unmount_at(path)
        shutil.rmtree(parent, ignore_errors=True)


def map_ids(layer: Path, where: Path, mapping: int) -> Path:
    """A folder or file as it is, with other owners, at `where`. Raises OSError: EINVAL = its file system cannot do so."""
    if layer.is_dir():
        where.mkdir(exist_ok=True)
    else:
        where.touch()
    tree = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(layer), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    if tree < 0:
        raise _errno("open_tree", layer)
    try:
        attributes = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=mapping)
        if _libc.syscall(
            _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes)
        ):
            raise _errno("mount_setattr", layer)
        if _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(where), _MOVE_MOUNT_F_EMPTY_PATH):
            raise _errno("move_mount", where)
    finally:
        os.close(tree)
    return where


def _mount(source: str, target: Path, kind: str, options: str) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(0), os.fsencode(options)):
        raise _errno("mount", target)


def unmount_at(path: Path) -> None:
    """As often as something is mounted there; no error when nothing is."""
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        pass


def _errno(call: str, path: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", str(path))


def remove(state_dir: Path) -> None:
    """What the container wrote. It must not be mounted."""
    unmount(state_dir)
    with contextlib.suppress(FileNotFoundError):
        for name in ("rootfs", "upper", "work"):
            shutil.rmtree(state_dir / name, ignore_errors=True)
