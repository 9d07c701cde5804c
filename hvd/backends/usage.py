"""What a guest has used, where its backend measures it by other means than the guest's process and counters page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Effects:
    """What limits did so far: hvd.v1.LimitEffects."""

    oom_kills: int = 0
    memory_limit_hits: int = 0
    pids_limit_hits: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """Time in which some, or all, of its tasks waited for a resource (Documentation/accounting/psi.rst), in seconds."""

    some: float
    full: float


@dataclass(frozen=True, slots=True)
class DiskUsage:
    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """As the guest sees it: what it received, and what it sent."""

    received_bytes: int = 0
    received_packets: int = 0
    received_dropped: int = 0
    transmitted_bytes: int = 0
    transmitted_packets: int = 0
    transmitted_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one run of a guest so far. None: the host does not tell. Limits: 0 = none."""

    user_seconds: float = 0.0
    system_seconds: float = 0.0
    resident_bytes: int | None = None  # mapped by its processes
    charged_bytes: int | None = None  # with the page cache and the kernel's memory that it is charged for
    memory_limit_bytes: int = 0
    pids: int | None = None  # processes and threads
    pids_limit: int = 0
    effects: Effects = Effects()
    pressure: Mapping[str, Pressure] = field(default_factory=dict)  # "cpu", "memory", "io"
    disks: Mapping[str, DiskUsage] = field(default_factory=dict)  # by the host's name of the device
    networks: Mapping[str, NetworkUsage] = field(default_factory=dict)  # by the guest's name of the interface
