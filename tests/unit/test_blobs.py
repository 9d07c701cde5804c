"""The blob store: what a name promises, and what is left behind when something goes wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvd.errors import HvdError
from hvd.images.blobs import UNREFERENCED_AGE, BlobStore, check_digest

CONTENT = b"a kernel" * 1000


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def upload(store: BlobStore, content: bytes, digest: str = "", size: int = -1, chunk: int = 999) -> None:
    with store.writer(digest or digest_of(content), len(content) if size < 0 else size) as writer:
        for start in range(0, len(content), chunk):
            writer.write(content[start : start + chunk])
        writer.commit()


def leftovers(store: BlobStore) -> list[Path]:
    return [path for path in store.directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("content", [b"", b"x", CONTENT])
def test_what_goes_in_comes_out(store: BlobStore, content: bytes) -> None:
    upload(store, content)
    digest = digest_of(content)
    assert store.path(digest).read_bytes() == content
    assert store.path(digest).name == digest.removeprefix("sha256:")
    assert store.size(digest) == len(content)
    assert leftovers(store) == [store.path(digest)]


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 64, "sha256:" + "../" * 21 + "0",
     "0" * 64, "sha256:" + "0" * 64 + "\n"],
)  # fmt: skip
def test_what_is_no_digest(store: BlobStore, digest: str) -> None:
    for ask in (store.path, check_digest, lambda digest: store.find([digest]), lambda digest: store.writer(digest, 1)):
        with pytest.raises(HvdError) as raised:
            ask(digest)
        assert raised.value.reason == "DIGEST_INVALID"


def test_unknown_blob(store: BlobStore) -> None:
    with pytest.raises(HvdError) as raised:
        store.path(digest_of(b"never uploaded"))
    assert raised.value.reason == "BLOB_NOT_FOUND"


@pytest.mark.parametrize(
    ("size", "digest", "reason"),
    [
        (len(CONTENT) + 1, digest_of(CONTENT), "BLOB_SIZE"),
        (len(CONTENT) - 1, digest_of(CONTENT), "BLOB_SIZE"),
        (0, digest_of(CONTENT), "BLOB_SIZE"),
        (len(CONTENT), digest_of(b"something else"), "DIGEST_MISMATCH"),
    ],
)
def test_an_upload_that_is_not_what_was_announced_leaves_nothing(
    store: BlobStore, size: int, digest: str, reason: str
) -> None:
    with pytest.raises(HvdError) as raised:
        upload(store, CONTENT, digest=digest, size=size)
    assert raised.value.reason == reason
    assert leftovers(store) == []


def test_a_negative_size(store: BlobStore) -> None:
    with pytest.raises(HvdError) as raised:
        store.writer(digest_of(CONTENT), -1)
    assert raised.value.reason == "BLOB_SIZE"


def test_an_abandoned_upload_leaves_nothing(store: BlobStore) -> None:
    with store.writer(digest_of(CONTENT), len(CONTENT)) as writer:
        writer.write(CONTENT[:100])
        assert len(leftovers(store)) == 1
    assert leftovers(store) == []


def test_abort_waits_for_the_write_under_way(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled upload's worker thread still writes: its descriptor must not be closed (and reused) under it."""
    writing, go_on = threading.Event(), threading.Event()
    real_write = os.pwrite

    def slow_write(descriptor: int, data: bytes, offset: int) -> int:
        writing.set()
        assert go_on.wait(10)
        return real_write(descriptor, data, offset)

    writer = store.writer(digest_of(CONTENT), len(CONTENT))
    monkeypatch.setattr("hvd.images.blobs.os.pwrite", slow_write)
    worker = threading.Thread(target=writer.write, args=(CONTENT,))
    worker.start()
    assert writing.wait(10)
    aborter = threading.Thread(target=writer.abort)
    aborter.start()
    aborter.join(0.05)
    assert aborter.is_alive()
    go_on.set()
    aborter.join(10)
    worker.join(10)
    assert leftovers(store) == []
    writer.write(b"after the end")  # a thread that comes late
    writer.commit()
    assert leftovers(store) == []


def test_an_upload_that_a_crash_cut_short_is_gone_at_the_next_start(store: BlobStore) -> None:
    store.writer(digest_of(CONTENT), len(CONTENT)).write(CONTENT[:10])
    assert len(leftovers(store)) == 1
    assert leftovers(BlobStore(store.directory)) == []


