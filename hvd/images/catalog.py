"""The catalog of images: names, and which blobs they consist of. SQLite in the state directory; each row is a
hvd.v1.Image."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hvapi.v1 import image_pb2

from hvd.database import Schema, open_database, troubles_told
from hvd.errors import HvdError
from hvd.images.blobs import BlobStore
from hvd.images.formats import check_disk, check_rootfs

# Kind of an image -> the blob that it cannot do without. Any of the others may go with it: a disk with its kernel.
KINDS = {
    "linux": "kernel",
    "kernel": "kernel",
    "initrd": "initrd",
    "disk": "disk",
    "cdrom": "disk",
    "rootfs": "rootfs",
}
ROOTFS = "rootfs"
ARCHITECTURES = ("i386", "x86_64")
COLLECTION = "images/"
# On an image that a recipe built: the recipe's name.
RECIPE_LABEL = "hvd.recipe"

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# AIP-155: the same request_id gives the same answer for so many seconds.
_REQUEST_AGE = 24 * 3600.0
SCHEMA = Schema(
    "the catalog of images",
    0x68766469,  # "hvdi"
    (
        """
        CREATE TABLE images (id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
        CREATE TABLE requests (request_id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, body BLOB NOT NULL, time REAL NOT NULL)
        STRICT;
        """,
    ),
    frozenset({"images", "requests"}),
)


class ImageCatalog:
    """All images of one daemon. Its calls are short and run in the event loop.

    users_of(name) gives the names of the guests that an image has: such an image cannot be deleted or replaced.
    """

    def __init__(
        self, path: Path, blobs: BlobStore, users_of: Callable[[str], Iterable[str]] = lambda name: ()
    ) -> None:
        self.path = path
        self.blobs = blobs
        self.users_of = users_of
        self._database = open_database(path, SCHEMA)

    def close(self) -> None:
        self._database.close()

    def get(self, name: str) -> image_pb2.Image:
        """The image "images/{id}" (or just "{id}"). Raises HvdError NAME_INVALID, IMAGE_NOT_FOUND."""
        image = self._find(image_id(name))
        if image is None:
            raise HvdError("IMAGE_NOT_FOUND", name=name)
        return image

    def _find(self, identifier: str) -> image_pb2.Image | None:
        with self._troubles_told():
            row = self._database.execute("SELECT body FROM images WHERE id = ?", (identifier,)).fetchone()
        return image_pb2.Image.FromString(row[0]) if row else None

    def list(self, after: str = "", limit: int = -1) -> list[image_pb2.Image]:
        """Images by name, those behind the id `after`; limit -1 = all."""
        with self._troubles_told():
            rows = self._database.execute(
                "SELECT body FROM images WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
        return [image_pb2.Image.FromString(row[0]) for row in rows]

    def references(self) -> set[str]:
        """The digests that images refer to: BlobStore.collect() must keep them."""
        return {digest for image in self.list() for digest in digests_of(image)}

    def create(self, identifier: str, image: image_pb2.Image, request_id: str = "") -> image_pb2.Image:
        """Make images/{identifier} from what a client asked for. The same request_id and request give the first
        answer again.

        Raises HvdError NAME_INVALID, NAME_TAKEN, FIELD_INVALID, DIGEST_INVALID, BLOB_NOT_FOUND, REQUEST_ID_REUSED,
        IMAGE_EMPTY, IMAGE_NOT_RAW, IMAGE_CONTENT, DISK_FULL.
        """
        fingerprint = hashlib.sha256(identifier.encode() + b"\0" + image.SerializeToString(deterministic=True)).digest()
        if request_id and (earlier := self._answered(request_id, fingerprint)):
            return earlier
        made = self._made(identifier, image)
        body = made.SerializeToString()
        with self._troubles_told(), self._transaction():
            try:
                self._database.execute("INSERT INTO images VALUES (?, ?)", (image_id(made.name), body))
            except sqlite3.IntegrityError:
                raise HvdError("NAME_TAKEN", what="image", name=identifier) from None
            if request_id:
                self._database.execute("DELETE FROM requests WHERE time < ?", (time.time() - _REQUEST_AGE,))
                self._database.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?)", (request_id, fingerprint, body, time.time())
                )
        return made

    def put_built(self, identifier: str, image: image_pb2.Image, recipe: str) -> image_pb2.Image:
        """The image that a recipe built. One of the same content stays; one that the same recipe built before is
        replaced.

        Raises HvdError as create(), NAME_TAKEN when another source made the one there is, IMAGE_IN_USE.
        """
        made = self._made(identifier, image)
        made.labels[RECIPE_LABEL] = recipe
        earlier = self._find(image_id(made.name))
        if earlier is not None:
            if earlier.labels.get(RECIPE_LABEL) != recipe:
                raise HvdError("NAME_TAKEN", what="image", name=identifier)
            if _content(earlier) == _content(made):
                return earlier
            self._refuse_in_use(earlier.name)
        with self._troubles_told():
            self._database.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?)", (image_id(made.name), made.SerializeToString())
            )
        return made

    def check_pull(self, identifier: str, source: str) -> None:
        """Before anything is fetched: may an image of this name be pulled from there ("docker.io/library/debian")? Raises HvdError
        NAME_TAKEN when the one there is came from elsewhere."""
        earlier = self._find(identifier)
        if earlier is not None and earlier.source.partition("@")[0] != source:
            raise HvdError("NAME_TAKEN", what="image", name=identifier)

    def put_pulled(self, identifier: str, image: image_pb2.Image) -> image_pb2.Image:
        """The image that came from a registry. One of the same content stays; an earlier one from there is replaced.

        Raises HvdError as create(), NAME_TAKEN as check_pull(), IMAGE_IN_USE.
        """
        made = self._made(identifier, image)
        self.check_pull(identifier, made.source.partition("@")[0])
        earlier = self._find(identifier)
        if earlier is not None:
            if (earlier.layers, earlier.config, earlier.source) == (made.layers, made.config, made.source):
                return earlier
            self._refuse_in_use(earlier.name)
        with self._troubles_told():
            self._database.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (identifier, made.SerializeToString()))
        return made

    def delete(self, name: str, allow_missing: bool = False) -> None:
        """Forget the image; its blobs are collected later. Raises HvdError NAME_INVALID, IMAGE_NOT_FOUND,
        IMAGE_IN_USE."""
        identifier = image_id(name)
        self._refuse_in_use(COLLECTION + identifier)
        with self._troubles_told():
            gone = self._database.execute("DELETE FROM images WHERE id = ?", (identifier,)).rowcount
        if not gone and not allow_missing:
            raise HvdError("IMAGE_NOT_FOUND", name=name)

    def _refuse_in_use(self, name: str) -> None:
        if users := sorted(self.users_of(name)):
            raise HvdError("IMAGE_IN_USE", name=name, guests=", ".join(users))

    def _answered(self, request_id: str, fingerprint: bytes) -> image_pb2.Image | None:
        with self._troubles_told():
            row = self._database.execute(
                "SELECT fingerprint, body FROM requests WHERE request_id = ? AND time >= ?",
                (request_id, time.time() - _REQUEST_AGE),
            ).fetchone()
        if row is None:
            return None
        if row[0] != fingerprint:
            raise HvdError("REQUEST_ID_REUSED", request_id=request_id)
        return image_pb2.Image.FromString(row[1])

    def _made(self, identifier: str, asked: image_pb2.Image) -> image_pb2.Image:
        """The image as it will be kept: checked, with what the daemon adds."""
        if not _ID.fullmatch(identifier):
            raise HvdError("NAME_INVALID", what="image", name=identifier[:100])
        _check_choice("image.kind", asked.kind, tuple(KINDS))
        _check_choice("image.arch", asked.arch, ("", *ARCHITECTURES))
        needed = "layers" if asked.kind == ROOTFS and asked.layers else KINDS[asked.kind]
        if not getattr(asked, needed):
            raise HvdError(
                "FIELD_INVALID",
                field=f"image.{needed}",
                value="''",
                problem="is empty",
                remedy=f"an image of kind {asked.kind} needs the digest of a {needed} that was uploaded",
            )
        if asked.memory_bytes < 0 or asked.memory_bytes % 4096:
            raise HvdError(
                "FIELD_INVALID",
                field="image.memory_bytes",
                value=asked.memory_bytes,
                problem="is no multiple of 4096",
                remedy="round it, or give 0 for the daemon's default",
            )
        made = image_pb2.Image()
        made.CopyFrom(asked)
        made.name = COLLECTION + identifier
        made.uid = str(uuid.uuid4())
        made.ClearField("used_by")
        made.size_bytes = sum(self.blobs.size(digest) for digest in digests_of(asked))
        if asked.disk:
            check_disk(self.blobs.path(asked.disk), "cdrom" if asked.kind == "cdrom" else "disk")
        if asked.rootfs:
            check_rootfs(self.blobs.path(asked.rootfs))
        made.create_time.GetCurrentTime()
        return made

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _troubles_told(self) -> contextlib.AbstractContextManager[None]:
        return troubles_told(self.path, SCHEMA.what)


def image_id(name: str) -> str:
    """The {id} of "images/{id}" or "{id}". Raises HvdError NAME_INVALID."""
    identifier = name.removeprefix(COLLECTION)
    if not _ID.fullmatch(identifier):
        raise HvdError("NAME_INVALID", what="image", name=name[:100])
    return identifier


def digests_of(image: image_pb2.Image) -> list[str]:
    """The blobs that an image consists of."""
    single = (image.kernel, image.initrd, image.disk, image.rootfs, image.symbols)
    return [digest for digest in (*single, *image.layers) if digest]


def layer_digests(image: image_pb2.Image) -> tuple[str, ...]:
    """The blobs that the root file system of a container's image consists of, the lowest first."""
    return tuple(image.layers) or ((image.rootfs,) if image.rootfs else ())


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise HvdError(
            "FIELD_INVALID",
            field=field,
            value=f"'{value}'",
            problem="is not known",
            remedy=f"there are: {', '.join(filter(None, choices))}",
        )


def _content(image: image_pb2.Image) -> tuple[object, ...]:
    """What makes two builds the same image to a guest."""
    return (image.kind, *digests_of(image), image.append, image.memory_bytes, image.arch)
