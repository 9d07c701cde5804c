"""Images behind disks: files that are not what they were, host disks that are full or fail."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from block_rig import GRANULE, RANGES, base, expected, fresh, pattern, read, refusal, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd.board.block import overlay as overlay_module
from hvd.board.block.image import cut, total
from hvd.board.block.overlay import Overlay, plan
from hvd.board.block.raw import RawImage
from hvd.errors import HvdError

__all__ = ["base"]


def test_a_base_that_was_cut_gives_errors_not_zeroes(tmp_path: Path) -> None:
    base = tmp_path / "image"
    base.write_bytes(pattern(8 * GRANULE))
    raw, image = RawImage(base, 8 * GRANULE), fresh(tmp_path, 8 * GRANULE, base)
    write(image, 7 * GRANULE, b"y" * GRANULE)
    os.truncate(base, 3 * GRANULE + 10)
    for each in (raw, image):
        assert read(each, 0, 3 * GRANULE + 10) == pattern(8 * GRANULE)[: 3 * GRANULE + 10]
        with pytest.raises(OSError, match="ends at") as raised:
            read(each, 3 * GRANULE, GRANULE)
        assert raised.value.errno == errno.EIO
    # A write that needs the rest of a granule cannot be done; whole granules can.
    with pytest.raises(OSError, match="ends at"):
        write(image, 5 * GRANULE, b"x")
    write(image, 5 * GRANULE, b"x" * GRANULE)
    assert read(image, 5 * GRANULE, GRANULE) == b"x" * GRANULE
    assert read(image, 7 * GRANULE, GRANULE) == b"y" * GRANULE
    image.close()
    raw.close()
    with pytest.raises(HvdError) as refused:
        Overlay(tmp_path / "disk", base, 8 * GRANULE)
    assert refused.value.reason == "DISK_DAMAGED"
    assert "ends at byte" in refused.value.message


def test_an_overlay_cut_under_its_guest_gives_errors(tmp_path: Path) -> None:
    image = fresh(tmp_path, 8 * GRANULE, None)
    write(image, 0, pattern(8 * GRANULE))
    image.flush()
    os.truncate(tmp_path / "disk", image._layout.data_offset + GRANULE)
    assert read(image, 0, GRANULE) == pattern(GRANULE)
    with pytest.raises(OSError, match="ends at"):
        read(image, GRANULE, GRANULE)
    image.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "tiny"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mounted], capture_output=True, timeout=10
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a small file system: {mount.stderr.decode().strip()}")
    yield mounted
    subprocess.run(["umount", mounted], check=True, timeout=10)


def test_a_host_disk_that_is_full_in_mid_write(tiny_disk: Path, base: Path) -> None:
    size = 1 << 20
    image = fresh(tiny_disk, size, base)
    model = expected(size, base)
    failed = 0
    for offset in range(0, size, 10000):
        data = pattern(10000, offset % 250)[: size - offset]
        try:
            write(image, offset, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failed += 1
            # Each byte is the old or the new one.
            found = read(image, offset, len(data))
            assert all(
                byte in (old, new)
                for byte, old, new in zip(found, model[offset : offset + len(data)], data, strict=True)
            )
            model[offset : offset + len(data)] = found
        else:
            model[offset : offset + len(data)] = data
    assert failed > 10
    assert read(image, 0, size) == model
    image.discard(0, size // 4)  # room again
    model[: size // 4] = bytes(size // 4)
    write(image, size // 2 + 100, b"after all" * 10)
    model[size // 2 + 100 : size // 2 + 190] = b"after all" * 10
    assert read(image, 0, size) == model
    image.close()
    image = Overlay(tiny_disk / "disk", base, size)
    assert read(image, 0, size) == model
    image.close()


@given(st.integers(1, 12), st.sampled_from([errno.ENOSPC, errno.EIO]), st.lists(RANGES, min_size=1, max_size=6))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_write_fails_the_disk_is_consistent(
    tmp_path_factory: pytest.TempPathFactory, base: Path, nth: int, number: int, writes: list[tuple[int, int]]
) -> None:
    size = 9 * GRANULE + 2560
    model = expected(size, base)
    directory = tmp_path_factory.mktemp("failing")
    image = fresh(directory, size, base)
    calls = 0
    real = overlay_module.write_all

    def failing(fd: int, offset: int, buffers: list[memoryview]) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            half = cut(buffers, 0, total(buffers) // 2)
            real(fd, offset, half)
            raise OSError(number, os.strerror(number))
        real(fd, offset, buffers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay_module, "write_all", failing)
        for seed, (start, length) in enumerate(writes):
            offset = min(start, size)
            data = pattern(min(length, size - offset), seed + 1)
            try:
                write(image, offset, data)
                model[offset : offset + len(data)] = data
                image.flush()
            except OSError:
                found = read(image, 0, size)
                assert found[:offset] == model[:offset]
                assert found[offset + len(data) :] == model[offset + len(data) :]
                old = model[offset : offset + len(data)]
                now = found[offset : offset + len(data)]
                assert all(byte in pair for byte, *pair in zip(now, old, data, strict=True))
                model = bytearray(found)
    image.flush()
    image.close()
    image = Overlay(directory / "disk", base, size)
    assert read(image, 0, size) == model
    image.close()


def test_a_failed_flush_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = fresh(tmp_path, 8 * GRANULE, None)
    write(image, 0, b"x" * 10)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(overlay_module.os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output"):
            image.flush()
    # The kernel would say that all is well now, although what it dropped is gone.
    with pytest.raises(OSError, match="an earlier flush"):
        image.flush()
    with pytest.raises(OSError, match="an earlier flush"):
        image.close()
    image.close()


def test_foreign_and_torn_overlays(tmp_path: Path, base: Path) -> None:
    size = 9 * GRANULE
    image = fresh(tmp_path, size, base)
    write(image, 0, pattern(GRANULE, 3))
    layout = image._layout
    image.close()
    path = tmp_path / "disk"
    whole = path.read_bytes()

    def broken(change: bytes, offset: int, part: str) -> None:
        path.write_bytes(whole[:offset] + change + whole[offset + len(change) :])
        found = refusal(path, base, size)
        assert found.reason == "DISK_DAMAGED"
        assert part in found.message, found.message
        assert "make it anew" in found.help

    broken(b"QFI\xfb", 0, "does not begin like")
    broken(b"\xff", 20, "checksum of its header")
    broken(struct.pack("<I", 2), 8, "format version 2")
    for maps in (layout.durable_offset, layout.written_offset):
        broken(b"\xff", maps + 200, f"map at {maps}")
    for length in (0, 100, 511, 512, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path, base, size).reason == "DISK_DAMAGED"
    path.write_bytes(whole)
    other = tmp_path / "other"
    other.write_bytes(base.read_bytes())
    assert "belongs to image image, not to other" in refusal(path, other, size).message
    assert "belongs to image image" in refusal(path, None, size).message
    assert "of a disk of" in refusal(path, base, size + 512).message
    Overlay(path, base, size).close()


@given(
    st.tuples(*[st.integers(0, 2**32 - 1)], *[st.integers(0, 2**64 - 1)] * 5),
    st.lists(st.sampled_from(range(6)), max_size=6),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_with_a_right_checksum_is_not_believed(
    tmp_path_factory: pytest.TempPathFactory, numbers: tuple[int, ...], right: list[int]
) -> None:
    """Whatever it says, opening takes no memory and no time to speak of: it is refused, or it is the file's own."""
    directory = tmp_path_factory.mktemp("header")
    layout = plan(9 * GRANULE, None, "x" * 36)
    true = (
        layout.granule, layout.size_bytes, layout.base_bytes, layout.durable_offset, layout.written_offset, layout.data_offset,
    )  # fmt: skip
    values = [true[place] if place in right else number for place, number in enumerate(numbers)]
    body = struct.pack("<8sIIQQQQQ64s36s", b"hvd-disk", 1, *values, b"", b"x" * 36)
    path = directory / "disk"
    path.write_bytes((body + struct.pack("<I", zlib.crc32(body))).ljust(layout.file_bytes, b"\0"))
    try:
        Overlay(path, None, 9 * GRANULE).close()
    except HvdError as error:
        assert error.reason == "DISK_DAMAGED"
