"""What is mounted into a container beyond its root: volumes, folders of the host, and the files of its network.

Volumes and folders are mounted with the container's ids first (as the layers are, see rootfs.py), so that root in the
container is root of what is in them, and nothing has to change its owner; the runtime binds those mounts.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

from hvd.backends.container.rootfs import FIRST_ID, SOURCES, map_ids, unmount_at
from hvd.backends.container_spec import ContainerSpec, MountSpec
from hvd.errors import HvdError

BIND, VOLUME = "bind", "volume"


def prepare(spec: ContainerSpec, mapping: int | None) -> tuple[MountSpec, ...]:
    """The mounts as the runtime gets them: an own file comes before one that was asked for at its place. mapping: of
    rootfs.user_namespace(); None = ids as they are. A volume is made when it is used first.

    Raises HvdError MOUNT_FAILED, DISK_FULL.
    """
    found = []
    try:
        for name, text in (("hosts", spec.hosts), ("resolv.conf", spec.name_servers)):
            if text:
                found.append(_file(spec.state_dir / name, text, f"/etc/{name}", 0 if mapping is None else FIRST_ID))
    except OSError as error:
        raise _failed(spec.state_dir, error) from error
    for number, mount in enumerate(spec.mounts):
        if (source := mount.source) is not None:
            try:
                mount = replace(mount, source=_source(mount.kind, source, spec.state_dir / SOURCES, number, mapping))
            except OSError as error:
                raise _failed(source, error) from error
        found.append(mount)
    return tuple(found)


def release(state_dir: Path) -> None:
    """Once the container is there, or cannot be: it has its own mounts of them."""
    sources = state_dir / SOURCES
    if sources.is_dir():
        for path in sources.iterdir():
            unmount_at(path)
        shutil.rmtree(sources, ignore_errors=True)


def _file(path: Path, text: str, target: str, owner: int) -> MountSpec:
    path.write_text(text, "utf-8")
    path.chmod(0o644)
    os.chown(path, owner, owner)
    return MountSpec(BIND, path, target)


def _source(kind: str, source: Path, sources: Path, number: int, mapping: int | None) -> Path:
    if kind == VOLUME:
        source.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        source.mkdir(mode=0o755, exist_ok=True)
    if mapping is None:
        return source
    sources.mkdir(mode=0o755, exist_ok=True)
    return map_ids(source, sources / str(number), mapping)


def _failed(source: Path, error: OSError) -> HvdError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HvdError("DISK_FULL", directory=source, what="a mount of a container")
    problem: object = error
    if error.errno == errno.EINVAL:
        problem = "its file system cannot be mounted with other owners (id-mapped), which a user namespace needs"
    return HvdError("MOUNT_FAILED", source=source, problem=problem)
