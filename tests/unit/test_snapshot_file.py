"""The file of a snapshot: what is written comes back, and no byte of it can be changed, lost or forged unnoticed."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.memory import GuestMemory
from hvd.errors import HvdError
from hvd.snapshot import container
from hvd.snapshot.container import Reader, Section, Writer, ending, header, round_up
from hvd.snapshot.fields import table
from hvd.snapshot.pages import PAGE, crc32c, used_runs
from hvd.snapshot.sparse import read_file, write_file

SECTIONS = {"about": b"{}", "empty": b"", "memory": bytes(range(256)) * 40, "page": bytes([7]) * PAGE, "disk0": b"x"}


def write(path: Path, sections: dict[str, bytes] = SECTIONS) -> Path:
    with Writer(path) as writer:
        for name, data in sections.items():
            writer.add(name, data)
        writer.finish()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("snapshot") / "one").read_bytes()


def refusal(directory: Path, data: bytes) -> str:
    """The reason with which a file is refused; empty = it is taken."""
    path = directory / "changed"
    path.write_bytes(data)
    try:
        with Reader(path) as reader:
            reader.verify()
    except HvdError as error:
        return error.reason
    return ""


def test_comes_back(tmp_path: Path) -> None:
    with Reader(write(tmp_path / "one")) as reader:
        reader.verify()
        assert {name: reader.read(name) for name in reader.sections} == SECTIONS
        assert all(section.offset % PAGE == 0 for section in reader.sections.values())
        with pytest.raises(HvdError, match="no section other"):
            reader.read("other")


def test_crc32c_is_castagnolis() -> None:
    """RFC 3720, B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytearray(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283 == crc32c(b"6789", crc32c(b"12345"))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(1, 255))
    changed = bytearray(whole)
    changed[place] ^= value
    reason = refusal(tmp_path_factory.getbasetemp(), bytes(changed))
    assert reason == ("SNAPSHOT_FOREIGN" if place < 8 else "SNAPSHOT_DAMAGED")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_torn_or_longer_file_is_found(data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    length = data.draw(st.integers(0, len(whole) - 1))
    directory = tmp_path_factory.getbasetemp()
    assert refusal(directory, whole[:length]) in ("SNAPSHOT_FOREIGN", "SNAPSHOT_DAMAGED")
    assert refusal(directory, whole + data.draw(st.binary(min_size=1, max_size=100))) == "SNAPSHOT_DAMAGED"
    hole = whole[:length] + bytes(len(whole) - length)
    assert hole == whole or refusal(directory, hole) in ("SNAPSHOT_FOREIGN", "SNAPSHOT_DAMAGED")


@pytest.mark.parametrize("data", [b"", b"HVDSNAP", b"\x7fELF" + bytes(9000), b"HVDSNAP\n", b"HVDSNAP\n" + bytes(9000)])
def test_what_is_no_snapshot(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data) in ("SNAPSHOT_FOREIGN", "SNAPSHOT_DAMAGED")


def test_newer_version(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "VERSION", 2)
    newer = write(tmp_path / "newer").read_bytes()
    monkeypatch.undo()
    assert refusal(tmp_path, newer) == "SNAPSHOT_VERSION"
    assert refusal(tmp_path, whole) == ""


def forge(rows: object, size: int = 4 * PAGE) -> bytes:
    """A file whose table has a right checksum and says anything."""
    offset = round_up(size)
    table = json.dumps(rows).encode()
    checked = struct.pack("<QQII", offset, len(table), crc32c(table), 1)
    trailer = container.TRAILER.pack(offset, len(table), crc32c(table), 1, crc32c(checked), container.END_MAGIC)
    return header() + bytes(offset - PAGE) + table + trailer


ROW = {"name": "a", "offset": PAGE, "bytes": 3 * PAGE, "crc32c": crc32c(bytes(3 * PAGE))}


def test_a_forged_table_is_not_believed(tmp_path: Path) -> None:
    assert refusal(tmp_path, forge([ROW])) == ""
    for change in (
        {"offset": 0}, {"offset": -PAGE}, {"offset": 2 * PAGE}, {"offset": PAGE + 1}, {"offset": "x"}, {"offset": 1 << 70},
        {"bytes": -1}, {"bytes": 1 << 62}, {"bytes": 4 * PAGE}, {"bytes": 1.5}, {"bytes": True}, {"bytes": PAGE}, {"name": 3}, {"name": None},
        {"crc32c": None}, {"crc32c": -1},
    ):  # fmt: skip
        assert refusal(tmp_path, forge([ROW | change])) == "SNAPSHOT_DAMAGED", change
    for rows in ([], {}, None, 3, "x", [ROW, ROW], [[]], [{"name": "a"}], [ROW | {"bytes": PAGE}, ROW | {"offset": 2 * PAGE, "bytes": 2 * PAGE}]):
        assert refusal(tmp_path, forge(rows)) == "SNAPSHOT_DAMAGED", rows
    assert refusal(tmp_path, forge([json.loads("[" * 1 + "]" * 1)])) == "SNAPSHOT_DAMAGED"


@settings(max_examples=300, deadline=None)
@given(rows=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                         lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(ROW)), inner), max_leaves=20))  # fmt: skip
def test_any_table(rows: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert refusal(tmp_path_factory.getbasetemp(), forge(rows)) == "SNAPSHOT_DAMAGED"


def test_an_unfinished_one_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "one") as writer:
        writer.add("a", b"x")
        raise ZeroDivisionError
    with Writer(tmp_path / "two") as writer:
        writer.add("a", b"x")
        assert not (tmp_path / "two").exists()
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path) -> None:
    """/dev/full, whose every write fails with ENOSPC."""
    (tmp_path / "one.new").symlink_to("/dev/full")
    with pytest.raises(HvdError) as error, Writer(tmp_path / "one") as writer:
        writer.finish()
    assert error.value.reason == "DISK_FULL"
    assert not (tmp_path / "one").exists()


