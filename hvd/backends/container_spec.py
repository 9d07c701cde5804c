"""What a container is asked to be: plain values, everything resolved, for the backend that runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One mount beyond the root and what every container has (/proc, /sys, /dev, /tmp is the image's)."""

    kind: str  # "bind", "volume", "tmpfs"
    source: Path | None  # of the host; None = tmpfs
    target: str  # absolute, in the container
    read_only: bool = False
    size_bytes: int = 0  # of a tmpfs


@dataclass(frozen=True, slots=True)
class LimitsSpec:
    """0 = none, of each."""

    memory_bytes: int = 0
    cpus: float = 0.0
    pids: int = 0
    disk_read_bytes_per_second: int = 0
    disk_write_bytes_per_second: int = 0
    disk_read_operations_per_second: int = 0
    disk_write_operations_per_second: int = 0


@dataclass(frozen=True, slots=True)
class SecuritySpec:
    """Beyond the safe default: see hvd.v1.Security."""

    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    host_user_namespace: bool = False
    seccomp_unconfined: bool = False
    new_privileges: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container. The order of layers is that of the image: the lowest first."""

    layers: tuple[Path, ...]  # unpacked, shared, never written
    state_dir: Path  # of this container alone, outlives its runs: what it has written is below it
    command: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    user: str  # "name", "uid", "uid:gid"
    hostname: str
    tty: bool
    stdin: bool
    mounts: tuple[MountSpec, ...]
    read_only_root: bool
    stop_signal: str  # "SIGTERM"
    limits: LimitsSpec
    security: SecuritySpec
    init: bool
    host_network: bool = False
    stdin_ends: bool = False  # with `stdin`: a client can end it
    hosts: str = ""  # its /etc/hosts; empty = the image's
    name_servers: str = ""  # its /etc/resolv.conf; empty = the image's
    # Given its first process, which waits in its network namespace: plugs it in before its program begins. Raises HvdError.
    plug: Callable[[int], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """Another program in a running container; what is empty is as the container's own program has it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str = ""
    user: str = ""
    tty: bool = False
    size: tuple[int, int] = (0, 0)  # rows, columns of its terminal; 0 = nobody said
