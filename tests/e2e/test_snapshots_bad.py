"""Snapshots: refusals, damaged files, cancelled and failing ones. Whatever is refused changes nothing and leaves nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hvctl.sdk import Client, HvctlError
from real_daemon import Done, RealDaemon, kernel, wait_for
from test_bad_surroundings import on_small_disk

from hvd.snapshot import container
from hvd.snapshot.container import Reader, Writer

MIB = 1 << 20
LARGE = "64M"


def refused(done: Done, reason: str, code: int | None = None) -> None:
    """Of a call with `-o json`."""
    assert f'"{reason}"' in done.stderr, done
    assert done.returncode != 0 and (code is None or done.returncode == code), done


def ask(daemon: RealDaemon, *words: str) -> Done:
    return daemon.hvctl("-o", "json", *words)


def files(daemon: RealDaemon) -> list[str]:
    """Every file that has to do with a snapshot."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), daemon.state_dir)
        for where in ("guests", "snapshots-incoming")
        for folder, _, names in os.walk(daemon.state_dir / where)  # which takes no offence at folders that go meanwhile
        for name in names
        if not name.startswith("disk")
    )


@pytest.fixture
def ticker(daemon: RealDaemon) -> str:
    name = daemon.run("ticker.elf", name="ticker")
    daemon.wait_logs(name, "tick 2")
    return name


@pytest.fixture
def exported(daemon: RealDaemon, ticker: str, tmp_path: Path) -> Path:
    daemon.ok("snapshot", ticker, "one")
    daemon.ok("snapshots", "export", f"{ticker}/one", str(tmp_path / "file"))
    return tmp_path / "file"


def ticks(daemon: RealDaemon, name: str) -> int:
    return daemon.ok("logs", name).stdout.count("tick ")


def goes_on(daemon: RealDaemon, name: str) -> None:
    before, pid = ticks(daemon, name), daemon.runner(name)
    wait_for(lambda: ticks(daemon, name) > before, "the guest goes on")
    assert daemon.runner(name) == pid


def test_names(daemon: RealDaemon, ticker: str) -> None:
    for bad in ("-a", "A", "a_b", "a" * 64, "..", "a.b", "ä"):
        refused(ask(daemon, "snapshot", ticker, "--", bad), "NAME_INVALID")
    daemon.ok("snapshot", ticker, "one")
    refused(ask(daemon, "snapshot", ticker, "one"), "NAME_TAKEN")
    made_up = daemon.ok("snapshot", ticker, "-o", "name").stdout.strip()
    assert made_up.startswith("guests/ticker/snapshots/2")
    refused(ask(daemon, "snapshot", "nobody", "one"), "GUEST_NOT_FOUND", 3)
    refused(ask(daemon, "restore", ticker, "two"), "SNAPSHOT_NOT_FOUND", 3)
    refused(ask(daemon, "snapshots", "delete", f"{ticker}/two"), "SNAPSHOT_NOT_FOUND", 3)
    daemon.ok("snapshots", "delete", "--allow-missing", f"{ticker}/two", "nobody/two")
    refused(ask(daemon, "snapshots", "delete", ticker), "NAME_INVALID")
    refused(ask(daemon, "snapshot", ticker, "long", "--description", "x" * 5000), "FIELD_INVALID")
    refused(ask(daemon, "clone", f"{ticker}/one", ticker), "NAME_TAKEN")
    refused(ask(daemon, "clone", ticker, ticker), "NAME_TAKEN")
    refused(ask(daemon, "clone", ticker, "Bad"), "NAME_INVALID")
    daemon.ok("snapshots", "delete", f"{ticker}/one", made_up)
    assert files(daemon) == []


def test_states(daemon: RealDaemon, ticker: str) -> None:
    daemon.ok("snapshot", ticker, "one")
    daemon.ok("kill", ticker)
    refused(ask(daemon, "snapshot", ticker, "two"), "GUEST_WRONG_STATE", 4)
    daemon.ok("restore", ticker, "one", "--paused")  # a stopped guest is started by it
    assert daemon.listed()[ticker]["state"] == "PAUSED"
    daemon.ok("snapshot", ticker, "paused")
    assert daemon.listed()[ticker]["state"] == "PAUSED"
    daemon.ok("resume", ticker)
    goes_on(daemon, ticker)
    daemon.ok("restore", ticker, "paused")
    assert daemon.listed()[ticker]["state"] == "PAUSED"
    daemon.ok("delete", "--force", ticker)
    assert files(daemon) == []


