"""The store: what was asked for, and how each guest was last seen. SQLite in the state directory; what runs is told by
the runtime directory.

A guest is one row with its serialized Guest message: fields may be added to the message without touching the schema.
All access goes through one connection in one thread of its own, so the event loop never waits for a disk. Write-ahead
log, synchronous=NORMAL: nothing is lost when the daemon dies; when the host loses power the newest moments can be, but
the file stays sound.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError
from hvapi.v1 import guest_pb2

from hvd.errors import HvdError
from hvd.private import private_file

SCHEMA_VERSION = 1
FILE = "hvd.sqlite"
REQUEST_ID_SECONDS = 24 * 3600
# How long a write waits for another process (a backup, a curious `sqlite3`) that holds the file.
BUSY_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE guests (uid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, message BLOB NOT NULL) STRICT;
CREATE TABLE requests (id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, uid TEXT NOT NULL, time INTEGER NOT NULL) STRICT;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A creation that was answered: the request's fingerprint, and the guest it made."""

    fingerprint: bytes
    uid: str


@dataclass(frozen=True, slots=True)
class Loaded:
    guests: list[guest_pb2.Guest]
    # Rows that could not be read: name and problem. They stay in the file.
    odd: list[tuple[str, str]]


class Store:
    """Opened by `open`; every method runs in the store's thread.

    Raises HvdError DISK_FULL, STORE_DAMAGED, STORE_VERSION, DIRECTORY_UNUSABLE.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._thread = ThreadPoolExecutor(1, "store")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        await self._run(self._open)

    def _open(self) -> None:
        connection = sqlite3.connect(private_file(self.path), timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        problems = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problems != "ok":
            raise HvdError("STORE_DAMAGED", path=self.path, problem=problems)
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise HvdError("STORE_VERSION", path=self.path, found=found, known=SCHEMA_VERSION)
        if found == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    async def close(self) -> None:
        def close() -> None:
            if self._connection:
                self._connection.close()
                self._connection = None

        if self._closed:
            return
        await self._run(close)
        self._closed = True
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise HvdError("SHUTTING_DOWN")
        # Shielded: a caller that is cancelled must not leave a transaction of its own half way for the next.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except sqlite3.Error as error:
            if self._connection and self._connection.in_transaction:
                self._connection.rollback()
            name = getattr(error, "sqlite_errorname", "") or ""
            if name in _FULL:
                raise HvdError("DISK_FULL", directory=self.path.parent, what="the store") from error
            if name.startswith(_DAMAGED):
                raise HvdError("STORE_DAMAGED", path=self.path, problem=error) from error
            if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
                raise HvdError("DIRECTORY_UNUSABLE", directory=self.path.parent, problem=error) from error
            raise

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise HvdError("SHUTTING_DOWN")
        return self._connection

    async def load(self) -> Loaded:
        """All guests, in the order of their creation."""

        def load() -> Loaded:
            loaded = Loaded([], [])
            for name, message in self._db().execute("SELECT name, message FROM guests ORDER BY rowid"):
                try:
                    loaded.guests.append(guest_pb2.Guest.FromString(message))
                except DecodeError as error:
                    loaded.odd.append((name, str(error)))
            return loaded

        return await self._run(load)

    async def create(self, guest: guest_pb2.Guest, request_id: str, fingerprint: bytes) -> None:
        """Insert a guest and, with a request_id, the fact that it answered this request: both or neither."""
        row = (guest.uid, guest.name, guest.SerializeToString())

        def create() -> None:
            db = self._db()
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO guests VALUES (?, ?, ?)", row)
            if request_id:
                db.execute("DELETE FROM requests WHERE time < ?", (int(time.time()) - REQUEST_ID_SECONDS,))
                db.execute(
                    "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
                    (request_id, fingerprint, row[0], int(time.time())),
                )
            db.execute("COMMIT")

        await self._run(create)

    async def put(self, guests: Iterable[guest_pb2.Guest]) -> None:
        """Write guests as they are now; those that were deleted meanwhile stay deleted."""
        rows = [(guest.SerializeToString(), guest.uid) for guest in guests]

        def put() -> None:
            db = self._db()
            db.execute("BEGIN IMMEDIATE")
            db.executemany("UPDATE guests SET message = ? WHERE uid = ?", rows)
            db.execute("COMMIT")

        await self._run(put)

    async def delete(self, uid: str) -> None:
        await self._run(lambda: self._db().execute("DELETE FROM guests WHERE uid = ?", (uid,)))

    async def request(self, request_id: str) -> Request | None:
        """The answered creation of this id, if it is younger than 24 h."""
        since = int(time.time()) - REQUEST_ID_SECONDS

        def request() -> Request | None:
            row = (
                self._db()
                .execute("SELECT fingerprint, uid FROM requests WHERE id = ? AND time >= ?", (request_id, since))
                .fetchone()
            )
            return Request(*row) if row else None

        return await self._run(request)

    async def fact(self, key: str) -> str:
        """A fact of the daemon's own, e.g. the boot it last ran in; empty = not known."""

        def fact() -> str:
            row = self._db().execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
            return str(row[0]) if row else ""

        return await self._run(fact)

    async def set_fact(self, key: str, value: str) -> None:
        await self._run(lambda: self._db().execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value)))
