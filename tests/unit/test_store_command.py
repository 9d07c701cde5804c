"""`hvd store`: check, backup and restore, of sound, torn, foreign and older files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2

from hvd import store_command
from hvd.errors import HvdError
from hvd.guests.store import FILE, SCHEMA, Store
from hvd.images.blobs import BlobStore
from hvd.images.catalog import ImageCatalog
from hvd.network.store import NetworkStore

# Made by the daemon before tables had an application_id (schema 1): `.dump` of its hvd.sqlite with one guest and one request.
RECORDED_1 = """
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE guests (uid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, message BLOB NOT NULL) STRICT;
INSERT INTO guests VALUES('uid-old','guests/old',X'0a0a6775657374732f6f6c6412077569642d6f6c64');
CREATE TABLE requests (id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, uid TEXT NOT NULL, time INTEGER NOT NULL) STRICT;
INSERT INTO requests VALUES('request',X'7072696e74','uid-old',4000000000);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO facts VALUES('boot-id','a-boot');
PRAGMA user_version=1;
COMMIT;
"""


async def fill(directory: Path, *names: str) -> None:
    store = Store(directory)
    await store.open()
    for name in names:
        await store.create(guest_pb2.Guest(name=f"guests/{name}", uid=f"uid-{name}"), "", b"")
    await store.close()
    ImageCatalog(directory / "images.sqlite", BlobStore(directory / "blobs")).close()
    NetworkStore(directory / "networks.sqlite").close()


async def names_of(directory: Path) -> list[str]:
    store = Store(directory)
    await store.open()
    loaded = await store.load()
    await store.close()
    return [guest.name.removeprefix("guests/") for guest in loaded.guests]


def run(state: Path, *words: str) -> int:
    return store_command.main([*words, "--state-dir", str(state)])


async def test_options_may_stand_before_the_directory(tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    state.mkdir()
    await fill(state, "a")
    assert store_command.main(["backup", "--state-dir", str(state), str(copy)]) == 0
    assert await names_of(copy) == ["a"]
    with pytest.raises(SystemExit) as wrong:
        store_command.main(["check", str(copy), "--state-dir", str(state)])
    assert wrong.value.code == 2


async def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy # 1?"
    state.mkdir()
    await fill(state, "a", "b")
    assert run(state, "check") == 0 and "2 entries" in capsys.readouterr().out
    assert run(state, "backup", str(copy)) == 0
    assert sorted(path.name for path in copy.iterdir()) == [FILE, "images.sqlite", "networks.sqlite"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in copy.iterdir())
    assert run(state, "backup", str(copy)) == 1 and "not empty" in capsys.readouterr().err
    await fill(state, "later")
    (state / FILE).write_bytes(b"torn" * 1000)
    assert run(state, "check") == 1 and "STORE_DAMAGED" in capsys.readouterr().out
    assert run(state, "backup", str(tmp_path / "no")) == 1  # what is damaged makes no backup
    assert run(state, "restore", str(copy)) == 0
    assert await names_of(state) == ["a", "b"]
    assert any(path.read_bytes() == b"torn" * 1000 for path in state.glob(f"{FILE}.before-restore-*"))
    assert run(state, "check") == 0


async def test_while_somebody_writes(tmp_path: Path) -> None:
    await fill(tmp_path, "a")
    store = Store(tmp_path)
    await store.open()
    await store.create(guest_pb2.Guest(name="guests/b", uid="uid-b"), "", b"")  # in the write-ahead log only
    assert run(tmp_path, "check") == 0 and run(tmp_path, "backup", str(tmp_path / "copy")) == 0
    await store.close()
    assert await names_of(tmp_path / "copy") == ["a", "b"]


async def test_not_under_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hvd.daemon import locked

    await fill(tmp_path, "a")
    assert run(tmp_path, "backup", str(tmp_path / "copy")) == 0
    with locked(tmp_path):
        assert run(tmp_path, "restore", str(tmp_path / "copy")) == 1
    assert "DIRECTORY_IN_USE" in capsys.readouterr().err


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "check") == 1 and "none of" in capsys.readouterr().err
    assert run(tmp_path, "restore", str(tmp_path / "nowhere")) == 1
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "mend")
    assert ended.value.code == 2


async def test_a_recorded_older_schema(tmp_path: Path) -> None:
    """Migrated, with nothing lost; the file as it was stays for the older daemon."""
    with sqlite3.connect(tmp_path / FILE) as old:
        old.executescript(RECORDED_1)
    old.close()
    assert run(tmp_path, "check") == 0  # which migrates nothing
    assert await names_of(tmp_path) == ["old"]
    store = Store(tmp_path)
    await store.open()
    assert (await store.request("request")).uid == "uid-old"  # type: ignore[union-attr]
    assert await store.fact("boot-id") == "a-boot" and await store.unfinished() == {}
    await store.close()
    with sqlite3.connect(tmp_path / FILE) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (SCHEMA.version,)
        assert new.execute("PRAGMA application_id").fetchone() == (SCHEMA.application_id,)
    new.close()
    with sqlite3.connect(tmp_path / f"{FILE}.version-1") as kept:
        assert kept.execute("PRAGMA user_version").fetchone() == (1,)
        assert kept.execute("SELECT uid FROM guests").fetchall() == [("uid-old",)]
    kept.close()


@pytest.mark.parametrize("kind", ["foreign", "another of ours", "locked", "read-only directory"])
async def test_files_that_are_not_for_us(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    reason, other = "STORE_FOREIGN", None
    if kind == "foreign":
        with sqlite3.connect(path) as theirs:
            theirs.executescript("CREATE TABLE moz_places (id INTEGER); PRAGMA user_version=77;")
        theirs.close()
    elif kind == "another of ours":
        NetworkStore(path).close()
    elif kind == "locked":
        monkeypatch.setattr("hvd.database.BUSY_SECONDS", 0.1)
        await fill(tmp_path, "a")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        reason = "STORE_LOCKED"
    else:
        tmp_path = Path("/proc")  # nothing can be made there, whoever we are
        reason = "DIRECTORY_UNUSABLE"
    before = path.read_bytes() if path.exists() else b""
    store = Store(tmp_path)
    with pytest.raises(HvdError) as caught:
        await store.open()
    await store.close()
    assert caught.value.reason == reason and caught.value.help, caught.value
    if other is not None:
        other.close()
    assert not path.exists() or path.read_bytes() == before  # it was not touched