def test_public_engine(daemon: RealDaemon) -> None:
    name = daemon.run("spin.elf", "--engine", "public")
    daemon.wait_logs(name, "ok")
    refused(ask(daemon, "snapshot", name, "one"), "CAPABILITY_MISSING", 6)
    native = daemon.run("spin.elf")
    daemon.wait_logs(native, "ok")
    daemon.ok("snapshot", native, "one")
    refused(ask(daemon, "restore", name, f"{native}/one"), "CAPABILITY_MISSING", 6)
    assert daemon.listed()[name]["state"] == "RUNNING"


def test_another_guest(daemon: RealDaemon, ticker: str) -> None:
    daemon.ok("snapshot", ticker, "one")
    other = daemon.run("spin.elf")
    larger = daemon.run("spin.elf", "--memory", "16M")
    for name in (other, larger):
        daemon.wait_logs(name, "ok")
    daemon.ok("restore", other, f"{ticker}/one")  # another kernel, the same machine
    daemon.wait_logs(other, "tick 4")
    daemon.ok("reset", other)  # what was booted came along
    wait_for(lambda: daemon.ok("logs", other).stdout.count("tick 1\r") == 1, "ticks from the beginning")
    refused(ask(daemon, "restore", larger, f"{ticker}/one"), "SNAPSHOT_MISMATCH")
    assert daemon.listed()[larger]["state"] == "RUNNING"
    refused(ask(daemon, "restore", other, f"{ticker}/one", "--backend", "nonsense"), "BACKEND_UNKNOWN")


def test_both_clones_go_on(daemon: RealDaemon, ticker: str) -> None:
    daemon.ok("update", ticker, "--label", "kind=test")
    daemon.ok("clone", ticker, "twin")
    twin, own = daemon.show("twin"), daemon.show(ticker)
    assert twin["uid"] != own["uid"] and twin["labels"] == {"kind": "test"} and twin["state"] == "RUNNING"
    goes_on(daemon, ticker)
    goes_on(daemon, "twin")
    daemon.ok("kill", "twin")
    goes_on(daemon, ticker)
    daemon.ok("clone", "twin", "third")  # of a stopped guest: its configuration
    assert daemon.listed()["third"]["state"] == "STOPPED"
    daemon.ok("start", "third")
    daemon.wait_logs("third", "tick 1")
    assert files(daemon) == []


