"""Layers that mean harm, and whiteouts wherever they stand. What is refused leaves nothing."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from oci import layer, zstd
from test_layers import put

from hvd.errors import HvdError
from hvd.images.layers import LayerStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


def members(*fields: dict[str, Any]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        for each in fields:
            member = tarfile.TarInfo()
            member.mode = 0o755
            for name, value in each.items():
                setattr(member, name, value)
            made.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return archive.getvalue()


LINK, HARD, DIRECTORY = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
UNSAFE = {
    "..": [{"name": "../x"}],
    ".. in the middle": [{"name": "a/../../x"}],
    "a hard link out by ..": [{"name": "x", "type": HARD, "linkname": "../../etc/passwd"}],
    "a disk": [{"name": "x", "type": tarfile.BLKTYPE, "devmajor": 8}],
    "memory": [{"name": "x", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 1}],
    "a whiteout of ..": [{"name": "a/.wh..."}],
    "a whiteout of .": [{"name": "a/.wh.."}],
    "an unknown type": [{"name": "x", "type": b"V"}],
}


@pytest.mark.parametrize("case", UNSAFE)
async def test_what_would_leave_its_root(tmp_path: Path, case: str) -> None:
    store = LayerStore(tmp_path / "layers")
    with pytest.raises(HvdError) as caught:
        await put(store, members(*UNSAFE[case]))
    assert caught.value.reason == "ARCHIVE_UNSAFE", caught.value
    left_nothing(store)


def left_nothing(store: LayerStore) -> None:
    for name in ("incoming", "sha256"):
        assert not list((store.directory / name).iterdir())


async def test_links_lead_to_the_layers_own_root(tmp_path: Path) -> None:
    """Absolute ones, those with .., and files behind them: whatever they name is below the layer."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("as it was")
    store = LayerStore(tmp_path / "layers")
    above = "../" * 20
    content = members(
        {"name": "absolute", "type": LINK, "linkname": str(victim)}, {"name": "absolute/file", "size": 3},
        {"name": "relative", "type": LINK, "linkname": f"{above}{victim}"}, {"name": "relative/other", "size": 3},
        {"name": "self", "type": LINK, "linkname": "self"},
        {"name": "hard", "type": HARD, "linkname": str(victim / "file")},  # the layer's own, by now
    )  # fmt: skip
    root = store.path(await put(store, content))
    assert (victim / "file").read_text() == "as it was" and os.listdir(victim) == ["file"]
    inside = root / str(victim).lstrip("/")
    assert (inside / "file").read_bytes() == (root / "hard").read_bytes() == bytes(3) and (inside / "other").exists()
    with pytest.raises(HvdError) as caught:
        await put(store, members({"name": "x", "type": HARD, "linkname": "/etc/passwd"}))
    assert caught.value.reason == "ARCHIVE_DAMAGED"  # there is none in the layer


def opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


@pytest.mark.parametrize("first", [True, False])
async def test_a_whiteout_counts_for_lower_layers_wherever_it_stands(tmp_path: Path, first: bool) -> None:
    store = LayerStore(tmp_path / "layers")
    whiteouts: list[tuple[str, bytes | None]] = [(".wh.file", b""), (".wh.folder", b""), (".wh.gone", b""), (".wh.gone", b"")]
    own: list[tuple[str, bytes | None]] = [("file", b"new"), ("folder", None), ("folder/new", b"")]
    root = store.path(await put(store, layer(*(whiteouts + own if first else own + whiteouts))))
    assert (root / "file").read_bytes() == b"new"
    assert os.listdir(root / "folder") == ["new"] and opaque(root / "folder") and not opaque(root)
    assert (root / "gone").is_char_device() and (root / "gone").stat().st_rdev == 0
    # A folder that the archive does not name itself is in the whiteout's place, too.
    root = store.path(await put(store, layer((".wh.folder", b""), ("folder/deep/new", b""))))
    assert opaque(root / "folder") and not opaque(root / "folder/deep")


async def test_sparse_files_take_no_room(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "layers")
    root = store.path(await put(store, gzip.compress(layer(("sparse", bytes(64 << 20) + b"end")), 1)))
    status = (root / "sparse").stat()
    assert status.st_size == (64 << 20) + 3 and status.st_blocks * 512 < 4 << 20
    assert (root / "sparse").read_bytes().endswith(b"\0end")


def gnu_sparse(size: int) -> bytes:
    """A file of nothing but a hole, by the PAX format 0.1 (GNU tar's manual, "PAX Format, Versions 0.0 and 0.1")."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as made:
        member = tarfile.TarInfo("sparse")
        member.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": f"{size},0", "GNU.sparse.name": "sparse"}
        made.addfile(member)
    return archive.getvalue()


async def test_bombs_are_stopped_before_they_take_what_they_say(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "layers", most_bytes=100 << 20)
    for content in (gnu_sparse(1 << 50), gzip.compress(layer(("x", bytes(101 << 20))), 1)):
        with pytest.raises(HvdError) as caught:
            await put(store, content)
        assert caught.value.reason == "ARCHIVE_TOO_LARGE"
        left_nothing(store)


async def test_a_header_that_fills_memory(tmp_path: Path) -> None:
    """The process that unpacks may have 1 GiB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 700 << 20
    content = await asyncio.to_thread(lambda: zstd(header.tobuf() + bytes(header.size)))
    store = LayerStore(tmp_path / "layers")
    with pytest.raises(HvdError) as caught:
        await put(store, content)
    assert caught.value.reason == "ARCHIVE_TOO_LARGE" and "memory" in str(caught.value)
    left_nothing(store)


async def test_headers_without_end(tmp_path: Path) -> None:
    """Python's tarfile reads each in the call for the one before it."""
    header = tarfile.TarInfo("x").create_pax_global_header({"a": "b"})
    store = LayerStore(tmp_path / "layers")
    with pytest.raises(HvdError) as caught:
        await put(store, header * 5000)
    assert caught.value.reason == "ARCHIVE_DAMAGED"
    left_nothing(store)
