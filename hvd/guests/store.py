"""The store: what was asked for, and how each guest was last seen. SQLite in the state directory; what runs is told by
the runtime directory.

A guest is one row with its serialized Guest message: fields may be added to the message without touching the schema.
All access goes through one connection in one thread of its own, so the event loop never waits for a disk. What a client is
answered (creations, changes, deletions) is on the disk before; what was merely observed is in the write-ahead log, which
outlives the daemon but, of the newest moments, not the host.

What takes more than one step, on files as well as here, is noted before it begins (table `unfinished`), so that the next
daemon takes down what the death of this one left half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError
from hvapi.v1 import guest_pb2

from hvd.database import Schema, open_database, troubles_told
from hvd.errors import HvdError

FILE = "hvd.sqlite"
REQUEST_ID_SECONDS = 24 * 3600
SCHEMA = Schema(
    "the store of guests",
    0x68766467,  # "hvdg"
    (
        """
        CREATE TABLE guests (uid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, message BLOB NOT NULL) STRICT;
        CREATE TABLE requests
            (id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, uid TEXT NOT NULL, time INTEGER NOT NULL) STRICT;
        CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
        """,
        "CREATE TABLE unfinished (uid TEXT PRIMARY KEY, what TEXT NOT NULL) STRICT;",
    ),
    frozenset({"guests", "requests", "facts"}),
)
# In table `unfinished`: the guest's files are being made, and its row comes last; its row is gone, and its files go.
CREATING, DELETING = "creating", "deleting"

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

    Raises HvdError DISK_FULL, STORE_DAMAGED, STORE_VERSION, STORE_FOREIGN, STORE_LOCKED, STORE_FAILED, DIRECTORY_UNUSABLE.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._thread = ThreadPoolExecutor(1, "store")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        await self._run(self._open)

    def _open(self) -> None:
        self._connection = open_database(self.path, SCHEMA, check_same_thread=False)

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
        with troubles_told(self.path, "the store"):
            try:
                return work()
            except sqlite3.Error:
                if self._connection and self._connection.in_transaction:
                    self._connection.rollback()
                raise

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """durable: on the disk when it ends."""
        db = self._db()
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")

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

    async def begin_creation(self, uid: str) -> None:
        """Files of a guest to come are about to be made; create() or finished() ends that."""

        def begin() -> None:
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO unfinished VALUES (?, ?)", (uid, CREATING))

        await self._run(begin)

    async def create(
        self, guest: guest_pb2.Guest, request_id: str, fingerprint: bytes, *, whole: bool = True
    ) -> None:
        """Insert a guest and, with a request_id, the fact that it answered this request: both or neither. whole: that ends its
        creation; otherwise finished() does."""
        row = (guest.uid, guest.name, guest.SerializeToString())

        def create() -> None:
            with self._transaction() as db:
                db.execute("INSERT INTO guests VALUES (?, ?, ?)", row)
                if whole:
                    db.execute("DELETE FROM unfinished WHERE uid = ?", (row[0],))
                if request_id:
                    db.execute("DELETE FROM requests WHERE time < ?", (int(time.time()) - REQUEST_ID_SECONDS,))
                    db.execute(
                        "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
                        (request_id, fingerprint, row[0], int(time.time())),
                    )

        await self._run(create)

    async def put(self, guests: Iterable[guest_pb2.Guest], *, durable: bool = False) -> None:
        """Write guests as they are now; those that were deleted meanwhile stay deleted. durable: a client is answered."""
        rows = [(guest.SerializeToString(), guest.uid) for guest in guests]

        def put() -> None:
            with self._transaction(durable=durable) as db:
                db.executemany("UPDATE guests SET message = ? WHERE uid = ?", rows)

        await self._run(put)

    async def delete(self, uid: str) -> None:
        """Its files are about to go, too; finished() ends that."""

        def delete() -> None:
            with self._transaction() as db:
                db.execute("DELETE FROM guests WHERE uid = ?", (uid,))
                db.execute("INSERT OR REPLACE INTO unfinished VALUES (?, ?)", (uid, DELETING))

        await self._run(delete)

    async def unfinished(self) -> dict[str, str]:
        """uid -> CREATING or DELETING: what an earlier daemon began and did not end."""
        return await self._run(lambda: dict(self._db().execute("SELECT uid, what FROM unfinished").fetchall()))

    async def finished(self, uids: Iterable[str], *, durable: bool = False) -> None:
        """They are whole, or nothing is left of them."""
        rows = [(uid,) for uid in uids]

        def finished() -> None:
            with self._transaction(durable=durable) as db:
                db.executemany("DELETE FROM unfinished WHERE uid = ?", rows)

        await self._run(finished)

    async def forget_request(self, uid: str) -> None:
        """Of a guest that was never whole: asked for again, it is made again."""

        def forget() -> None:
            with self._transaction() as db:
                db.execute("DELETE FROM requests WHERE uid = ?", (uid,))

        await self._run(forget)

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
