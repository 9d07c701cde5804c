"""The disks and the boot source that a guest is asked for: checks, and what becomes of them on the board."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hvapi.v1 import guest_pb2, image_pb2

from hvd.board.block.overlay import create_overlay
from hvd.board.spec import (
    MOST_DISK_BYTES,
    MOST_DISKS,
    MOST_IDE_DISKS,
    SECTOR_BYTES,
    DiskSpec,
)
from hvd.errors import HvdError
from hvd.guests.records import DELETED, full, remove_directory, remove_left_over
from hvd.images.catalog import digests_of

if TYPE_CHECKING:
    from hvd.guests.model import Blobs, Images

Disk = guest_pb2.Disk

CDROM_SECTOR_BYTES = 2048


def check_disks(machine: guest_pb2.MachineConfig) -> None:
    """What can be seen without the images. Raises HvdError FIELD_INVALID."""
    _most("machine.disks", len(machine.disks), MOST_DISKS, "disks")
    if machine.boot not in guest_pb2.BootSource.values():
        raise _invalid("machine.boot", machine.boot, "is unknown", "use KERNEL, DISK or CDROM")
    for number, disk in enumerate(machine.disks):
        _check_disk(f"machine.disks[{number}]", disk)


def _check_disk(field: str, disk: guest_pb2.Disk) -> None:
    if disk.mode not in Disk.Mode.values():
        raise _invalid(f"{field}.mode", disk.mode, "is unknown", "use OVERLAY or READ_ONLY")
    if disk.bus not in Disk.Bus.values():
        raise _invalid(f"{field}.bus", disk.bus, "is unknown", "use VIRTIO or IDE")
    if not 0 <= disk.size_bytes <= MOST_DISK_BYTES:
        raise _invalid(f"{field}.size_bytes", disk.size_bytes, "is out of range", f"use up to {MOST_DISK_BYTES}")
    if disk.size_bytes % SECTOR_BYTES:
        raise _invalid(
            f"{field}.size_bytes",
            disk.size_bytes,
            f"is no multiple of {SECTOR_BYTES}",
            "a disk has whole sectors: round it",
        )
    if disk.cdrom:
        if not disk.image:
            raise _invalid(f"{field}.image", "''", "a CD-ROM needs an image", "name one of kind cdrom")
        if disk.mode == Disk.OVERLAY:
            raise _invalid(f"{field}.mode", "OVERLAY", "a CD-ROM cannot be written", "leave it out")
        if disk.bus == Disk.VIRTIO:
            raise _invalid(f"{field}.bus", "VIRTIO", "CD-ROMs are on the IDE bus only", "leave it out, or use IDE")
        if disk.size_bytes:
            raise _invalid(f"{field}.size_bytes", disk.size_bytes, "a CD-ROM is as large as its image", "leave it out")
    elif not disk.image:
        if not disk.size_bytes:
            raise _invalid(f"{field}.size_bytes", 0, "a blank disk needs a size", "give a size, or an image")
        if disk.mode == Disk.READ_ONLY:
            raise _invalid(
                f"{field}.mode", "READ_ONLY", "a blank disk is of no use then", "leave it out, or name an image"
            )


def resolve_disks(guest: guest_pb2.Guest, images: Images, blobs: Blobs, directory: Path) -> tuple[DiskSpec, ...]:
    """The disks as the board gets them: first the one of the guest's image, if it has any. directory: where this
    guest's overlays are.

    Raises HvdError IMAGE_NOT_FOUND, IMAGE_KIND, BLOB_NOT_FOUND, BLOB_DAMAGED, FIELD_INVALID.
    """
    asked = list(guest.machine.disks)
    if guest.image:
        image = images.get(guest.image)
        if image.disk:
            asked.insert(0, Disk(image=guest.image, cdrom=image.kind == "cdrom"))
            _most("machine.disks", len(asked), MOST_DISKS, "disks, that of the image included")
    disks = tuple(_resolve_disk(number, disk, images, blobs, directory) for number, disk in enumerate(asked))
    _most("machine.disks", sum(disk.bus == "ide" for disk in disks), MOST_IDE_DISKS, "disks on the IDE bus")
    return disks


def _resolve_disk(number: int, disk: guest_pb2.Disk, images: Images, blobs: Blobs, directory: Path) -> DiskSpec:
    field = f"machine.disks[{number}]"
    base, size = "", disk.size_bytes
    if disk.image:
        image = images.get(disk.image)
        _check_kind(image, disk.cdrom)
        path = blobs.path(image.disk)
        # Blobs never change; one that somebody cut would be a smaller disk.
        if (found := sum(blobs.path(digest).stat().st_size for digest in digests_of(image))) != image.size_bytes:
            raise HvdError("BLOB_DAMAGED", name=image.name, found=found, size=image.size_bytes, path=path)
        base = str(path.absolute())
        sector = CDROM_SECTOR_BYTES if disk.cdrom else SECTOR_BYTES
        # An image that ends within a sector is taken as if zeroes followed.
        least = -(-path.stat().st_size // sector) * sector
        if size and size < least:
            raise _invalid(
                f"{field}.size_bytes",
                size,
                f"is less than the {least} of {image.name}",
                "give at least that, or leave it out",
            )
        size = size or least
    name = f"disk{number}"
    read_only = disk.cdrom or disk.mode == Disk.READ_ONLY
    return DiskSpec(
        name=name,
        base=base,
        overlay="" if read_only else str((directory / name).absolute()),
        size_bytes=size,
        bus="ide" if disk.cdrom or disk.bus == Disk.IDE else "virtio",
        cdrom=disk.cdrom,
    )


def _check_kind(image: image_pb2.Image, cdrom: bool) -> None:
    """Raises HvdError IMAGE_KIND."""
    needed = "cdrom" if cdrom else "disk"
    if image.disk and (image.kind == "cdrom") == cdrom:
        return
    remedies = {
        "disk": "give it with --disk",
        "cdrom": "give it with --cdrom, or import the file with --kind disk",
        "rootfs": "import its folder or tar file with --as disk",
    }
    raise HvdError(
        "IMAGE_KIND",
        name=image.name,
        kind=image.kind,
        needed=needed,
        remedy=remedies.get(image.kind, "`hvctl image list` shows what each image is"),
    )


def make_overlays(disks: Sequence[DiskSpec], directory: Path) -> None:
    """The files for what a new guest will write. Raises HvdError DISK_FULL, DISK_UNUSABLE; nothing is left then."""
    writable = [disk for disk in disks if disk.overlay]
    if not writable:
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for disk in writable:
            try:
                create_overlay(Path(disk.overlay), disk.size_bytes, Path(disk.base) if disk.base else None)
            except OSError as error:
                if error.errno == errno.EFBIG:
                    problem = f"the file system of {directory} has no files of {disk.size_bytes} bytes"
                    raise HvdError("DISK_UNUSABLE", disk=disk.name, problem=problem) from error
                raise full(error, directory, disk.name) from error
    except BaseException:
        remove_directory(directory)
        raise


def left_over(disks_dir: Path, known: set[str]) -> list[Path]:
    """Directories of guests that nobody knows (their store was lost): kept, since what is in them may be precious. What a
    crash left of deleted ones is removed."""
    if not disks_dir.is_dir():
        return []
    strange = []
    for directory in sorted(disks_dir.iterdir()):
        if directory.name.endswith(DELETED):
            remove_left_over(directory)
        elif directory.name not in known:
            strange.append(directory)
    return strange


def stored_bytes(directory: Path) -> int:
    """What a guest's disks take on the host's disk; its snapshots, in a directory beside them, tell that themselves."""
    try:
        return sum(path.lstat().st_blocks * 512 for path in directory.iterdir() if path.is_file())
    except OSError:  # it is being deleted
        return 0


def resolve_boot(asked: guest_pb2.BootSource.ValueType, has_kernel: bool, disks: Sequence[DiskSpec]) -> str:
    """ "kernel", "disk" or "cdrom". Raises HvdError KERNEL_MISSING, FIELD_INVALID."""
    if asked == guest_pb2.BOOT_SOURCE_UNSPECIFIED and not has_kernel and disks:
        return "cdrom" if disks[0].cdrom else "disk"
    if asked in (guest_pb2.BOOT_SOURCE_UNSPECIFIED, guest_pb2.BOOT_SOURCE_KERNEL):
        if not has_kernel:
            raise HvdError("KERNEL_MISSING")
        return "kernel"
    boot, option = ("cdrom", "--cdrom") if asked == guest_pb2.BOOT_SOURCE_CDROM else ("disk", "--disk")
    if not any(disk.cdrom == (boot == "cdrom") for disk in disks):
        raise _invalid("machine.boot", boot.upper(), "the guest has none", f"give it one with {option}")
    return boot


def _most(field: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise _invalid(field, f"{count} of them", f"a machine has at most {most} {what}", "give fewer")


def _invalid(field: str, value: object, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field=field, value=value, problem=problem, remedy=remedy)
