"""hvctl cp: files into containers and out of them, running and stopped, hostile ones among them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hvapi.v1 import guest_pb2
from hvctl.sdk import AsyncClient, Client, HvctlError
from hvctl.sdk.copying import archive_of, unpack
from real_daemon import RealDaemon, wait_for
from test_containers import box, root  # noqa: F401  fixtures

SHADOW = "the host's /etc/shadow"


@pytest.fixture
def guest(box: RealDaemon) -> Iterator[RealDaemon]:  # noqa: F811
    """A daemon with a container "c" that runs; its /srv/evil and /srv/up lead where they should not."""
    box.ok("run", "-d", "--name", "c", "--image", "box", "-v", "kept:/data", "--tmpfs", "/tm:1M", "--", "sleep", "1000")
    tree = tar(("evil", "link", "/etc/shadow"), ("up", "link", "../../../../../.."), ("loop", "link", "loop"))
    box.ok("cp", "-", "c:/srv", stdin=tree)
    yield box


def tar(*entries: tuple[str, str, str], **fields: int) -> bytes:
    """entries: name, "file", "folder", "link" or "hard", content or where it leads."""
    types = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, text in entries:
            member = tarfile.TarInfo(name)
            member.type, member.mode = types[kind], 0o755 if kind == "folder" else 0o640
            for field, value in fields.items():
                setattr(member, field, value)
            if kind == "file":
                member.size = len(text)
            else:
                member.linkname = text
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def inside(daemon: RealDaemon, *words: str, guest: str = "c") -> str:
    return daemon.ok("exec", guest, "--", *words).stdout


def reason(daemon: RealDaemon, *words: str) -> str:
    refused = daemon.hvctl("cp", *words, "-o", "json")
    assert refused.returncode not in (0, 2), refused
    return str(json.loads(refused.stderr)["error"]["reason"])


def test_files_and_folders_go_where_cp_puts_them(guest: RealDaemon, tmp_path: Path) -> None:
    one, tree = tmp_path / "one", tmp_path / "tree"
    one.write_text("one\n")
    one.chmod(0o4750)
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "two").write_text("two\n")
    (tree / "link").symlink_to("/somewhere/absolute")
    os.link(tree / "deep" / "two", tree / "again")
    guest.ok("cp", str(one), "c:/srv/new")  # becomes it
    guest.ok("cp", str(one), "c:srv")  # goes into it
    guest.ok("cp", str(one), "c:/srv/new")  # replaces it
    assert inside(guest, "stat", "-c", "%a %u:%g %n", "/srv/new", "/srv/one") == "4750 0:0 /srv/new\n4750 0:0 /srv/one\n"
    guest.ok("cp", str(tree), "c:/srv/made")  # becomes it
    guest.ok("cp", str(tree), "c:/srv/made/")  # goes into it
    guest.ok("cp", f"{tree}/.", "c:/tmp")  # what is in it
    for where in ("/srv/made", "/srv/made/tree", "/tmp"):
        assert inside(guest, "cat", f"{where}/deep/two", f"{where}/again") == "two\ntwo\n"
        assert inside(guest, "stat", "-c", "%h %N", f"{where}/deep/two").startswith("2 ")
        assert inside(guest, "stat", "-c", "%N", f"{where}/link").rstrip().endswith("-> '/somewhere/absolute'")

    guest.ok("cp", "c:/srv/made", str(tmp_path / "out"))  # becomes it
    guest.ok("cp", "c:/srv/made", str(tmp_path / "out"))  # goes into it
    guest.ok("cp", "c:/srv/made/tree/.", str(tmp_path / "flat"))
    for found in (tmp_path / "out", tmp_path / "out" / "made", tmp_path / "flat"):
        assert (found / "deep" / "two").read_text() == "two\n" and (found / "again").samefile(found / "deep" / "two")
        assert os.readlink(found / "link") == "/somewhere/absolute"
    guest.ok("cp", "c:/srv/new", str(tmp_path / "back"))
    status = (tmp_path / "back").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o750, os.getuid())  # its set-user-ID bit stays inside


def test_a_tar_by_pipes(guest: RealDaemon) -> None:
    guest.ok("cp", "-", "c:/srv", stdin=tar(("a/b", "file", "text"), uid=33, gid=44))
    assert inside(guest, "stat", "-c", "%a %u:%g", "/srv/a/b") == "640 33:44\n"
    done = guest.ok("cp", "c:/srv/a", "-")
    with tarfile.open(fileobj=io.BytesIO(done.stdout.encode())) as archive:
        assert [(m.name, m.uid, m.gid) for m in archive if m.isfile()] == [("a/b", 33, 44)]
    guest.ok("cp", "-", "c:/data", stdin=done.stdout)
    assert inside(guest, "cat", "/data/a/b") == "text"


def test_the_sdk_for_asyncio(guest: RealDaemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")

    async def there_and_back() -> bytes:
        async with AsyncClient(guest.endpoint) as client:
            done = await client.copy_in("guests/c", "/srv/there", archive_of(str(tmp_path / "file")))
            assert (done.entries, done.size_bytes) == (1, 4)
            with pytest.raises(HvctlError) as refused:
                await client.copy_in("guests/c", "/srv", archive_of(str(tmp_path / "none")))
            assert refused.value.reason == "FILE_UNREADABLE"
            first, *rest = [response async for response in client.copy_out(name="guests/c", path="/srv/there")]
            assert (first.info.kind, first.info.size_bytes) == (guest_pb2.CopyOutInfo.FILE, 4)
            return b"".join(response.chunk for response in rest)

    with tarfile.open(fileobj=io.BytesIO(asyncio.run(there_and_back()))) as archive:
        assert archive.extractfile("there").read() == b"text"  # type: ignore[union-attr]


def test_links_of_a_guest_lead_nowhere_else(guest: RealDaemon, tmp_path: Path) -> None:
    before = Path("/etc/shadow").read_bytes()
    (tmp_path / "mine").write_text("mine")
    guest.ok("cp", str(tmp_path / "mine"), "c:/srv/evil")  # its own /etc/shadow, as cp would
    assert inside(guest, "cat", "/etc/shadow") == "mine"
    guest.ok("cp", str(tmp_path / "mine"), "c:/srv/up/tmp/here")
    assert inside(guest, "cat", "/tmp/here") == "mine"
    guest.ok("cp", "c:/srv/evil", str(tmp_path / "link"))
    assert os.readlink(tmp_path / "link") == "/etc/shadow"
    guest.ok("cp", "-L", "c:/srv/evil", str(tmp_path / "followed"))
    assert (tmp_path / "followed").read_text() == "mine"
    guest.ok("kill", "c")
    guest.ok("cp", "-L", "c:/srv/evil", str(tmp_path / "stopped"))
    guest.ok("cp", str(tmp_path / "mine"), "c:/srv/up/etc/passwd")
    assert (tmp_path / "stopped").read_text() == "mine"
    assert Path("/etc/shadow").read_bytes() == before and Path("/etc/passwd").read_text() != "mine"


def test_a_stopped_container(guest: RealDaemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    guest.ok("kill", "c")
    for path in ("/etc/file", "/data/file"):
        guest.ok("cp", str(tmp_path / "file"), f"c:{path}")
        assert guest.ok("cp", f"c:{path}", "-").stdout.count("kept") == 1
    for path in ("/tm/x", "/proc/x", "/dev/shm/x"):
        assert reason(guest, str(tmp_path / "file"), f"c:{path}") in ("COPY_REFUSED", "COPY_PATH_MISSING")
    assert guest.show("c")["state"] == "STOPPED"
    guest.ok("start", "c")
    assert inside(guest, "cat", "/etc/file", "/data/file") == "keptkept"
    assert inside(guest, "stat", "-c", "%u", "/etc/file", "/data/file") == "0\n0\n"
    guest.ok("create", "--name", "young", "--image", "box", "--read-only", "--", "cat", "/etc/file")
    assert reason(guest, str(tmp_path / "file"), "young:/etc/file") == "COPY_REFUSED"


def test_refusals(guest: RealDaemon, tmp_path: Path) -> None:
    file, folder, large = tmp_path / "file", tmp_path / "folder", tmp_path / "large"
    file.write_text("x")
    folder.mkdir()
    with large.open("wb") as content:
        content.truncate(4 << 20)
    guest.ok("run", "-d", "--name", "fast", "--image", "box", "--read-only", "--tmpfs", "/t:1M", "--", "sleep", "1000")
    cases = [
        ((str(file), "c:/no/where"), "COPY_PATH_MISSING"),
        ((str(file), "c:/nowhere/"), "COPY_PATH_MISSING"),
        ((str(file), "c:/etc/passwd/x"), "COPY_REFUSED"),
        ((str(file), "c:/srv/loop/x"), "COPY_REFUSED"),
        ((str(folder), "c:/etc/passwd"), "COPY_REFUSED"),
        ((str(file), "fast:/etc/x"), "COPY_REFUSED"),
        ((str(large), "fast:/t"), "DISK_FULL"),
        ((str(file), "nobody:/x"), "GUEST_NOT_FOUND"),
        ((str(tmp_path / "none"), "c:/x"), "FILE_UNREADABLE"),
        (("c:/none", str(tmp_path / "x")), "COPY_PATH_MISSING"),
        (("c:/dev/null", str(tmp_path / "x")), "COPY_REFUSED"),
        (("c:/etc/passwd", str(tmp_path / "no" / "where")), "COPY_TARGET"),
        (("c:/etc", str(file)), "COPY_TARGET"),
        (("nobody:/x", str(tmp_path / "x")), "GUEST_NOT_FOUND"),
    ]
    for words, expected in cases:
        assert reason(guest, *words) == expected, words
    archives = [
        (b"", "COPY_ARCHIVE"),
        (b"no tar at all" * 100, "COPY_ARCHIVE"),
        (tar(("a", "file", "x" * 5000))[:3000], "COPY_ARCHIVE"),
        (tar(("../x", "file", "x")), "COPY_ARCHIVE"),
        (tar(("x", "hard", "../../etc/passwd")), "COPY_ARCHIVE"),
        (tar(("x", "device", "")), "COPY_REFUSED"),
        (tar(("x", "file", ""), uid=1 << 20), "COPY_REFUSED"),
    ]
    with Client(guest.endpoint) as client:
        for archive, expected in archives:
            with pytest.raises(HvctlError) as refused:
                client.copy_in("guests/c", "/tmp", [archive], place=False, keep_owners=True)
            assert refused.value.reason == expected, archive[:100]
        with pytest.raises(HvctlError) as refused:
            client.copy_in("guests/c", "/etc/passwd", [tar(("x", "file", ""))], place=False)
        assert refused.value.reason == "COPY_REFUSED"
    assert inside(guest, "ls", "-A", "/tmp") == "" == inside(guest, "ls", "-A", "/t", guest="fast")


def test_a_guest_that_ends_in_the_middle_of_a_copy(guest: RealDaemon) -> None:
    child = guest.spawn("cp", "-", "c:/tmp")
    child.type(tar(("a", "file", "x" * 100_000))[:50_000].decode())
    wait_for(lambda: ".hvd-copy" in inside(guest, "ls", "-A", "/tmp"), "the copy has begun")
    guest.ok("kill", "c")
    assert child.end() == 1 and "the container ended in the middle of the copy" in child.err
    guest.ok("start", "c")
    assert inside(guest, "ls", "-A", "/tmp") == ""


def test_a_client_that_goes_leaves_nothing_half_done(guest: RealDaemon) -> None:
    guest.ok("kill", "c")
    child = guest.spawn("cp", "-", "c:/tmp")
    child.type(tar(("a", "file", "x" * 100_000))[:50_000].decode())
    child.type("x" * 1000)
    wait_for(lambda: helpers(guest), "the copy has begun")
    assert child.interrupt() == 130
    wait_for(lambda: not helpers(guest), "the end of the helper")
    guest.ok("start", "c")
    assert inside(guest, "ls", "-A", "/tmp") == ""


def helpers(daemon: RealDaemon) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if b"hvd.backends.container.files.helper" in words and str(daemon.state_dir).encode() in words:
            found.append(int(entry.parent.name))
    return found


HOSTILE = {
    "out by ..": [("top", "folder", ""), ("top/../../escaped", "file", "x")],
    "out by an absolute name": [("/tmp/escaped", "file", "x")],
    "through a link of its own": [("top", "folder", ""), ("top/link", "link", "/tmp"), ("top/link/escaped", "file", "x")],
    "through a link at its top": [("top", "link", "/tmp"), ("top/escaped", "file", "x")],
    "a hard link out": [("top", "folder", ""), ("top/x", "hard", "../../etc/passwd")],
    "a hard link through a link": [("top", "folder", ""), ("top/e", "link", "/etc"), ("top/x", "hard", "top/e/passwd")],
    "a device": [("top", "folder", ""), ("top/x", "device", "")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_guest_sends_stays_in_the_place_that_was_named(tmp_path: Path, case: str) -> None:
    info = guest_pb2.CopyOutInfo(kind=guest_pb2.CopyOutInfo.FOLDER, base_name="top")
    where = tmp_path / "where"
    with pytest.raises(HvctlError) as refused:
        unpack(info, iter([tar(*HOSTILE[case])]), str(where))
    assert refused.value.reason in ("COPY_UNSAFE", "COPY_TARGET")
    assert not Path("/tmp/escaped").exists() and not (tmp_path / "escaped").exists()
    assert not list(tmp_path.rglob(".hvctl-cp*"))


def test_a_local_link_is_not_followed_and_a_file_is_replaced_not_written(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "f").symlink_to(precious)
    (tmp_path / "to" / "d").symlink_to(tmp_path)
    file = guest_pb2.CopyOutInfo(kind=guest_pb2.CopyOutInfo.FILE, base_name="f")
    unpack(file, iter([tar(("f", "file", "new"))]), str(tmp_path / "to"))
    assert (precious.read_text(), (tmp_path / "to" / "f").read_text()) == ("mine", "new")
    folder = guest_pb2.CopyOutInfo(kind=guest_pb2.CopyOutInfo.FOLDER, base_name="d")
    with pytest.raises(HvctlError):
        unpack(folder, iter([tar(("d", "folder", ""), ("d/precious", "file", "x"))]), str(tmp_path / "to"))
    assert precious.read_text() == "mine"
