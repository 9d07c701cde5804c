"""What a machine is asked to be: plain values that JSON carries from the daemon to the runner (machine.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

SECTOR_BYTES: Final = 512
# Slots of the counters page (HV_DISKS and HV_NICS of hvd/board/native/crossing.h), and what fits on the buses.
MOST_DISKS: Final = 16
MOST_IDE_DISKS: Final = 4
MOST_INTERFACES: Final = 8
# What ext4, the usual file system of a state directory, allows a file of 4 KiB blocks to be, less what an overlay
# needs besides the data.
MOST_DISK_BYTES: Final = 8 << 40


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk or CD-ROM. Its place among the machine's disks is its slot in the counters page."""

    name: str  # "disk0", "disk1", ...: label of metrics, serial number for the guest
    base: str  # path of a raw image that never changes; empty = a blank disk
    overlay: str  # path of what this guest has written, an existing file; empty = the disk is read-only
    size_bytes: int  # as the guest sees it: a multiple of 512, of a CD-ROM 2048
    bus: str = "virtio"  # or "ide"
    cdrom: bool = False

    @property
    def read_only(self) -> bool:
        return not self.overlay


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """One network card. Its place among the machine's cards is its slot in the counters page."""

    name: str  # "net0", "net1", ...: label of metrics
    network: str  # "user", "none" or the id of a network of the daemon
    mac_address: str  # "52:54:00:12:34:56"
    fd: int = -1  # of its tap in the runner (hvd.runner.inheritance); -1 = it has none
    mtu: int = 1500  # of a tap


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What the machine is and what runs on it; machine.json of the guest's directory."""

    name: str
    backend: str
    engine: str
    memory_bytes: int
    kernel: str  # paths; empty = the firmware boots from `boot`
    initrd: str = ""  # empty = none
    command_line: str = ""
    flat_load_address: int = 0  # 0 = the kernel's header says what it is
    restart_on_reset: bool = False
    start_paused: bool = False
    log_max_bytes: int = 16 << 20
    log_files: int = 2
    uid: str = ""  # of the guest, a UUID: whatever in the machine must differ from other machines comes of it
    boot: str = "kernel"  # "disk", "cdrom": by the firmware, from the first one of that kind
    disks: tuple[DiskSpec, ...] = ()
    network_interfaces: tuple[NetworkSpec, ...] = ()
    symbols: str = ""  # path of an ELF file; empty = none
    snapshot: str = ""  # path of one to begin from instead of loading the kernel; empty = none

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """What document() gave, perhaps an older or newer hvd's: unknown keys are left out. Raises TypeError."""
        return cls(
            **_known(cls, document)
            | {
                "disks": tuple(DiskSpec(**_known(DiskSpec, disk)) for disk in document.get("disks", ())),
                "network_interfaces": tuple(
                    NetworkSpec(**_known(NetworkSpec, card)) for card in document.get("network_interfaces", ())
                ),
            }
        )


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise TypeError(f"{kind.__name__}: {document!r} is no object")
    return {field.name: document[field.name] for field in fields(kind) if field.name in document}
