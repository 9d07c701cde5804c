"""Requests made of plain Python values: the Guest to be created, the blobs to be uploaded."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hvapi.v1 import guest_pb2, image_pb2

from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import image_name, network_name

# The API's limit for one message of UploadBlob.
CHUNK_BYTES = 1 << 20
# Kernels and initial RAM disks are loaded below 4 GiB. A larger file is a mistake (an image of a disk, perhaps), and
# hashing it only to hear that would take minutes.
MOST_BYTES = 1 << 32

Path = str | os.PathLike[str]
OnReset = Literal["", "stop", "restart"]
Boot = Literal["", "kernel", "disk", "cdrom"]
_ON_RESET = {
    "": guest_pb2.Guest.ON_RESET_UNSPECIFIED,
    "stop": guest_pb2.Guest.STOP,
    "restart": guest_pb2.Guest.RESTART,
}
_BOOT = {
    "": guest_pb2.BOOT_SOURCE_UNSPECIFIED,
    "kernel": guest_pb2.BOOT_SOURCE_KERNEL,
    "disk": guest_pb2.BOOT_SOURCE_DISK,
    "cdrom": guest_pb2.BOOT_SOURCE_CDROM,
}


@dataclass(slots=True, kw_only=True)
class GuestSpec:
    """What a guest is to be. Files are uploaded by the client; 0 and "" leave the choice to the daemon.

    memory_bytes: a multiple of 4096. flat_load_address: guest-physical, of flat binaries only. append: kernel command
    line, added to the image's. args: for the guest's program. disks: the API's messages. networks: of each network card
    the fields of a NetworkInterface; its network is "user", "none" or a network's name. boot: what is started; "" is
    the kernel, if there is one, otherwise the first disk. symbols: an ELF file with the kernel's symbols.
    """

    name: str = ""
    backend: str = ""
    engine: str = ""
    image: str = ""
    kernel: Path | None = None
    initrd: Path | None = None
    symbols: Path | None = None
    append: str = ""
    memory_bytes: int = 0
    cpus: int = 0
    flat_load_address: int = 0
    args: Sequence[str] = ()
    disks: Sequence[guest_pb2.Disk] = ()
    networks: Sequence[Mapping[str, str]] = ()
    boot: Boot = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    on_reset: OnReset = ""
    restart: guest_pb2.RestartPolicy | None = None

    def message(self, kernel_digest: str, initrd_digest: str, symbols_digest: str = "") -> guest_pb2.Guest:
        """The Guest for CreateGuest, its files replaced by their digests."""
        return guest_pb2.Guest(
            backend=self.backend,
            engine=self.engine,
            image=image_name(self.image),
            labels=self.labels,
            on_reset=_ON_RESET[self.on_reset],
            restart_policy=self.restart,
            machine=guest_pb2.MachineConfig(
                memory_bytes=self.memory_bytes,
                cpus=self.cpus,
                kernel=kernel_digest,
                initrd=initrd_digest,
                append=self.append,
                flat_load_address=self.flat_load_address,
                args=self.args,
                disks=self.disks,
                network_interfaces=[
                    guest_pb2.NetworkInterface(**{**card, "network": network_name(card["network"])})
                    for card in self.networks
                ],
                boot=_BOOT[self.boot],
                symbols=symbols_digest,
            ),
        )


def file_blob(path: Path) -> image_pb2.BlobInfo:
    """Digest and size of a kernel or an initial RAM disk. Raises HvctlError FILE_UNREADABLE, FILE_TOO_LARGE."""
    try:
        # Of a pipe without a writer the opening, of a device the reading would never end.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise HvctlError.local("FILE_UNREADABLE", path=os.fspath(path), problem="it is no regular file")
        if status.st_size > MOST_BYTES:
            raise HvctlError.local("FILE_TOO_LARGE", path=os.fspath(path), size=status.st_size, most=MOST_BYTES)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = getattr(error, "strerror", None) or error
        raise HvctlError.local("FILE_UNREADABLE", path=os.fspath(path), problem=problem) from error
    return image_pb2.BlobInfo(digest=f"sha256:{digest}", size_bytes=size)


def upload_frames(path: Path, info: image_pb2.BlobInfo) -> Iterator[image_pb2.UploadBlobRequest]:
    """The messages of UploadBlob: the announcement, then chunks of 1 MiB."""
    yield image_pb2.UploadBlobRequest(info=info)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield image_pb2.UploadBlobRequest(chunk=chunk)
