"""Snapshots on their way between daemons: the file itself, with the blobs that it needs as further sections.

An export ends in a table of its own: the file's sections as they are, then for each blob the two of hvd.snapshot.sparse,
named "blob.sha256:...". An import takes those that the daemon lacks into its blob store and cuts them off.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, Protocol

from hvapi.v1 import image_pb2

from hvd.errors import HvdError
from hvd.guests.snapshot_files import Stored
from hvd.snapshot.container import COPY_BYTES, Reader, Section, ending, round_up
from hvd.snapshot.pages import crc32c
from hvd.snapshot.sparse import index_name, pack_index, pieces_of, read_file, stream_file

BLOB: Final = "blob."
MOST_FILE_BYTES: Final = 1 << 43


class Blobs(Protocol):
    """What is needed of hvd.images.blobs.BlobStore."""

    def path(self, digest: str) -> Path: ...
    def find(self, digests: list[str]) -> list[str]: ...
    def add(self, source: Path) -> str: ...


class Images(Protocol):
    """What is needed of hvd.images.catalog.ImageCatalog."""

    def get(self, name: str) -> image_pb2.Image: ...
    def create(self, identifier: str, image: image_pb2.Image, request_id: str = "") -> image_pb2.Image: ...


def export(stored: Stored, blobs: Blobs) -> Generator[bytes, None, None]:
    """The export, piece by piece; at most 1 MiB each. Raises HvdError BLOB_NOT_FOUND, SNAPSHOT_*."""
    paths = {digest: blobs.path(digest) for digest in sorted(stored.blobs)}
    with Reader(stored.path, stored.message.name) as reader:
        sections = list(reader.sections.values())
        for offset in range(0, reader.table_offset, COPY_BYTES):
            yield _pread(reader, offset, min(COPY_BYTES, reader.table_offset - offset))
        end = reader.table_offset
        for digest, path in paths.items():
            yield from _blob(f"{BLOB}{digest}", path, end, sections)
            end = round_up(sections[-1].end)
        last = ending(sections, end)
        for start in range(0, len(last), COPY_BYTES):
            yield last[start : start + COPY_BYTES]


def _pread(reader: Reader, offset: int, length: int) -> bytes:
    data = os.pread(reader.fd, length, offset)
    if len(data) != length:
        raise reader.damaged("it became shorter while it was exported")
    return data


def _blob(name: str, path: Path, start: int, sections: list[Section]) -> Iterator[bytes]:
    """Both sections of a blob, padded; their rows are appended."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        index = pack_index(*pieces_of(fd))
        for section, pieces in ((name, stream_file(fd)), (index_name(name), _cut(index))):
            length = crc = 0
            for piece in pieces:
                length += len(piece)
                crc = crc32c(piece, crc)
                yield piece
            sections.append(Section(section, start, length, crc))
            start += length
            if padding := round_up(start) - start:
                yield bytes(padding)
            start = round_up(start)
    finally:
        os.close(fd)


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), COPY_BYTES):
        yield data[start : start + COPY_BYTES]


def take_blobs(path: Path, blobs: Blobs) -> None:
    """Check an imported file to its last byte, keep its blobs, and make it what the exported one was. Raises HvdError
    SNAPSHOT_*, DISK_FULL, DIGEST_MISMATCH."""
    with Reader(path, "to be imported") as reader:
        reader.verify()
        rows = list(reader.sections.values())
        count = next((number for number, row in enumerate(rows) if row.name.startswith(BLOB)), len(rows))
        names = [row.name for row in rows[count:]]
        if not all(name.startswith(BLOB) for name in names) or names[1::2] != [index_name(name) for name in names[::2]]:
            raise reader.damaged("its blobs are not where they belong")
        for name in names[::2]:
            _keep(reader, name, path.with_name(f"{path.name}.blob"), blobs)
    if count < len(rows):
        own = rows[:count]
        end = round_up(own[-1].end) if own else round_up(1)
        with path.open("rb+") as file:
            file.truncate(end)
            file.seek(end)
            file.write(ending(own, end))


def _keep(reader: Reader, name: str, temporary: Path, blobs: Blobs) -> None:
    digest = name.removeprefix(BLOB)
    if blobs.find([digest]):
        return
    try:
        read_file(reader, name, temporary)
        found = blobs.add(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    if found != digest:
        raise HvdError("DIGEST_MISMATCH", found=found, digest=digest)


def bring_images(stored: Stored, images: Images) -> dict[str, str]:
    """The images behind the guest's disks, in this daemon: made if they are not there, under another name if that one is
    taken. Returns {name in the snapshot: name here}. Raises what ImageCatalog.create raises."""
    needed = {disk.image for disk in stored.guest.machine.disks if disk.image}
    if stored.guest.image:
        needed.add(stored.guest.image)
    names: dict[str, str] = {}
    for image in stored.images:
        if image.name in needed and image.disk:
            names[image.name] = _bring(image, images)
    return names


def _bring(image: image_pb2.Image, images: Images) -> str:
    identifier = image.name.removeprefix("images/")
    for name in (identifier, f"{identifier[:50]}-{image.disk.removeprefix('sha256:')[:8]}"):
        try:
            if images.get(f"images/{name}").disk == image.disk:
                return f"images/{name}"
        except HvdError as error:
            if error.reason != "IMAGE_NOT_FOUND":
                raise
            asked = image_pb2.Image()
            asked.CopyFrom(image)
            for field in ("name", "uid", "create_time", "used_by"):
                asked.ClearField(field)
            return images.create(name, asked).name
    raise HvdError("NAME_TAKEN", what="image", name=identifier)
