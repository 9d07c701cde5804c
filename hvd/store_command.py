"""`hvd store`: the daemon's databases, looked at, copied and put back by people. With the settings of the daemon (--state-dir, environment,
file) in any of these:

    hvd store check                 is every database whole and ours? Also while the daemon runs
    hvd store backup DIRECTORY      a copy of all of them as they are now. Also while the daemon runs
    hvd store restore DIRECTORY     puts such a copy in their place, while no daemon runs; what was there stays beside it

Blobs, layers, disks and snapshots are files of the state directory, and copied as such: only what is said of them is in the databases.
Exit status: 0, 1 when something is wrong, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from hvapi.v1 import guest_pb2, image_pb2, network_pb2

from hvd import config as settings
from hvd import database
from hvd.database import Schema, troubles_told
from hvd.errors import HvdError
from hvd.guests import store as guests
from hvd.images import catalog as images
from hvd.network import store as networks
from hvd.private import private_directory, private_file

# file -> its kind, and the query whose rows are messages of that type
FILES: dict[str, tuple[Schema, str, type[Message]]] = {
    guests.FILE: (guests.SCHEMA, "SELECT name, message FROM guests", guest_pb2.Guest),
    "images.sqlite": (images.SCHEMA, "SELECT id, body FROM images", image_pb2.Image),
    "networks.sqlite": (networks.SCHEMA, "SELECT name, body FROM networks", network_pb2.Network),
}


def main(arguments: Sequence[str]) -> int:
    """The command `hvd store`."""
    parser = argparse.ArgumentParser(
        prog="hvd store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("check", "is every database whole and ours?"),
        ("backup", "copy all of them into a new directory"),
        ("restore", "put such a copy in their place"),
    ):
        added = verbs.add_parser(verb, help=text, allow_abbrev=False)
        settings.add_options(added, told=lambda name: name == "state_dir")
        if verb != "check":
            added.add_argument("directory", type=Path)
    asked = parser.parse_args(arguments)
    try:
        state = settings.of_flags(asked, os.environ).state_dir
        with contextlib.suppress(BrokenPipeError):
            return {"check": _check, "backup": _backup, "restore": _restore}[asked.verb](state, getattr(asked, "directory", None))
        return 0
    except HvdError as error:
        print(f"hvd: {error.message}\nhvd: {error.help} [{error.reason}]", file=sys.stderr)
        return 2 if error.reason == "CONFIG_INVALID" else 1


@contextlib.contextmanager
def _opened(path: Path, schema: Schema) -> Iterator[sqlite3.Connection]:
    """For reading, whoever else has it open; nothing is made or migrated. Raises HvdError STORE_*, DIRECTORY_UNUSABLE."""
    with troubles_told(path, schema.what):
        connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=database.BUSY_SECONDS, isolation_level=None)
        with contextlib.closing(connection):
            database.inspect(connection, path, schema)
            yield connection


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def inspect(path: Path) -> int:
    """Rows of a sound database. Raises HvdError STORE_DAMAGED and the like."""
    schema, query, kind = FILES[path.name]
    with _opened(path, schema) as connection:
        if (problem := database.problems(connection, quick=False)) is not None:
            raise HvdError("STORE_DAMAGED", path=path, problem=problem)
        rows = connection.execute(query).fetchall()
    for name, body in rows:
        try:
            kind().ParseFromString(body)
        except DecodeError as error:
            raise HvdError("STORE_DAMAGED", path=path, problem=f"the entry of {name}: {error}") from error
    return len(rows)


def _present(directory: Path) -> list[Path]:
    found = [directory / name for name in FILES if (directory / name).exists()]
    if not found:
        raise HvdError(
            "STORE_BACKUP", what=str(directory), problem=f"it has none of {', '.join(FILES)}", remedy="give the right --state-dir or directory"
        )
    return found


def _check(state: Path, _: Path | None) -> int:
    worst = 0
    for path in _present(state):
        try:
            print(f"{path}: sound, {inspect(path)} entries")
        except HvdError as error:
            worst = 1
            print(f"{path}: {error.message}\n    {error.help} [{error.reason}]")
    return worst


def _backup(state: Path, target: Path | None) -> int:
    assert target is not None
    sources = _present(state)
    if target.exists() and any(target.iterdir()):
        raise HvdError("STORE_BACKUP", what=str(target), problem="it is not empty", remedy="name a new directory")
    try:
        private_directory(target)
        for source in sources:
            inspect(source)
            with _opened(source, FILES[source.name][0]) as connection:
                database.copy(connection, target / source.name)
            print(target / source.name)
    except OSError as error:
        raise HvdError("STORE_BACKUP", what=str(target), problem=str(error), remedy="name a directory that can be written") from error
    return 0


def _restore(state: Path, source: Path | None) -> int:
    from hvd.daemon import locked

    assert source is not None
    copies = _present(source)
    for copy in copies:
        inspect(copy)
    with locked(state):
        aside = f"before-restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        for copy in copies:
            path = state / copy.name
            # A log that belongs to the old file would be applied to the new one.
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                with contextlib.suppress(FileNotFoundError):
                    (state / name).rename(state / f"{name}.{aside}")
            with _opened(copy, FILES[copy.name][0]) as connection:
                database.copy(connection, private_file(path))
            print(f"{path}: restored, {inspect(path)} entries; what was there is {path.name}.{aside}")
    return 0
