"""Blobs: files that clients and recipes gave to the daemon, each named by the SHA-256 of its content.

    <directory>/sha256/<64 hex digits>    a complete blob; never changes
    <directory>/incoming/*                uploads under way; what an earlier daemon left there is removed at start

A blob appears under its name in one step, after its size and digest were checked and it was written to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hvd.errors import HvdError

# Blobs that nobody refers to are kept this long, in seconds: between an upload and the creation that names it lies
# some time.
UNREFERENCED_AGE = 3600.0
# The largest disk (hvd.board.spec.MOST_DISK_BYTES). Only blobs of holes get there; others end at the disk's size.
MOST_BLOB_BYTES = 8 << 40

_ALGORITHM = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COPY_BYTES = 1 << 20
_ZEROES = memoryview(bytes(1 << 20))


def check_digest(digest: str) -> str:
    """The digest's hex digits. Raises HvdError DIGEST_INVALID unless it is "sha256:" and 64 lower-case hex digits."""
    if not _DIGEST.fullmatch(digest):
        raise HvdError("DIGEST_INVALID", digest=digest[:100])
    return digest.removeprefix(_ALGORITHM)


class BlobStore:
    """The blobs of one daemon. Thread-safe: uploads write from worker threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "sha256"
        self._incoming = directory / "incoming"
        for each in (self._blobs, self._incoming):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in self._incoming.iterdir():
            left_over.unlink()

    def path(self, digest: str) -> Path:
        """Where the blob lies. Raises HvdError DIGEST_INVALID, BLOB_NOT_FOUND."""
        path = self._blobs / check_digest(digest)
        if not path.is_file():
            raise HvdError("BLOB_NOT_FOUND", digest=digest)
        return path

    def size(self, digest: str) -> int:
        """Bytes of the blob. Raises as path()."""
        return self.path(digest).stat().st_size

    def find(self, digests: Iterable[str]) -> list[str]:
        """Those of the digests whose blobs are here, in the given order; each counts as new, or nearly, for collect(), since the
        asker relies on it. One that is new is not touched: who has loaded it knows a file that was changed by its times
        (hvd/board/loaders/ahead.py). Raises HvdError DIGEST_INVALID."""
        found = []
        new = time.time() - UNREFERENCED_AGE / 2
        for digest in digests:
            path = self._blobs / check_digest(digest)
            try:
                if not new < path.stat().st_mtime <= new + UNREFERENCED_AGE:
                    os.utime(path)
            except FileNotFoundError:
                continue
            found.append(digest)
        return found

    def writer(self, digest: str, size: int, zeroes: int = 0) -> BlobWriter:
        """Begin an upload of so many bytes with that digest, of which so many will be zeroes that need no room. Use it
        as a context manager: leaving it without commit() removes what was written. Raises HvdError DIGEST_INVALID,
        BLOB_SIZE, BLOB_TOO_LARGE, DISK_FULL."""
        check_digest(digest)
        if size < 0 or not 0 <= zeroes <= size:
            raise HvdError("BLOB_SIZE", found=zeroes, size=size)
        available = shutil.disk_usage(self.directory).free
        if size > MOST_BLOB_BYTES and zeroes:
            raise HvdError("BLOB_TOO_LARGE", size=size, most=MOST_BLOB_BYTES)
        if size - zeroes > available:
            raise HvdError("DISK_FULL", directory=self.directory, what=f"blob {digest} of {size} bytes")
        return BlobWriter(self, digest, size)

    def add(self, source: Path) -> str:
        """Copy a file of the daemon's own (a recipe's result) into the store; its digest. Raises HvdError DISK_FULL;
        OSError when the file cannot be read."""
        with source.open("rb") as file:
            digest = _ALGORITHM + hashlib.file_digest(file, "sha256").hexdigest()
            if self.find([digest]):
                return digest
            status = os.fstat(file.fileno())
            file.seek(0)
            with self.writer(digest, status.st_size, max(0, status.st_size - status.st_blocks * 512)) as writer:
                while chunk := file.read(_COPY_BYTES):
                    if chunk == _ZEROES[: len(chunk)]:
                        writer.write_zeroes(len(chunk))
                    else:
                        writer.write(chunk)
                writer.commit()
        return digest

    def collect(self, references: Callable[[], Iterable[str]], age: float = UNREFERENCED_AGE) -> list[str]:
        """Remove the blobs that are older than age seconds and not among the references; their digests.

        References are asked for after the candidates are listed, and it does not pause in between: called in the
        daemon's event loop, nothing can begin to refer to a blob while it is being removed.
        """
        latest = time.time() - age
        old = [path for path in self._blobs.iterdir() if path.stat().st_mtime <= latest]
        if not old:
            return []
        used = {digest.removeprefix(_ALGORITHM) for digest in references()}
        removed = []
        for path in old:
            if path.name not in used:
                path.unlink()
                removed.append(_ALGORITHM + path.name)
        return removed


class BlobWriter:
    """One upload. write() and commit() may run in worker threads, one at a time; abort() waits for the one that
    runs."""

    def __init__(self, store: BlobStore, digest: str, size: int) -> None:
        self._store = store
        self._digest = digest
        self._size = size
        self._written = 0
        self._hash = hashlib.sha256()
        # A cancelled upload leaves its worker thread writing: without the lock, abort() would close the file under it.
        self._lock = threading.Lock()
        with self._full_disk_told():
            descriptor, name = tempfile.mkstemp(dir=store._incoming)
        self._descriptor = descriptor
        self._temporary = Path(name)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def write(self, chunk: bytes) -> None:
        """Append. Raises HvdError BLOB_SIZE as soon as there is more than was announced, DISK_FULL."""
        with self._lock, self._full_disk_told():
            if self._descriptor < 0:
                return  # aborted meanwhile
            offset = self._advance(len(chunk))
            self._hash.update(chunk)
            view = memoryview(chunk)
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                offset += written
                view = view[written:]

    def write_zeroes(self, length: int) -> None:
        """Append so many zero bytes as a hole. Raises HvdError BLOB_SIZE."""
        with self._lock:
            if self._descriptor < 0:
                return
            self._advance(length)
            while length:
                piece = _ZEROES[: min(length, len(_ZEROES))]
                self._hash.update(piece)
                length -= len(piece)

    def _advance(self, length: int) -> int:
        offset = self._written
        self._written += length
        if self._written > self._size:
            raise HvdError("BLOB_SIZE", found=f"at least {self._written}", size=self._size)
        return offset

    def commit(self) -> None:
        """Check size and digest and make it a blob; it is on the disk when this returns. Raises HvdError BLOB_SIZE,
        DIGEST_MISMATCH, DISK_FULL."""
        with self._lock, self._full_disk_told():
            if self._descriptor < 0:
                return
            if self._written != self._size:
                raise HvdError("BLOB_SIZE", found=self._written, size=self._size)
            found = _ALGORITHM + self._hash.hexdigest()
            if found != self._digest:
                raise HvdError("DIGEST_MISMATCH", found=found, digest=self._digest)
            os.ftruncate(self._descriptor, self._size)  # it may end with a hole
            os.fsync(self._descriptor)
            # Two uploads of one digest both end here: the second replaces the first by the same bytes.
            self._temporary.rename(self._store._blobs / found.removeprefix(_ALGORITHM))
            _sync_directory(self._store._blobs)
            self._close()

    def abort(self) -> None:
        """Remove what was written; nothing after commit()."""
        with self._lock:
            if self._descriptor >= 0:
                self._temporary.unlink(missing_ok=True)
                self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise HvdError("DISK_FULL", directory=self._store.directory, what=f"blob {self._digest}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
