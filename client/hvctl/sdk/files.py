"""Files on their way to and from the daemon."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from hvapi.v1 import guest_pb2

from hvctl.sdk.errors import HvctlError

# The API's limit for one message.
CHUNK_BYTES = 1 << 20

Path = str | os.PathLike[str]


def import_frames(path: Path, parent: str, snapshot_id: str) -> Iterator[guest_pb2.ImportSnapshotRequest]:
    """The messages of ImportSnapshot. Raises HvctlError FILE_UNREADABLE before the first."""
    try:
        file = open(path, "rb")  # noqa: SIM115  closed by frames()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise HvctlError.local("FILE_UNREADABLE", path=os.fspath(path), problem=problem) from error

    def frames() -> Iterator[guest_pb2.ImportSnapshotRequest]:
        with file:
            setup = guest_pb2.ImportSnapshotSetup(parent=parent, snapshot_id=snapshot_id)
            yield guest_pb2.ImportSnapshotRequest(setup=setup)
            while chunk := file.read(CHUNK_BYTES):
                yield guest_pb2.ImportSnapshotRequest(chunk=chunk)

    return frames()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """To write a file that appears in one step when the block is left well. Raises HvctlError FILE_UNWRITABLE; nothing is
    left then, nor when the block raises."""
    new = f"{os.fspath(path)}.new"
    try:
        try:
            with open(new, "wb") as file:
                yield file
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
    except OSError as error:
        raise HvctlError.local("FILE_UNWRITABLE", path=os.fspath(path), problem=error.strerror or error) from error