@pytest.mark.parametrize("place", ["header", "about", "machine", "memory", "blob", "table", "end", "cut", "empty"])
def test_damaged_files_are_not_imported(daemon: RealDaemon, exported: Path, place: str, tmp_path: Path) -> None:
    data = bytearray(exported.read_bytes())
    with Reader(exported) as reader:
        places = {
            "header": 9,
            "about": reader.section("about").offset + 5,
            "machine": reader.section("machine").offset + 100,
            "memory": reader.section("memory").offset + 4097,
            "blob": next(section for name, section in reader.sections.items() if name.startswith("blob.")).offset + 7,
            "table": reader.table_offset + 20,
            "end": len(data) - 3,
        }
    if place in places:
        data[places[place]] ^= 0x10
    else:
        del data[len(data) // 2 if place == "cut" else 0 :]
    (tmp_path / "bad").write_bytes(data)
    before = files(daemon), daemon.listed().keys()
    refused(ask(daemon, "snapshots", "import", str(tmp_path / "bad"), "other/two"), "SNAPSHOT_FOREIGN" if place == "empty" else "SNAPSHOT_DAMAGED")
    assert (files(daemon), daemon.listed().keys()) == before


def test_foreign_and_newer_files(daemon: RealDaemon, ticker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(ask(daemon, "snapshots", "import", kernel("spin.elf"), "x/y"), "SNAPSHOT_FOREIGN")
    monkeypatch.setattr(container, "VERSION", 2)
    with Writer(tmp_path / "newer") as writer:
        writer.finish()
    refused(ask(daemon, "snapshots", "import", str(tmp_path / "newer"), "x/y"), "SNAPSHOT_VERSION")
    refused(ask(daemon, "snapshots", "import", str(tmp_path), "x/y"), "USAGE", 2)
    refused(ask(daemon, "snapshots", "import", str(tmp_path / "none"), "x/y"), "FILE_UNREADABLE")
    assert "x" not in daemon.listed() and files(daemon) == []


def test_import_names(daemon: RealDaemon, exported: Path, ticker: str) -> None:
    refused(ask(daemon, "snapshots", "import", str(exported)), "NAME_TAKEN")
    refused(ask(daemon, "snapshots", "import", str(exported), f"{ticker}/one"), "NAME_TAKEN")
    refused(ask(daemon, "snapshots", "import", str(exported), f"{ticker}/B"), "NAME_INVALID")
    assert daemon.ok("snapshots", "import", str(exported), f"{ticker}/two", "-o", "name").stdout == f"guests/{ticker}/snapshots/two\n"
    daemon.ok("restore", ticker, "two")
    goes_on(daemon, ticker)


def test_damage_on_the_disk_is_found_before_anything_is_changed(daemon: RealDaemon, ticker: str) -> None:
    daemon.ok("snapshot", ticker, "one")
    (path,) = (daemon.state_dir / "guests").rglob("one.hvdsnap")
    whole = path.read_bytes()
    with Reader(path) as reader:
        memory = reader.section("memory")
    path.write_bytes(whole[: memory.offset + 9] + b"\xaa\xbb" + whole[memory.offset + 11 :])
    pid = daemon.runner(ticker)
    refused(ask(daemon, "restore", ticker, "one"), "SNAPSHOT_DAMAGED")
    refused(ask(daemon, "clone", f"{ticker}/one", "twin"), "SNAPSHOT_DAMAGED")
    path.write_bytes(whole[: len(whole) // 2])
    refused(ask(daemon, "restore", ticker, "one"), "SNAPSHOT_DAMAGED")
    path.unlink()
    refused(ask(daemon, "restore", ticker, "one"), "SNAPSHOT_NOT_FOUND")
    assert daemon.runner(ticker) == pid and "twin" not in daemon.listed()
    goes_on(daemon, ticker)
    daemon.ok("snapshots", "delete", f"{ticker}/one")


def test_a_daemon_finds_its_snapshots_again(own_daemon: RealDaemon) -> None:
    name = own_daemon.run("ticker.elf")
    own_daemon.wait_logs(name, "tick 2")
    for number in range(3):
        own_daemon.ok("snapshot", name, f"s{number}", "--description", f"number {number}")
    listed = own_daemon.ok("snapshots", "list", "-o", "json").json
    own_daemon.stop()
    directory = next((own_daemon.state_dir / "guests").rglob("s0.hvdsnap")).parent
    (directory / "half.hvdsnap.new").write_bytes(b"a daemon died here")
    (directory / "s1.hvdsnap").write_bytes(b"not a snapshot any more")
    own_daemon.start()
    again = own_daemon.ok("snapshots", "list", "-o", "json").json
    assert again["snapshots"] == [listed["snapshots"][0], listed["snapshots"][2]]
    assert not (directory / "half.hvdsnap.new").exists() and (directory / "s1.hvdsnap").exists()
    own_daemon.ok("restore", name, "s2")
    own_daemon.ok("clone", f"{name}/s0", "twin")


def test_pages_and_order(daemon: RealDaemon, ticker: str) -> None:
    names = [f"{letter}{number}" for number, letter in enumerate("zyxwv")]
    for name in names:
        daemon.ok("snapshot", ticker, name)
    with Client(daemon.endpoint) as client:
        found, token = [], ""
        while True:
            page = client.list_snapshots(parent="guests/-", page_size=2, page_token=token)
            found += [snapshot.name.rpartition("/")[2] for snapshot in page.snapshots]
            token = page.next_page_token
            if not token:
                break
        assert found == names  # in the order of their creation
        for bad in ("x", "[]", "[1,2,3]", "null"):
            with pytest.raises(HvctlError, match="page_token"):
                client.list_snapshots(parent="guests/-", page_token=bad)
        with pytest.raises(HvctlError):
            client.list_snapshots(parent="guests/-", page_size=-1)
        with pytest.raises(HvctlError, match="no guest"):
            client.list_snapshots(parent="guests/nobody")


# ---- while it is being taken


@pytest.fixture
def large(daemon: RealDaemon) -> str:
    """A guest with so much memory in use that saving it takes a while."""
    daemon.run("spin.elf", "--memory", LARGE, name="large")
    daemon.wait_logs("large", "ok")
    _fill(daemon, "large", 50)
    return "large"


def _fill(daemon: RealDaemon, name: str, mebibytes: int) -> None:
    with Client(daemon.endpoint) as client:
        for number in range(mebibytes):
            client.write_memory(name=f"guests/{name}", address=(4 + number) * MIB, data=os.urandom(MIB))


def test_cancelled_in_the_middle(daemon: RealDaemon, large: str) -> None:
    with Client(daemon.endpoint) as client:
        with pytest.raises(HvctlError) as error:
            client.snapshot_guest(name=f"guests/{large}", snapshot_id="one", timeout=0.02)
        assert error.value.reason == "TIMED_OUT"
        wait_for(lambda: ask(daemon, "snapshot", large, "one").returncode == 0, "what was begun is over, its name free")
        client.delete_snapshot(name=f"guests/{large}/snapshots/one")
        assert files(daemon) == []
        assert daemon.listed()[large]["state"] == "RUNNING"
        assert not client.list_snapshots(parent="guests/-").snapshots


def test_a_guest_that_ends_meanwhile(daemon: RealDaemon, large: str) -> None:
    answers: list[str] = []

    def snapshot() -> None:
        with Client(daemon.endpoint) as client:
            try:
                answers.append(client.snapshot_guest(name=f"guests/{large}", snapshot_id="one").name)
            except HvctlError as error:
                answers.append(error.reason)

    thread = threading.Thread(target=snapshot)
    thread.start()
    wait_for(lambda: files(daemon), "it has begun")
    daemon.ok("kill", large)
    thread.join()
    assert answers in (["RUNNER_GONE"], [f"guests/{large}/snapshots/one"])  # or it was quicker
    assert bool(files(daemon)) == (answers != ["RUNNER_GONE"])


def test_two_at_once(daemon: RealDaemon, large: str) -> None:
    first, same, second = (daemon.spawn("-o", "json", "snapshot", large, each) for each in ("one", "one", "two"))
    # Whichever came first has the name, be it at work or over.
    assert sorted((first.end(), same.end()))[0] == 0 != max(first.end(), same.end()) and second.end() == 0
    assert '"NAME_TAKEN"' in first.err + same.err
    assert len(daemon.ok("snapshots", "list", large, "-o", "json").json["snapshots"]) == 2


def test_deleted_while_it_is_in_use(daemon: RealDaemon, large: str, tmp_path: Path) -> None:
    daemon.ok("snapshot", large, "one")
    with Client(daemon.endpoint) as client:
        stream = client.export_snapshot(name=f"guests/{large}/snapshots/one")
        with stream:
            next(stream)
            refused(ask(daemon, "snapshots", "delete", f"{large}/one"), "SNAPSHOT_IN_USE")
    wait_for(lambda: daemon.hvctl("snapshots", "delete", f"{large}/one").returncode == 0, "the export is over")
    assert files(daemon) == []


@pytest.mark.parametrize("verb", ["restore", "clone", "export"])
def test_its_guest_is_deleted_while_it_is_in_use(daemon: RealDaemon, large: str, verb: str, tmp_path: Path) -> None:
    """What is made of a snapshot is made to the end."""
    daemon.ok("snapshot", large, "one")
    source = f"{large}/one"
    if verb == "restore":
        daemon.run("hello.elf", "--memory", LARGE, name="other")
    words = {"restore": ("other", source), "clone": (source, "other"), "export": (source, str(tmp_path / "file"))}
    incoming = daemon.state_dir / "snapshots-incoming"
    process = daemon.spawn(*(("snapshots",) if verb == "export" else ()), verb, *words[verb])
    wait_for(lambda: list(incoming.glob(f"*.{verb}")) or process.popen.poll() is not None, "it has begun, or is over")
    daemon.ok("delete", "--force", large)
    assert process.end() == 0, process.err
    wait_for(lambda: not files(daemon), "nothing is left of it")
    if verb == "export":
        daemon.ok("snapshots", "import", str(tmp_path / "file"), "other/one")
        daemon.ok("restore", "other", "one")
    assert daemon.listed()["other"]["state"] == "RUNNING"


def test_full_disk(own_daemon: RealDaemon) -> None:
    with on_small_disk(own_daemon, "state", "24m"):
        own_daemon.start()
        name = own_daemon.run("ticker.elf", "--memory", "64M")
        own_daemon.wait_logs(name, "tick 2")
        own_daemon.ok("snapshot", name, "small")
        _fill(own_daemon, name, 40)
        refused(ask(own_daemon, "snapshot", name, "large"), "DISK_FULL")
        assert [Path(file).name for file in files(own_daemon)] == ["small.hvdsnap"]
        refused(ask(own_daemon, "clone", name, "twin"), "DISK_FULL")
        assert [Path(file).name for file in files(own_daemon)] == ["small.hvdsnap"] and list(own_daemon.listed()) == [name]
        goes_on(own_daemon, name)
        own_daemon.ok("restore", name, "small")
        goes_on(own_daemon, name)
        own_daemon.clear()
        own_daemon.stop()