def test_the_same_blob_from_several_at_once(store: BlobStore) -> None:
    writers = [store.writer(digest_of(CONTENT), len(CONTENT)) for _ in range(3)]
    for writer in writers:
        writer.write(CONTENT)
    writers[0].commit()
    writers[2].abort()
    writers[1].commit()
    assert store.path(digest_of(CONTENT)).read_bytes() == CONTENT
    assert leftovers(store) == [store.path(digest_of(CONTENT))]


def test_find_and_add(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    digest = store.add(tmp_path / "file")
    assert digest == digest_of(CONTENT)
    assert store.add(tmp_path / "file") == digest
    assert store.find([digest_of(b"other"), digest]) == [digest]


class TestDiskFull:
    def check(self, raised: pytest.ExceptionInfo[HvdError], store: BlobStore) -> None:
        assert raised.value.reason == "DISK_FULL"
        assert str(store.directory) in raised.value.message
        assert leftovers(store) == []

    def test_more_than_there_is(self, store: BlobStore) -> None:
        with pytest.raises(HvdError) as raised:
            store.writer(digest_of(b""), 1 << 60)
        self.check(raised, store)

    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize("call", ["pwrite", "fsync"])
    def test_while_writing(self, store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, error: int) -> None:
        def full(*arguments: object) -> int:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(f"hvd.images.blobs.os.{call}", full)
        with pytest.raises(HvdError) as raised:
            upload(store, CONTENT)
        self.check(raised, store)

    @pytest.fixture
    def tiny_disk(self, tmp_path: Path) -> Iterator[Path]:
        mounted = tmp_path / "tiny"
        mounted.mkdir()
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], capture_output=True, timeout=10
        )
        if mount.returncode:
            pytest.skip(f"needs to mount a small file system: {mount.stderr.decode().strip()}")
        yield mounted
        subprocess.run(["umount", mounted], check=True, timeout=10)

    def test_a_disk_that_really_is_full(self, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = BlobStore(tiny_disk / "blobs")
        big = bytes(128 << 10)
        with pytest.raises(HvdError) as raised:
            upload(store, big)
        self.check(raised, store)
        # As when another upload takes the room meanwhile.
        monkeypatch.setattr("hvd.images.blobs.shutil.disk_usage", lambda path: _Free)
        with pytest.raises(HvdError) as raised:
            upload(store, big)
        self.check(raised, store)
        upload(store, CONTENT)  # room again
        assert store.path(digest_of(CONTENT)).read_bytes() == CONTENT


class _Free:
    free = 1 << 40


class TestCollect:
    def test_only_old_and_unreferenced_ones_go(self, store: BlobStore) -> None:
        contents = {name: name.encode() for name in ("old-used", "old-unused", "old-found", "new-unused")}
        digests = {name: digest_of(content) for name, content in contents.items()}
        for name, content in contents.items():
            upload(store, content)
            if name.startswith("old"):
                os.utime(store.path(digests[name]), (1, 1))
        store.find([digests["old-found"]])
        assert store.collect(lambda: [digests["old-used"]]) == [digests["old-unused"]]
        assert sorted(leftovers(store)) == sorted(
            store.path(digests[name]) for name in ("old-used", "old-found", "new-unused")
        )

    def test_only_one_that_is_no_longer_new_is_touched_when_it_is_found(self, store: BlobStore) -> None:
        upload(store, CONTENT)
        path, now = store.path(digest_of(CONTENT)), time.time()
        for age, touched in ((UNREFERENCED_AGE * 0.4, False), (UNREFERENCED_AGE * 0.6, True), (-UNREFERENCED_AGE, True)):
            os.utime(path, (now - age, now - age))
            before = path.stat()
            assert store.find([digest_of(CONTENT)]) == [digest_of(CONTENT)]
            after = path.stat()
            assert (after.st_ctime_ns != before.st_ctime_ns, abs(after.st_mtime - now) < 60) == (touched, touched)

    def test_nothing_old_asks_for_no_references(self, store: BlobStore) -> None:
        upload(store, CONTENT)

        def asked() -> list[str]:
            raise AssertionError("references are not needed")

        assert store.collect(asked) == []
