"""Files on their way to the daemon: digest, size, and the messages of UploadBlob. Holes and zeroes are counted, not sent."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from hvctl.sdk.errors import HvctlError

if TYPE_CHECKING:
    from hvapi.v1 import image_pb2

# The API's limits for one message of UploadBlob.
CHUNK_BYTES = 1 << 20
ZEROES_BYTES = 1 << 30
# Kernels and initial RAM disks are loaded below 4 GiB. A larger file is a mistake (an image of a disk, perhaps), and
# hashing it only to hear that would take minutes.
MOST_LOADED_BYTES = 1 << 32
# The largest disk that the daemon takes.
MOST_DISK_BYTES = 8 << 40

Path = str | os.PathLike[str]
_ZEROES = bytes(CHUNK_BYTES)


def file_blob(path: Path, most: int = MOST_LOADED_BYTES) -> image_pb2.BlobInfo:
    """Digest and size of a file of at most so many bytes. Raises HvctlError FILE_UNREADABLE, FILE_TOO_LARGE."""
    import hashlib  # OpenSSL, which takes its time to load

    from hvapi.v1 import image_pb2

    digest = hashlib.sha256()
    size = zeroes = 0
    try:
        # Of a pipe without a writer the opening, of a device the reading would never end.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise HvctlError.local("FILE_UNREADABLE", path=os.fspath(path), problem="it is no regular file")
        if status.st_size > most:
            raise HvctlError.local("FILE_TOO_LARGE", path=os.fspath(path), size=status.st_size, most=most)
        with open(path, "rb", buffering=0) as file:
            for piece in _pieces(file):
                if isinstance(piece, bytes):
                    digest.update(piece)
                    size += len(piece)
                    continue
                size += piece
                zeroes += piece
                while piece:
                    step = min(piece, CHUNK_BYTES)
                    digest.update(_ZEROES if step == CHUNK_BYTES else bytes(step))
                    piece -= step
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = getattr(error, "strerror", None) or error
        raise HvctlError.local("FILE_UNREADABLE", path=os.fspath(path), problem=problem) from error
    return image_pb2.BlobInfo(digest=f"sha256:{digest.hexdigest()}", size_bytes=size, zero_bytes=zeroes)


def upload_frames(path: Path, info: image_pb2.BlobInfo) -> Iterator[image_pb2.UploadBlobRequest]:
    """The messages of UploadBlob: the announcement, then chunks of at most 1 MiB and counts of zeroes."""
    from hvapi.v1 import image_pb2

    yield image_pb2.UploadBlobRequest(info=info)
    with open(path, "rb", buffering=0) as file:
        for piece in _pieces(file):
            if isinstance(piece, bytes):
                yield image_pb2.UploadBlobRequest(chunk=piece)
            else:
                yield image_pb2.UploadBlobRequest(zeroes=piece)


def frame_bytes(frame: image_pb2.UploadBlobRequest) -> int:
    """How far a message gets."""
    return frame.zeroes or len(frame.chunk)


def _pieces(file: BinaryIO) -> Iterator[bytes | int]:
    """The file's content: bytes, or how many zeroes. Holes are not read."""
    zeroes = 0
    for start, end in _extents(file.fileno()):
        file.seek(start)
        while start < end:
            chunk = file.read(min(CHUNK_BYTES, end - start))
            if not chunk:  # it was cut meanwhile: the daemon will see that
                return
            start += len(chunk)
            if chunk == _ZEROES[: len(chunk)]:
                zeroes += len(chunk)
                continue
            yield from _counted(zeroes)
            zeroes = 0
            yield chunk
        hole = _next_data(file.fileno(), end) - end
        zeroes += hole
    yield from _counted(zeroes)


def _counted(zeroes: int) -> Iterator[int]:
    while zeroes:
        step = min(zeroes, ZEROES_BYTES)
        yield step
        zeroes -= step


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts that are no holes; a first one without bytes when the file begins with a hole."""
    size = os.fstat(descriptor).st_size
    end = 0
    if size and _next_data(descriptor, 0):
        yield 0, 0
    while (start := _next_data(descriptor, end)) < size:
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, end


def _next_data(descriptor: int, offset: int) -> int:
    """Where the next byte stands that is in no hole; the file's size when there is none."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(descriptor).st_size
