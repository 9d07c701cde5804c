"""What `hvctl image import` makes of files and folders before the daemon hears of them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2
from hvctl import rootfs
from hvctl.filekind import kind_of
from hvctl.sdk import blobs
from hvctl.sdk.errors import HvctlError
from hvctl.values import DISK, DiskValue


def at(offset: int, magic: bytes, size: int = 64 << 10) -> bytes:
    content = bytearray(size)
    content[offset : offset + len(magic)] = magic
    return bytes(content)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return buffer.getvalue()


LINUX = bytearray(at(0x202, b"HdrS"))
LINUX[510:512] = b"\x55\xaa"
HYBRID = bytearray(at(0x8001, b"CD001"))
HYBRID[510:512] = b"\x55\xaa"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bytes(LINUX), "kernel"),
        (b"\x7fELF" + bytes(100), "kernel"),
        (bytes(HYBRID), "cdrom"),
        (b"070701" + bytes(100), "initrd"),
        (gzip.compress(b"070701" + bytes(1000), mtime=0), "initrd"),
        (lzma.compress(b"070701" + bytes(1000)), "initrd"),
        (bz2.compress(b"070701" + bytes(1000)), "initrd"),
        (tar(), "rootfs"),
        (gzip.compress(tar(), mtime=0), "rootfs"),
        (at(510, b"\x55\xaa", 512), "disk"),
        (at(512, b"EFI PART"), "disk"),
        (at(1080, b"\x53\xef"), "disk"),
        (at(0, b"XFSB"), "disk"),
    ],
)
def test_kinds(tmp_path: Path, content: bytes, kind: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert kind_of(str(file)) == kind
    assert kind_of(str(tmp_path)) == "rootfs"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "FILE_EMPTY"),
        (b"QFI\xfb", "DISK_NOT_RAW"),
        (at(64, b"\x7f\x10\xda\xbe"), "DISK_NOT_RAW"),
        (b"text", "FILE_KIND_UNKNOWN"),
        (gzip.compress(b"text", mtime=0), "FILE_KIND_UNKNOWN"),
        (gzip.compress(tar(), mtime=0)[:20], "FILE_KIND_UNKNOWN"),
        (b"\x1f\x8bnonsense", "FILE_KIND_UNKNOWN"),
        (b"\xfd7zXZ\0nonsense", "FILE_KIND_UNKNOWN"),
    ],
)
def test_what_has_no_kind(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(HvctlError) as raised:
        kind_of(str(file))
    assert raised.value.reason == reason


@pytest.mark.parametrize("path", ["/dev/zero", "/nonexistent", "with\0nul"])
def test_what_is_no_file(path: str) -> None:
    with pytest.raises(HvctlError) as raised:
        kind_of(path)
    assert raised.value.reason == "FILE_UNREADABLE"


# ---- uploads


SPANS = [
    [],
    [(0, 10)],
    [(5 << 20, 10)],
    [(0, 1), ((1 << 20) - 1, 2), (3 << 20, 1 << 20)],
    [((8 << 20) - 1, 1)],
]


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("size", [0, 1, 8 << 20])
def test_frames_are_the_file_without_its_zeroes(tmp_path: Path, spans: list[tuple[int, int]], size: int) -> None:
    file = tmp_path / "file"
    with file.open("wb") as sparse:
        sparse.truncate(size)
        for offset, length in spans:
            if offset + length <= size:
                sparse.seek(offset)
                sparse.write(os.urandom(length - 1) + b"x")
    content = file.read_bytes()
    info = blobs.file_blob(file)
    assert (info.digest, info.size_bytes) == ("sha256:" + hashlib.sha256(content).hexdigest(), size)
    frames = list(blobs.upload_frames(file, info))
    assert frames[0].info == info
    sent = b"".join(frame.chunk or bytes(frame.zeroes) for frame in frames[1:])
    assert sent == content
    assert sum(blobs.frame_bytes(frame) for frame in frames[1:]) == size
    assert sum(frame.zeroes for frame in frames[1:]) == info.zero_bytes
    assert all(len(frame.chunk) <= blobs.CHUNK_BYTES for frame in frames[1:])
    if size == 8 << 20 and spans != SPANS[3]:
        assert info.zero_bytes >= 6 << 20


def test_a_huge_hole_is_several_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blobs, "ZEROES_BYTES", 1000)
    file = tmp_path / "file"
    with file.open("wb") as sparse:
        sparse.truncate(2500)
    frames = list(blobs.upload_frames(file, blobs.file_blob(file)))[1:]
    assert [frame.zeroes for frame in frames] == [1000, 1000, 500]


def test_too_large(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as sparse:
        sparse.truncate(blobs.MOST_LOADED_BYTES + 1)
    with pytest.raises(HvctlError) as raised:
        blobs.file_blob(file)
    assert raised.value.reason == "FILE_TOO_LARGE"


# ---- folders


def folder(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "tool").write_bytes(b"tool")
    (path / "bin" / "tool").chmod(0o4755)
    (path / "a link").symlink_to("bin/tool")
    os.link(path / "bin" / "tool", path / "second")
    os.mkfifo(path / "pipe")
    (path / "\udcff.bin").write_bytes(b"no UTF-8")
    for each in (path, path / "bin", *(p for p in path.rglob("*") if not p.is_symlink())):
        os.utime(each, (1e9, 1e9))
    os.utime(path / "a link", (1e9, 1e9), follow_symlinks=False)
    return path


def test_a_folder_is_always_the_same_tar(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        buffer = io.BytesIO()
        assert rootfs.pack(str(folder(tmp_path / name)), buffer) == []
        made.append(buffer.getvalue())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        members = {member.name: member for member in archive}
        tool = archive.extractfile("./bin/tool") or archive.extractfile("./second")
        assert tool is not None and tool.read() == b"tool"
    assert members["."].isdir() and members["./pipe"].isfifo()
    assert members["./bin/tool"].mode == 0o4755 and members["./bin/tool"].uid == os.geteuid()
    assert members["./a link"].linkname == "bin/tool"
    assert sorted(member.name for member in members.values() if member.islnk()) == ["./bin/tool"]
    assert "./\udcff.bin" in members


def test_extended_attributes(tmp_path: Path) -> None:
    path = folder(tmp_path / "root")
    try:
        os.setxattr(path / "second", "user.note", b"\xff\0binary")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    buffer = io.BytesIO()
    rootfs.pack(str(path), buffer)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        found = archive.getmember("./second").pax_headers["SCHILY.xattr.user.note"]
    assert found.encode("utf-8", "surrogateescape") == b"\xff\0binary"


def test_sockets_are_left_out(tmp_path: Path) -> None:
    import socket

    path = folder(tmp_path / "r")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "socket"))
        assert rootfs.pack(str(path), io.BytesIO()) == ["./socket"]


def test_a_program_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "SBIN", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HvctlError) as raised:
        rootfs.make_disk(str(tmp_path), tmp_path / "disk", 0)
    assert raised.value.reason == "PROGRAM_MISSING"
    assert "e2fsprogs" in raised.value.help


# ---- --disk


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("debian", DiskValue("debian", False, "", False, 0)),
        ("debian,ro", DiskValue("debian", True, "", False, 0)),
        ("debian,bus=ide,size=10G", DiskValue("debian", False, "ide", False, 10 << 30)),
        ("iso,cdrom", DiskValue("iso", False, "", True, 0)),
        ("size=1G", DiskValue("", False, "", False, 1 << 30)),
        ("bus=virtio,size=512", DiskValue("", False, "virtio", False, 512)),
    ],
)
def test_disks(text: str, value: DiskValue) -> None:
    assert DISK.convert(text, None, None) == value
    assert guest_pb2.Disk.Bus.Value(value.bus.upper() or "BUS_UNSPECIFIED") in guest_pb2.Disk.Bus.values()
