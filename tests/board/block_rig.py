"""Images behind disks, for tests of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from hvd.board.block.image import BlockImage
from hvd.board.block.overlay import Overlay, create_overlay
from hvd.errors import HvdError

GRANULE = 4096
# A base that ends within a granule, and disk sizes below, at and above its end, whole granules and not.
BASE_BYTES = 5 * GRANULE + 1300
SIZES = (3 * GRANULE + 512, BASE_BYTES // 512 * 512, 9 * GRANULE, 9 * GRANULE + 2560)


def read(image: BlockImage, offset: int, length: int) -> bytes:
    data = bytearray(length)
    image.read(offset, [memoryview(data)])
    return bytes(data)


def write(image: BlockImage, offset: int, data: bytes) -> None:
    image.write(offset, [memoryview(data)])


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((seed * 31 + number // 7) % 251 + 1 for number in range(length))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "image"
    path.write_bytes(pattern(BASE_BYTES))
    return path


def fresh(directory: Path, size: int, base: Path | None) -> Overlay:
    create_overlay(directory / "disk", size, base)
    return Overlay(directory / "disk", base, size)


def expected(size: int, base: Path | None) -> bytearray:
    content = base.read_bytes()[:size] if base else b""
    return bytearray(content + bytes(size - len(content)))


RANGES = st.tuples(st.integers(0, 9 * GRANULE + 2560), st.integers(0, 4 * GRANULE))


def refusal(path: Path, base: Path | None, size: int) -> HvdError:
    with pytest.raises(HvdError) as raised:
        Overlay(path, base, size)
    return raised.value
