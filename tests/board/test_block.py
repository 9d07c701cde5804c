"""Images behind disks: what they read and write, compared with a plain bytearray."""

from __future__ import annotations

import errno
import itertools
import stat
from pathlib import Path

import pytest
from block_rig import BASE_BYTES, GRANULE, RANGES, SIZES, base, expected, fresh, pattern, read, refusal, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd.board.block import close_disks, open_disks
from hvd.board.block import overlay as overlay_module
from hvd.board.block.image import cut, total
from hvd.board.block.overlay import Overlay, create_overlay, plan
from hvd.board.block.raw import RawImage
from hvd.board.block.sparse import copy_sparse, extents
from hvd.board.hot import HotBoard
from hvd.board.spec import DiskSpec
from hvd.errors import HvdError
from hvd.trace.counters import DISK_FIELDS
from hvd.trace.points import BackendId

__all__ = ["base"]


def split(data: memoryview, cuts: list[int]) -> list[memoryview]:
    """A scatter list: the data in pieces, some of them empty."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), RANGES, st.integers(1, 250), st.lists(st.integers(0, 1 << 15), max_size=4)),
        st.tuples(st.just("discard"), RANGES),
        st.tuples(st.just("read"), RANGES, st.just(0), st.lists(st.integers(0, 1 << 15), max_size=4)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


@given(st.sampled_from(SIZES), st.booleans(), OPERATIONS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_overlay_is_a_disk(
    tmp_path_factory: pytest.TempPathFactory, base: Path, size: int, blank: bool, operations: list[tuple]
) -> None:
    below = None if blank else base
    model = expected(size, below)
    directory = tmp_path_factory.mktemp("overlay")
    image = fresh(directory, size, below)
    for name, *arguments in operations:
        if arguments:
            offset = min(arguments[0][0], size)
            length = min(arguments[0][1], size - offset)
        if name == "write":
            data = pattern(length, arguments[1])
            image.write(offset, split(memoryview(data), arguments[2]))
            model[offset : offset + length] = data
        elif name == "discard":
            image.discard(offset, length)
            model[offset : offset + length] = bytes(length)
        elif name == "read":
            found = bytearray(length)
            image.read(offset, split(memoryview(found), arguments[2]))
            assert found == model[offset : offset + length]
        elif name == "flush":
            image.flush()
        else:
            image.close()
            image = Overlay(directory / "disk", below, size)
    assert read(image, 0, size) == model
    image.close()
    image.close()
    image = Overlay(directory / "disk", below, size)
    assert read(image, 0, size) == model
    image.close()
    if below is not None:
        assert base.read_bytes() == pattern(BASE_BYTES)


@given(st.integers(0, 12 * 512), st.integers(0, 12 * 512), st.integers(1, 12))
@settings(deadline=None)
def test_a_raw_image_reads_its_file_and_then_zeroes(base: Path, offset: int, length: int, sectors: int) -> None:
    size = sectors * 512 + BASE_BYTES // 512 * 512 - 6 * 512
    image = RawImage(base, size)
    model = expected(size, base)
    offset = min(offset + BASE_BYTES - 6 * 512, size)
    length = min(length, size - offset)
    assert read(image, offset, length) == model[offset : offset + length]
    for call in (lambda: write(image, 0, b"x"), lambda: image.discard(0, 512)):
        with pytest.raises(OSError, match="read-only") as raised:
            call()
        assert raised.value.errno == errno.EROFS
    image.close()
    image.close()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 9 * GRANULE + 1), (9 * GRANULE, 1)])
def test_what_is_outside_is_the_devices_bug(tmp_path: Path, base: Path, offset: int, length: int) -> None:
    for image in (fresh(tmp_path, 9 * GRANULE, base), RawImage(base, 9 * GRANULE)):
        with pytest.raises(ValueError, match="not within"):
            read(image, offset, length)
        image.close()


def test_more_buffers_than_one_call_takes(tmp_path: Path, base: Path) -> None:
    image = fresh(tmp_path, 9 * GRANULE, base)
    data = pattern(3000, 9)
    image.write(100, split(memoryview(data), list(range(3000))))
    found = bytearray(3000)
    image.read(100, split(memoryview(found), list(range(3000))))
    assert found == data
    image.close()


def test_cut() -> None:
    buffers = [memoryview(b"abc"), memoryview(b""), memoryview(b"defg"), memoryview(b"h")]
    for start in range(9):
        for length in range(9 - start):
            part = cut(buffers, start, length)
            assert b"".join(part) == b"abcdefgh"[start : start + length]
            assert total(part) == length


# ---- room


def test_an_overlay_takes_the_room_of_what_was_written(tmp_path: Path) -> None:
    size = 1 << 40
    image = fresh(tmp_path, size, None)
    path = tmp_path / "disk"
    empty = path.stat().st_blocks * 512
    assert empty <= 64 << 10
    write(image, size - (1 << 20), pattern(1 << 20))
    image.flush()
    assert 1 << 20 <= path.stat().st_blocks * 512 <= (1 << 20) + (64 << 10)
    image.discard(0, size)
    image.flush()
    assert path.stat().st_blocks * 512 <= 128 << 10
    assert read(image, size - 4096, 4096) == bytes(4096)
    image.close()


def test_granules_grow_with_the_disk() -> None:
    assert plan(256 << 30, None, "").granule == GRANULE
    assert plan((256 << 30) + 512, None, "").granule == 2 * GRANULE
    huge = plan(8 << 40, None, "")
    assert huge.granules == 1 << 26
    assert huge.file_bytes < 16 << 40  # ext4


def test_a_large_granule(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "MOST_GRANULES", 2)
    image = fresh(tmp_path, 9 * GRANULE, base)
    assert image._layout.granule == 8 * GRANULE
    write(image, 100, b"x" * 10)
    model = expected(9 * GRANULE, base)
    model[100:110] = b"x" * 10
    assert read(image, 0, 9 * GRANULE) == model
    image.close()


def test_without_holes_zeroes_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = fresh(tmp_path, 9 * GRANULE, None)
    write(image, 0, pattern(9 * GRANULE))

    class Libc:
        @staticmethod
        def fallocate(*_: int) -> int:
            return -1

    monkeypatch.setattr("hvd.board.block.sparse._libc", Libc)
    monkeypatch.setattr("hvd.board.block.sparse.ctypes.get_errno", lambda: errno.EOPNOTSUPP)
    image.discard(GRANULE, 2 * GRANULE)
    assert read(image, 0, 4 * GRANULE) == pattern(GRANULE) + bytes(2 * GRANULE) + pattern(4 * GRANULE)[3 * GRANULE :]
    monkeypatch.setattr("hvd.board.block.sparse.ctypes.get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        image.discard(0, GRANULE)
    image.close()


def test_sparse_copies(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        for offset in (0, 10 << 20, (64 << 20) - 5):
            file.seek(offset)
            file.write(b"hello")
    with source.open("rb") as one, target.open("wb") as other:
        copy_sparse(one.fileno(), other.fileno())
        assert len(list(extents(one.fileno()))) == 3
    assert target.stat().st_blocks * 512 < 1 << 20
    assert target.read_bytes() == source.read_bytes()
    empty = tmp_path / "empty"
    empty.touch()
    with empty.open("rb") as one:
        assert list(extents(one.fileno())) == []


# ---- errors of the host


# ---- files that are none of ours, or torn


def test_two_writers(tmp_path: Path, base: Path) -> None:
    image = fresh(tmp_path, 9 * GRANULE, base)
    assert refusal(tmp_path / "disk", base, 9 * GRANULE).reason == "DISK_IN_USE"
    image.close()
    Overlay(tmp_path / "disk", base, 9 * GRANULE).close()


def test_files_are_private(tmp_path: Path) -> None:
    fresh(tmp_path, 4096, None).close()
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o600


# ---- the disks of a machine


def counted(board: HotBoard, slot: int) -> dict[str, int]:
    return dict(zip(DISK_FIELDS, board.disk_counters(slot), strict=False))


def test_what_goes_through_a_machines_disks_is_counted(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture
) -> None:
    board = HotBoard(BackendId.EMULATION)
    create_overlay(tmp_path / "disk0", 9 * GRANULE, base)
    specs = [
        DiskSpec("disk0", str(base), str(tmp_path / "disk0"), 9 * GRANULE),
        DiskSpec("disk1", str(base), "", 9 * GRANULE),
    ]
    first, second = open_disks(specs, board)
    write(first.image, 0, b"x" * 100)
    read(first.image, 0, 1000)
    first.image.flush()
    first.image.discard(0, 512)
    with pytest.raises(OSError, match="read-only"):
        write(second.image, 0, b"x")
    assert (first.image.read_only, second.image.read_only) == (False, True)
    found = counted(board, 0)
    assert {name: found[name] for name in found if name != "busy_ns"} == {
        "present": 1, "read_bytes": 1000, "written_bytes": 100, "reads": 1, "writes": 1, "flushes": 1, "discards": 1, "errors": 0,
    }  # fmt: skip
    assert found["busy_ns"] > 0
    assert (counted(board, 1)["writes"], counted(board, 1)["errors"]) == (0, 1)
    close_disks((first, second))
    close_disks((first, second))
    assert capfd.readouterr().err == ""


def test_all_disks_or_none(tmp_path: Path, base: Path) -> None:
    board = HotBoard(BackendId.EMULATION)
    create_overlay(tmp_path / "disk0", 9 * GRANULE, base)
    good = DiskSpec("disk0", str(base), str(tmp_path / "disk0"), 9 * GRANULE)
    for bad, reason in (
        (DiskSpec("disk1", "", str(tmp_path / "none"), 512), "DISK_UNUSABLE"),
        (DiskSpec("disk1", "/nonexistent", "", 512), "DISK_UNUSABLE"),
        (DiskSpec("disk1", "", "", 512), "DISK_UNUSABLE"),
        (DiskSpec("disk1", "", str(base), 512), "DISK_DAMAGED"),
        (DiskSpec("disk1", str(base), str(tmp_path / "disk0"), 9 * GRANULE), "DISK_IN_USE"),
    ):
        with pytest.raises(HvdError) as raised:
            open_disks([good, bad], board)
        assert raised.value.reason == reason
    close_disks(open_disks([good], board))  # nobody holds it


def test_a_flush_that_fails_at_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    create_overlay(tmp_path / "disk0", 512, None)
    disks = open_disks([DiskSpec("disk0", "", str(tmp_path / "disk0"), 512)], HotBoard(BackendId.EMULATION))
    write(disks[0].image, 0, b"x")

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(overlay_module.os, "fdatasync", failing)
    close_disks(disks)
    assert "disk0 could not be flushed" in capfd.readouterr().err