def test_sections_can_be_appended_by_a_new_table(tmp_path: Path) -> None:
    """As an export carries blobs."""
    path = write(tmp_path / "one")
    with Reader(path) as reader:
        sections, end = list(reader.sections.values()), reader.table_offset
    with path.open("rb+") as file:
        file.truncate(end)
        file.seek(end)
        file.write(b"blob".ljust(PAGE, b"\0"))
        file.write(ending([*sections, Section("more", end, 4, crc32c(b"blob"))], end + PAGE))
    with Reader(path) as reader:
        reader.verify()
        assert reader.read("more") == b"blob"
        assert reader.read("memory") == SECTIONS["memory"]


def test_sparse_files(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(100 << 20)
        file.seek(5 << 20)
        file.write(os.urandom(70_000))
        file.seek((100 << 20) - 3)
        file.write(b"end")
    with Writer(tmp_path / "one") as writer:
        write_file(writer, "disk0", source)
        assert writer.finish() < 1 << 20
    with Reader(tmp_path / "one") as reader:
        read_file(reader, "disk0", target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20


def test_only_pages_in_use(tmp_path: Path) -> None:
    """Pages that were never written, and those that are zero again, are not in a snapshot; looking allocates none."""
    numbers = random.Random(1)
    with GuestMemory(64 << 20) as memory:
        written = sorted(numbers.sample(range(64 << 8), 300))
        for page in written:
            memory.write(page * PAGE + numbers.randrange(PAGE), b"\1")
        zeroed = written[::3]
        for page in zeroed:
            memory.write(page * PAGE, bytes(PAGE))
        before = memory.allocated_bytes()
        found = [page for start, length in used_runs(memory) for page in range(start // PAGE, (start + length) // PAGE)]
        assert found == [page for page in written if page not in zeroed]
        assert memory.allocated_bytes() == before


def test_the_documentation_lists_the_boards_fields() -> None:
    """`python -m hvd.snapshot.fields` prints what is to stand there."""
    assert table() in (Path(__file__).parents[2] / "docs" / "snapshots.md").read_text(encoding="utf-8")
