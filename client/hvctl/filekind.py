"""What a file or folder is that somebody imports: a kernel, an initial RAM disk, a disk, a CD-ROM, a root file system."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from hvctl.sdk.errors import HvctlError

# An ISO 9660 file system shows itself in its sector 16, the latest of all that is looked at.
HEAD_BYTES = 17 * 2048
# Of what is packed, so much is unpacked.
UNPACKED_BYTES = 1024


class Mark(NamedTuple):
    """Bytes that stand somewhere in a file of one kind."""

    kind: str
    offset: int
    magic: bytes


# Formats of disks whose bytes are not the disk's.
NOT_RAW = (
    Mark("qcow2", 0, b"QFI\xfb"),
    Mark("vmdk", 0, b"KDMV"),
    Mark("vmdk", 0, b"# Disk DescriptorFile"),
    Mark("vhdx", 0, b"vhdxfile"),
    Mark("vpc", 0, b"conectix"),
    Mark("vdi", 64, b"\x7f\x10\xda\xbe"),
    Mark("qed", 0, b"QED\0"),
)
# The first that fits counts. A Linux kernel carries a boot sector's signature, and so do most CD-ROMs: disks come last.
MARKS = (
    Mark("kernel", 0x202, b"HdrS"),  # Linux: Documentation/arch/x86/boot.rst
    Mark("kernel", 0, b"\x7fELF"),
    Mark("cdrom", 16 * 2048 + 1, b"CD001"),  # ECMA-119 8.1
    Mark("initrd", 0, b"070701"),  # cpio, newc
    Mark("initrd", 0, b"070702"),
    Mark("initrd", 0, b"070707"),
    Mark("rootfs", 257, b"ustar"),
    Mark("disk", 1080, b"\x53\xef"),  # ext2, ext3, ext4
    Mark("disk", 0, b"XFSB"),
    Mark("disk", 0, b"hsqs"),  # squashfs
    Mark("disk", 512, b"EFI PART"),
    Mark("disk", 510, b"\x55\xaa"),  # a boot sector: MBR, FAT
)
# Of what is packed: how to unpack its beginning.
PACKED: tuple[tuple[bytes, Callable[[str], object]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"BZh", bz2.open),
)


def kind_of(path: str) -> str:
    """kernel, initrd, disk, cdrom or rootfs (folders, too). Raises HvctlError FILE_UNREADABLE, FILE_EMPTY,
    DISK_NOT_RAW, FILE_KIND_UNKNOWN."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return "rootfs"
        if not stat.S_ISREG(mode):
            raise HvctlError.local("FILE_UNREADABLE", path=path, problem="it is neither a file nor a folder")
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise HvctlError.local("FILE_UNREADABLE", path=path, problem=problem) from error
    if not head:
        raise HvctlError.local("FILE_EMPTY", path=path)
    check_raw(path, head)
    if found := _fitting(head):
        return found
    if (opener := _opener(head)) is not None:
        if found := _fitting(_unpacked(path, opener)):
            return found
        raise HvctlError.local("FILE_KIND_UNKNOWN", path=path, problem="what is packed in it has no format known here")
    raise HvctlError.local("FILE_KIND_UNKNOWN", path=path, problem="it has no format known here")


def check_raw(path: str, head: bytes) -> None:
    """Raises HvctlError DISK_NOT_RAW."""
    for mark in NOT_RAW:
        if head[mark.offset :].startswith(mark.magic):
            raise HvctlError.local("DISK_NOT_RAW", path=path, format=mark.kind)


def opener_of(path: str) -> Callable[[str], object] | None:
    """What opens a packed file; None = it is not packed. Raises OSError."""
    with open(path, "rb") as file:
        return _opener(file.read(16))


def _fitting(head: bytes) -> str:
    return next((m.kind for m in MARKS if head[m.offset : m.offset + len(m.magic)] == m.magic), "")


def _opener(head: bytes) -> Callable[[str], object] | None:
    return next((opener for magic, opener in PACKED if head.startswith(magic)), None)


def _unpacked(path: str, opener: Callable[[str], object]) -> bytes:
    try:
        with opener(path) as file:  # type: ignore[attr-defined]
            return bytes(file.read(UNPACKED_BYTES))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise HvctlError.local("FILE_KIND_UNKNOWN", path=path, problem=f"it cannot be unpacked ({error})") from error
