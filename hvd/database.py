"""The daemon's SQLite files (guests, images, networks): how each is opened, migrated, checked and copied, and what its troubles are
called.

All are in write-ahead mode. What a client is answered is on the disk before (synchronous=FULL), whatever happens to the host. A file
is known by SQLite's application_id in its header: one of another program is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvd.errors import HvdError
from hvd.private import private_file

# How long a write waits for another process (a backup, a curious `sqlite3`) that holds the file.
BUSY_SECONDS = 5.0
# Errors that a full disk may be behind; ENOSPC itself is told as SQLITE_FULL, mostly.
_PERHAPS_FULL = frozenset({"SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_FSYNC", "SQLITE_CANTOPEN"})
_TROUBLES = (
    (("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_SHORT_READ"), "STORE_DAMAGED"),
    (("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"), "STORE_LOCKED"),
    (("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"), "DIRECTORY_UNUSABLE"),
    (("SQLITE_IOERR", "SQLITE_NOMEM"), "STORE_FAILED"),
)


@dataclass(frozen=True, slots=True)
class Schema:
    """One kind of file."""

    what: str  # for people
    application_id: int
    # From an empty file to version 1, from 1 to 2, ...: SQL statements.
    migrations: tuple[str, ...]
    # What a file of version 1 has, which older daemons made without an application_id.
    first_tables: frozenset[str]

    @property
    def version(self) -> int:
        return len(self.migrations)


@contextlib.contextmanager
def troubles_told(path: Path, what: str) -> Iterator[None]:
    """Turns SQLite's errors into HvdError DISK_FULL, STORE_DAMAGED, STORE_LOCKED, STORE_FAILED, DIRECTORY_UNUSABLE."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name == "SQLITE_FULL" or (name in _PERHAPS_FULL and _is_full(path.parent)):
            raise HvdError("DISK_FULL", directory=path.parent, what=what) from error
        for names, reason in _TROUBLES:
            if name.startswith(names):
                raise HvdError(reason, path=path, directory=path.parent, problem=f"{path.name}: {error}") from error
        raise


def _is_full(directory: Path) -> bool:
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return (found.f_blocks > 0 and found.f_bavail == 0) or (found.f_files > 0 and found.f_favail == 0)


def open_database(path: Path, schema: Schema, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """The file, made or migrated if need be, ready to be written; transactions are the caller's.

    Raises HvdError as troubles_told(), STORE_VERSION, STORE_FOREIGN; nothing has been changed then.
    """
    with troubles_told(path, schema.what):
        database = sqlite3.connect(private_file(path), timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=check_same_thread)
        try:
            found = inspect(database, path, schema)
            if found == 0:  # nothing can be lost yet: synced once, when it is whole
                database.execute("PRAGMA synchronous=OFF")
            database.execute("PRAGMA journal_mode=WAL")
            if (problem := problems(database, quick=True)) is not None:
                raise HvdError("STORE_DAMAGED", path=path, problem=problem)
            # Can it be written at all? Told now, not to the first client. (This writes nothing.)
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
            if found < schema.version:
                _migrate(database, path, schema, found)
                if found == 0:
                    _sync(path)
                    _sync(path.parent)
            database.execute("PRAGMA synchronous=FULL")
        except BaseException:
            database.close()
            raise
    return database


def inspect(database: sqlite3.Connection, path: Path, schema: Schema) -> int:
    """The version of the file; 0 = it is empty. Raises HvdError STORE_VERSION, STORE_FOREIGN."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    tables = {str(name) for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    ours = application == schema.application_id or (
        application == 0 and (schema.first_tables <= tables if version else not tables)
    )
    if not ours:
        raise HvdError("STORE_FOREIGN", path=path, what=schema.what, tables=", ".join(sorted(tables)[:5]) or "none")
    if version > schema.version:
        raise HvdError("STORE_VERSION", path=path, found=version, known=schema.version)
    return int(version)


def problems(database: sqlite3.Connection, *, quick: bool) -> str | None:
    """What SQLite's own check finds first; None = the file is sound."""
    found = str(database.execute("PRAGMA quick_check(1)" if quick else "PRAGMA integrity_check(1)").fetchone()[0])
    return None if found == "ok" else found


def _migrate(database: sqlite3.Connection, path: Path, schema: Schema, found: int) -> None:
    """In one transaction. What there was stays beside it, for an older daemon."""
    if found:
        copy(database, path.with_name(f"{path.name}.version-{found}"))
    statements = " ".join(schema.migrations[found:])
    database.executescript(
        f"BEGIN IMMEDIATE; {statements} PRAGMA application_id={schema.application_id}; "
        f"PRAGMA user_version={schema.version}; COMMIT;"
    )


def copy(database: sqlite3.Connection, target: Path) -> None:
    """A whole copy of it as it is now, on the disk when this returns; others may go on writing. Replaces the target. Raises
    sqlite3.Error, OSError; then there is none."""
    made = target.with_name(f"{target.name}.new")
    made.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(private_file(made), isolation_level=None)) as other:
            database.backup(other)
            # Of one file, without a log beside it.
            other.execute("PRAGMA journal_mode=DELETE")
        _sync(made)
        made.rename(target)
        _sync(target.parent)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
