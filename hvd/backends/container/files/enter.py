"""Becoming a process whose root is a container's: of a running one by its namespaces, of a stopped one by mounting its root
where nobody else sees it. What a path means is then decided by the kernel within that root, whatever links are there.

Called once, in a process of its own with one thread (setns(2) wants that for user namespaces), before anything is opened.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd.backends.container import mounts, rootfs
from hvd.backends.container_spec import ContainerSpec, LimitsSpec, MountSpec, SecuritySpec
from hvd.cgroup.hierarchy import PARENT

_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 1 << 14, 1 << 18
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2 = 428, 429, 437
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
_RESOLVE_IN_ROOT = 0x10
_AT_FDCWD = -100
# Where a container that runs has file systems of its own, which one that does not has not.
OWN_MOUNTS = ("/proc", "/sys", "/dev")

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class Stopped:
    """What is needed of a container that does not run."""

    layers: tuple[Path, ...]
    state_dir: Path
    mounts: tuple[MountSpec, ...]
    read_only: bool
    mapping: int | None  # a descriptor of its user namespace; None = it has none

    def document(self) -> dict[str, Any]:
        return {
            "layers": list(map(str, self.layers)),
            "state_dir": str(self.state_dir),
            "mounts": [[mount.kind, str(mount.source or ""), mount.target, mount.read_only] for mount in self.mounts],
            "read_only": self.read_only,
            "mapping": self.mapping,
        }

    @classmethod
    def of(cls, document: dict[str, Any]) -> Stopped:
        return cls(
            tuple(map(Path, document["layers"])),
            Path(document["state_dir"]),
            tuple(
                MountSpec(kind, Path(source) if source else None, target, read_only)
                for kind, source, target, read_only in document["mounts"]
            ),
            document["read_only"],
            document["mapping"],
        )


def running(init: int, uid: str) -> None:
    """Into the container whose first process that is. Raises ProcessLookupError when it has ended, OSError."""
    process = os.pidfd_open(init)
    # After the descriptor is had: if the number is another process' now, this says so.
    groups = [line.split(":", 2)[2] for line in Path(f"/proc/{init}/cgroup").read_text("utf-8", "replace").splitlines()]
    group = f"/{PARENT}/{uid}"
    if not any(each == group or each.startswith(group + "/") for each in groups):
        raise ProcessLookupError(f"process {init} is not the container's")
    own, its = (os.stat(f"/proc/{who}/ns/user") for who in ("self", str(init)))
    has_own = (own.st_dev, own.st_ino) != (its.st_dev, its.st_ino)
    _setns(process, _CLONE_NEWNS | (_CLONE_NEWUSER if has_own else 0))
    os.close(process)
    _become_root()


def stopped(container: Stopped) -> None:
    """Into its root, mounted in a mount namespace that ends with this process. Raises HvdError, OSError."""
    if _libc.unshare(_CLONE_NEWNS):
        raise _errno("unshare")
    _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)
    root = rootfs.mount(container.layers, container.state_dir, container.mapping)
    os.chdir(root)
    found = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    spec = _only_mounts(container)
    # Beneath what is mounted, nobody would ever see what is copied there: nothing can be.
    for target in OWN_MOUNTS:
        _hide(found, target)
    for mount in mounts.prepare(spec, container.mapping):
        if mount.source is None:
            _hide(found, mount.target)
        else:
            _bind(found, mount)
    if container.read_only:
        _mount("overlay", Path("."), "", _MS_REMOUNT | _MS_RDONLY)
    os.chroot(".")
    os.chdir("/")
    os.close(found)
    if container.mapping is not None:
        _setns(container.mapping, _CLONE_NEWUSER)
        os.close(container.mapping)
    _become_root()


def _only_mounts(container: Stopped) -> ContainerSpec:
    """Of a specification, what mounts.prepare() reads."""
    return ContainerSpec(
        layers=container.layers, state_dir=container.state_dir, command=(), environment={}, working_directory="/",
        user="0", hostname="", tty=False, stdin=False, mounts=container.mounts, read_only_root=container.read_only,
        stop_signal="SIGTERM", limits=LimitsSpec(), security=SecuritySpec(), init=False,
    )  # fmt: skip


def _become_root() -> None:
    """Of the user namespace this is in now: nothing it makes belongs to anybody outside."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0)


def _setns(namespaces: int, kinds: int) -> None:
    if _libc.setns(namespaces, kinds):
        raise _errno("setns")


def _hide(root: int, target: str) -> None:
    """An empty folder that cannot be written."""
    where = _target(root, target, is_folder=True)
    try:
        _mount("tmpfs", Path(f"/proc/self/fd/{where}"), "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, b"size=4k")
    finally:
        os.close(where)


def _bind(root: int, mount: MountSpec) -> None:
    assert mount.source is not None
    tree = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(mount.source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if tree < 0:
        raise _errno(f"open_tree {mount.source}")
    where = _target(root, mount.target, mount.source.is_dir())
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        if _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", where, b"", flags):
            raise _errno(f"move_mount {mount.target}")
    finally:
        os.close(where)
        os.close(tree)
    if mount.read_only:
        where = _target(root, mount.target, mount.source.is_dir())
        try:
            _mount("none", Path(f"/proc/self/fd/{where}"), "", _MS_REMOUNT | 1 << 12 | _MS_RDONLY)  # MS_BIND
        finally:
            os.close(where)


def _target(root: int, target: str, is_folder: bool) -> int:
    """A descriptor of the place, links followed within the root; what is missing of it is made, as a runtime does."""
    parts = [part for part in target.split("/") if part]
    for number in range(1, len(parts) + 1):
        path = "/".join(parts[:number])
        try:
            os.close(_open_in(root, path))
        except FileNotFoundError:
            parent = _open_in(root, "/".join(parts[: number - 1]) or ".")
            try:
                if is_folder or number < len(parts):
                    os.mkdir(parts[number - 1], 0o755, dir_fd=parent)
                else:
                    os.close(
                        os.open(parts[-1], os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent)
                    )
            finally:
                os.close(parent)
    return _open_in(root, "/".join(parts))


def _open_in(root: int, path: str) -> int:
    """openat2(2): no link leads out of the root."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    descriptor = _libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor < 0:
        raise _errno(f"openat2 {path}")
    return int(descriptor)


def _mount(source: str, target: Path, kind: str, flags: int, options: bytes | None = None) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options):
        raise _errno(f"mount {target}")


def _errno(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
