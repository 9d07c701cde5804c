"""Unpacked layers: kept while somebody names them or just asked for them, removed otherwise; nothing stays of a failed one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from oci import PACKED, digest_of, layer, zstd

from hvd.errors import HvdError
from hvd.images.layers import LayerStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


async def put(store: LayerStore, content: bytes) -> str:
    blob = store.directory.parent / "blob"
    blob.write_bytes(content)
    digest = digest_of(content)
    await store.unpack(digest, blob)
    return digest


async def test_what_is_collected(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "layers")
    one, two = [await put(store, layer((name, b"x"))) for name in "ab"]
    # Between unpacking and the image that names it lies some time.
    assert store.collect([]) == []
    store.unreferenced_age = 0
    assert store.collect([one]) == [two]
    assert (store.path(one) / "a").exists()
    with pytest.raises(HvdError) as caught:
        store.path(two)
    assert caught.value.reason == "LAYER_MISSING"


@pytest.mark.parametrize("how", PACKED)
async def test_packed_in_each_way(tmp_path: Path, how: str) -> None:
    store = LayerStore(tmp_path / "layers")
    digest = await put(store, PACKED[how](layer(("a", b"content"), owner=1234)))
    file = store.path(digest) / "a"
    assert file.read_bytes() == b"content" and file.stat().st_uid == 1234


async def test_whiteouts_become_overlays_own(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "layers")
    root = store.path(await put(store, layer((".wh.gone", b""), ("folder", None), ("folder/.wh..wh..opq", b""), ("folder/new", b""))))
    status = (root / "gone").stat()
    assert (status.st_rdev, oct(status.st_mode & 0o170000)) == (0, "0o20000")
    assert os.getxattr(root / "folder", "trusted.overlay.opaque") == b"y" and os.listdir(root / "folder") == ["new"]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 1000, zstd(b"nonsense" * 1000), PACKED["+gzip"](layer(("a", bytes(10_000))))[:-20]])
async def test_damaged(tmp_path: Path, content: bytes) -> None:
    store = LayerStore(tmp_path / "layers")
    with pytest.raises(HvdError) as caught:
        await put(store, content)
    assert caught.value.reason == "ARCHIVE_DAMAGED"
    assert not list((store.directory / "incoming").iterdir()) and not list((store.directory / "sha256").iterdir())


async def test_whoever_goes_takes_its_processes_along(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "layers")
    bomb = zstd(bytes(1 << 30))
    content = zstd(layer(("large", bytes(1 << 26)))) + bomb
    task = asyncio.create_task(put(store, content))
    while not (store.directory / "incoming").exists() or not list((store.directory / "incoming").iterdir()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((store.directory / "incoming").iterdir())
