"""Directories that are made ahead of their guests (hvd/guests/blank.py)."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hvapi.v1 import guest_pb2

from hvd.guests import blank, records
from hvd.guests.blank import BlankDirectories

FILES = ("guest.json", "console.log")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blank, "REST_SECONDS", 0.01)


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[BlankDirectories]:
    (tmp_path / "blank" / "left over").mkdir(parents=True)
    made = BlankDirectories(tmp_path / "blank", FILES, 2)
    await made.start()
    yield made
    await made.close()
    assert not (tmp_path / "blank").exists()


async def ready(tmp_path: Path, count: int) -> None:
    async with asyncio.timeout(10):
        while len(os.listdir(tmp_path / "blank")) != count:
            await asyncio.sleep(0.005)


async def test_one_becomes_a_guests_and_another_is_made(two: BlankDirectories, tmp_path: Path) -> None:
    assert sorted(os.listdir(tmp_path / "blank")) == ["0", "1"]  # nothing of an earlier daemon
    assert stat.S_IMODE((tmp_path / "blank").stat().st_mode) == 0o700
    assert two.take(tmp_path / "a") and two.take(tmp_path / "b") and not two.take(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    for path in (tmp_path / "a", *(tmp_path / "a").iterdir()):
        about = path.stat()
        assert stat.S_IMODE(about.st_mode) == (0o700 if path.is_dir() else 0o600)
        assert path.is_dir() or not about.st_size
    assert set(os.listdir(tmp_path / "a")) == set(FILES)
    await ready(tmp_path, 2)
    assert two.take(tmp_path / "c")


async def test_a_directory_of_an_earlier_run_stays(two: BlankDirectories, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "console.log").write_text("kept")
    assert not two.take(tmp_path / "a")
    assert (tmp_path / "a" / "console.log").read_text() == "kept"
    assert two.take(tmp_path / "b")  # it is there still


async def test_those_that_somebody_has_removed_are_made_again(two: BlankDirectories, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "blank")
    assert not two.take(tmp_path / "a") and not (tmp_path / "a").exists()
    async with asyncio.timeout(10):
        while not two.take(tmp_path / "b"):
            await asyncio.sleep(0.005)
    assert set(os.listdir(tmp_path / "b")) == set(FILES)


async def test_without_any_and_on_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    none = BlankDirectories(tmp_path / "none", FILES, 0)
    (tmp_path / "file").write_text("")
    impossible = BlankDirectories(tmp_path / "file" / "blank", FILES, 2)
    for each in (none, impossible):
        await each.start()
        assert not each.take(tmp_path / "a") and not (tmp_path / "a").exists()
        await each.close()
    assert not (tmp_path / "none").exists()


def test_preparing_one_keeps_its_files(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    (directory / "trace").touch()
    guest = guest_pb2.Guest(name="guests/a", uid="u")
    records.prepare_directory(directory, guest, blank=True)
    assert (directory / "trace").exists() and records.read_guest(directory) == guest
    records.prepare_directory(directory, guest)  # of an earlier run
    assert set(os.listdir(directory)) == {"guest.json"}
