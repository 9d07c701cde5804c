"""The store: what is put is loaded, requests live a day, torn and foreign files are told."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2

from hvd.errors import HvdError
from hvd.guests import store as stores
from hvd.guests.store import FILE, Store

Guest = guest_pb2.Guest


async def opened(directory: Path) -> Store:
    store = Store(directory)
    try:
        await store.open()
    except HvdError:
        await store.close()
        raise
    return store


def guest(name: str) -> Guest:
    return Guest(name=f"guests/{name}", uid=f"uid-{name}", labels={"of": name})


async def test_guests_come_back_in_order(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    for name in ("b", "a", "c"):
        await store.create(guest(name), "", b"")
    changed = guest("a")
    changed.state = Guest.RUNNING
    await store.put([changed, guest("never-made")])
    await store.delete("uid-c")
    await store.set_fact("boot", "x")
    await store.set_fact("boot", "y")
    await store.close()
    store = await opened(tmp_path)
    loaded = await store.load()
    assert [each.name for each in loaded.guests] == ["guests/b", "guests/a"] and loaded.guests[1] == changed
    assert (await store.fact("boot"), await store.fact("none")) == ("y", "")
    await store.close()
    with pytest.raises(HvdError) as caught:
        await store.load()
    assert caught.value.reason == "SHUTTING_DOWN"


async def test_requests_are_kept_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(tmp_path)
    now = [1_000_000.0]
    monkeypatch.setattr(stores.time, "time", lambda: now[0])
    await store.create(guest("a"), "id-1", b"print")
    now[0] += 24 * 3600 - 1
    assert await store.request("id-1") == stores.Request(b"print", "uid-a")
    assert await store.request("id-2") is None
    now[0] += 2
    assert await store.request("id-1") is None
    await store.create(guest("b"), "id-2", b"print")
    assert store._db().execute("SELECT count(*) FROM requests").fetchone() == (1,)
    await store.close()


async def test_a_creation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(guest("a"), "", b"")
    clash = guest("a")
    clash.uid = "another"
    with pytest.raises(sqlite3.IntegrityError):
        await store.create(clash, "id", b"x")
    assert await store.request("id") is None
    await store.create(guest("b"), "", b"")
    assert len((await store.load()).guests) == 2
    await store.close()


async def test_a_cancelled_caller_leaves_no_half_transaction(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    for number in range(30):
        task = asyncio.create_task(store.create(guest(f"g{number}"), "", b""))
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    await store.create(guest("last"), "", b"")
    assert len((await store.load()).guests) == 31
    await store.close()


async def test_full_disk(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    store._db().execute("PRAGMA max_page_count=1").fetchone()
    large = guest("a")
    large.status_message = "x" * 100_000
    with pytest.raises(HvdError) as caught:
        await store.create(large, "", b"")
    assert caught.value.reason == "DISK_FULL" and caught.value.metadata["directory"] == str(tmp_path)
    store._db().execute("PRAGMA max_page_count=100000").fetchone()
    await store.create(large, "", b"")
    await store.close()


async def test_garbled_rows_are_told_and_kept(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(guest("a"), "", b"")
    store._db().execute("INSERT INTO guests VALUES ('u', 'guests/b', X'ff')")
    loaded = await store.load()
    assert len(loaded.guests) == 1 and loaded.odd[0][0] == "guests/b"
    await store.close()


@pytest.mark.parametrize("damage", ["no database", "torn page", "cut short", "newer version", "no permission"])
async def test_files_that_cannot_be_used(tmp_path: Path, damage: str) -> None:
    store = await opened(tmp_path)
    for number in range(200):
        await store.create(guest(f"g{number}"), "", b"")
    await store.close()
    path = tmp_path / FILE
    content = path.read_bytes()
    reason = "STORE_DAMAGED"
    if damage == "no database":
        path.write_bytes(b"something else entirely" * 100)
    elif damage == "torn page":
        path.write_bytes(content[:4096] + b"\x5a" * 4096 * 3 + content[4096 * 4 :])
    elif damage == "cut short":
        path.write_bytes(content[: len(content) // 2 + 100])
    elif damage == "newer version":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
        reason = "STORE_VERSION"
    else:
        path.unlink()
        path.mkdir()
        reason = "DIRECTORY_UNUSABLE"
    with pytest.raises(HvdError) as caught:
        await opened(tmp_path)
    assert caught.value.reason == reason and caught.value.help
