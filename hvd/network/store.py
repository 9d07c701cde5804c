"""The networks that were asked for. SQLite in the state directory; each row is a hvd.v1.Network."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

from hvapi.v1 import network_pb2

from hvd.database import Schema, open_database, troubles_told
from hvd.errors import HvdError

# AIP-155: the same request_id gives the same answer for so many seconds.
_REQUEST_SECONDS = 24 * 3600.0
SCHEMA = Schema(
    "the store of networks",
    0x6876646E,  # "hvdn"
    (
        """
        CREATE TABLE networks (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
        CREATE TABLE requests (id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, body BLOB NOT NULL, time REAL NOT NULL) STRICT;
        CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
        """,
    ),
    frozenset({"networks", "requests", "facts"}),
)


class NetworkStore:
    """Its calls are short and run in the event loop. Raises HvdError DISK_FULL and STORE_*."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = open_database(path, SCHEMA)

    def close(self) -> None:
        self._database.close()

    def owner(self) -> str:
        """Of this state directory's interfaces and filter rules: eight hexadecimal digits, made at the first call."""
        with self._troubles_told():
            row = self._database.execute("SELECT value FROM facts WHERE key = 'owner'").fetchone()
            if row is None:  # a daemon on a full disk writes nothing at its start
                row = (secrets.token_hex(4),)
                self._database.execute("INSERT INTO facts VALUES ('owner', ?)", row)
        return str(row[0])

    def load(self) -> list[network_pb2.Network]:
        with self._troubles_told():
            rows = self._database.execute("SELECT body FROM networks ORDER BY name").fetchall()
        return [network_pb2.Network.FromString(row[0]) for row in rows]

    def answered(self, request_id: str, fingerprint: bytes) -> network_pb2.Network | None:
        """What this creation made before. Raises HvdError REQUEST_ID_REUSED."""
        with self._troubles_told():
            row = self._database.execute(
                "SELECT fingerprint, body FROM requests WHERE id = ? AND time >= ?",
                (request_id, time.time() - _REQUEST_SECONDS),
            ).fetchone()
        if row is None:
            return None
        if row[0] != fingerprint:
            raise HvdError("REQUEST_ID_REUSED", request_id=request_id)
        return network_pb2.Network.FromString(row[1])

    def create(self, network: network_pb2.Network, request_id: str, fingerprint: bytes) -> None:
        """With a request_id also the fact that it was answered: both or neither."""
        body = network.SerializeToString()
        with self._troubles_told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute("INSERT INTO networks VALUES (?, ?)", (network.name, body))
                if request_id:
                    self._database.execute("DELETE FROM requests WHERE time < ?", (time.time() - _REQUEST_SECONDS,))
                    self._database.execute(
                        "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
                        (request_id, fingerprint, body, time.time()),
                    )
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def delete(self, name: str) -> None:
        with self._troubles_told():
            self._database.execute("DELETE FROM networks WHERE name = ?", (name,))

    def _troubles_told(self) -> contextlib.AbstractContextManager[None]:
        return troubles_told(self.path, SCHEMA.what)
