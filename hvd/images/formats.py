"""What a disk's or a root file system's blob must be, looked at before an image is made of it.

The client looks at files, too, to find out what they are; here is what the daemon insists on, whoever asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hvd.errors import HvdError

# Formats of disks whose bytes are not the disk's: magic number and where it stands.
_CONTAINERS: Final = (
    ("qcow", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("qed", 0, b"QED\0"),
)
# ECMA-119 8.1: the first volume descriptor is sector 16.
_ISO9660: Final = (16 * 2048 + 1, b"CD001")
_TAR: Final = (257, b"ustar")
_HEAD_BYTES: Final = 17 * 2048


def check_disk(path: Path, kind: str) -> None:
    """kind: "disk" or "cdrom". Raises HvdError IMAGE_EMPTY, IMAGE_NOT_RAW, IMAGE_CONTENT; OSError."""
    head = _head(path, kind)
    for name, offset, magic in _CONTAINERS:
        if head[offset:].startswith(magic):
            raise HvdError("IMAGE_NOT_RAW", kind=kind, format=name)
    if kind == "cdrom" and not _has(head, _ISO9660):
        raise HvdError(
            "IMAGE_CONTENT",
            kind=kind,
            problem="it has no ISO 9660 volume descriptor",
            remedy="is it a disk? use --kind disk",
        )


def check_rootfs(path: Path) -> None:
    """Raises HvdError IMAGE_EMPTY, IMAGE_CONTENT; OSError."""
    if not _has(_head(path, "rootfs"), _TAR):
        raise HvdError(
            "IMAGE_CONTENT",
            kind="rootfs",
            problem="it is no POSIX tar archive",
            remedy="give a folder or an uncompressed tar file to `hvctl image import`",
        )


def _head(path: Path, kind: str) -> bytes:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise HvdError("IMAGE_EMPTY", kind=kind)
    return head


def _has(head: bytes, mark: tuple[int, bytes]) -> bool:
    offset, magic = mark
    return head[offset : offset + len(magic)] == magic
