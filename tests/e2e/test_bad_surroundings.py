"""Sockets that are taken, disks that are full, files that are damaged, runners that stand still: told clearly, survived, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hvctl.sdk import Client, HvctlError
from real_daemon import BIN, RealDaemon, is_process, kernel, wait_for


def start(directory: Path, listen: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A daemon that should not be able to start."""
    words = [str(BIN / "hvd"), "--state-dir", f"{directory}/state", "--runtime-dir", f"{directory}/run",
             "--listen", f"unix://{listen}", *options]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def refused(done: subprocess.CompletedProcess[str], reason: str, *said: object) -> None:
    assert done.returncode == 1, done
    assert f"[{reason}]" in done.stderr, done.stderr
    for word in said:
        assert str(word) in done.stderr
    assert "Traceback" not in done.stderr


# --- sockets ---


def test_socket_of_a_living_daemon(daemon: RealDaemon, tmp_path: Path) -> None:
    path = Path(daemon.endpoint.removeprefix("unix://"))
    refused(start(tmp_path, path), "ENDPOINT_IN_USE", path)
    daemon.ok("list")


def test_directories_of_a_living_daemon(daemon: RealDaemon, tmp_path: Path) -> None:
    refused(start(daemon.directory, tmp_path / "s"), "DIRECTORY_IN_USE", daemon.pid, daemon.state_dir)
    daemon.ok("list")


def test_socket_of_a_dead_daemon(own_daemon: RealDaemon) -> None:
    name = own_daemon.run("ticker.elf")
    runner = own_daemon.runner(name)
    own_daemon.restart(signal.SIGKILL)
    assert own_daemon.runner(name) == runner


def test_a_file_where_the_socket_should_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    refused(start(tmp_path, path), "ENDPOINT_UNUSABLE", path, "no socket")
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    refused(start(tmp_path, path), "ENDPOINT_UNUSABLE", path, "107 bytes")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(start(tmp_path, tmp_path / "file" / "sock"), "ENDPOINT_UNUSABLE", "file/sock")
    refused(start(tmp_path / "file", tmp_path / "sock"), "DIRECTORY_UNUSABLE", "file/state")
    refused(start(Path("/proc/nowhere"), tmp_path / "sock"), "DIRECTORY_UNUSABLE", "/proc/nowhere/state")


def test_a_directory_that_is_not_there_yet_is_made(own_daemon: RealDaemon) -> None:
    own_daemon.stop()
    own_daemon.endpoint = f"unix://{own_daemon.directory}/new/deep/hvd.sock"
    own_daemon.start()
    own_daemon.ok("list")


# --- full disks ---


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "hvd-test", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(directory: Path) -> Path:
    """To the last byte."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


def on_small_disk(own_daemon: RealDaemon, what: str, size: str) -> AbstractContextManager[Path]:
    """The daemon's state or runtime directory, moved onto a small disk, the daemon not running."""
    own_daemon.stop()
    return small_disk(own_daemon.directory / what, size)


def random_file(path: Path, size: int) -> Path:
    path.write_bytes(Path(kernel("hello.elf")).read_bytes() + os.urandom(size))
    return path


def test_a_full_disk_under_the_blobs(own_daemon: RealDaemon, tmp_path: Path) -> None:
    with on_small_disk(own_daemon, "small", "4M") as disk:
        own_daemon.state_dir = disk / "state"
        own_daemon.start()
        ticker = own_daemon.run("ticker.elf")
        runner = own_daemon.runner(ticker)
        big = random_file(tmp_path / "big", 8 << 20)
        done = own_daemon.hvctl("create", "-o", "json", "--kernel", str(big))
        assert json.loads(done.stderr)["error"]["reason"] == "DISK_FULL"
        # Announced as little, so that the space is found missing while it is written.
        fitting = random_file(tmp_path / "fitting", 2 << 20)
        ballast = fill(disk)
        os.truncate(ballast, ballast.stat().st_size - (64 << 10))
        done = own_daemon.hvctl("create", "-o", "json", "--kernel", str(fitting))
        assert json.loads(done.stderr)["error"]["reason"] == "DISK_FULL"
        assert not list((own_daemon.state_dir / "blobs" / "incoming").iterdir())
        fill(disk)
        assert own_daemon.listed()[ticker]["host_pid"] == str(runner)
        ballast.unlink()
        wait_for(lambda: own_daemon.hvctl("create", "--kernel", str(fitting)).returncode == 0, "there is room again")
        own_daemon.clear()
        own_daemon.stop()


def test_a_full_disk_under_the_store(own_daemon: RealDaemon) -> None:
    """What was asked for is in the store before it is answered, so it is refused; what runs goes on and can be ended."""
    with on_small_disk(own_daemon, "small", "4M") as disk:
        own_daemon.state_dir = disk / "state"
        own_daemon.start()
        first, second = own_daemon.run("ticker.elf"), own_daemon.run("ticker.elf")
        ballast = fill(disk)

        def create(number: int) -> HvctlError | None:
            with Client(own_daemon.endpoint) as client:
                try:
                    client.create_guest(
                        guest_id=f"filler-{number}",
                        guest={
                            "machine": {"kernel": own_daemon.show(first)["machine"]["kernel"]},
                            "labels": {"a": "x" * 1000},
                        },
                    )
                except HvctlError as error:
                    return error
            return None

        error = None
        for number in range(200):
            if error := create(number):
                break
        assert error is not None
        assert error.reason == "DISK_FULL", error
        own_daemon.ok("pause", first)
        own_daemon.ok("kill", second)
        assert own_daemon.show(first)["state"] == "PAUSED"
        made = set(own_daemon.listed())
        ballast.unlink()
        wait_for(lambda: create(1000) is None, "there is room again")
        # Nothing that was answered is lost, not even what ended while the disk was full.
        own_daemon.restart(signal.SIGKILL)
        found = own_daemon.listed()
        assert set(found) == made | {"filler-1000"}
        assert (found[first]["state"], found[second]["state"]) == ("PAUSED", "STOPPED")
        own_daemon.clear()
        own_daemon.stop()


def test_a_full_disk_under_the_logs(own_daemon: RealDaemon) -> None:
    with on_small_disk(own_daemon, "small", "8M") as disk:
        own_daemon.runtime_dir = disk / "run"
        own_daemon.start()
        name = own_daemon.run("ticker.elf")
        own_daemon.wait_logs(name, "3")
        runner = own_daemon.runner(name)
        ballast = fill(disk)
        losing = wait_for(
            lambda: [c for c in own_daemon.show(name)["conditions"] if "cannot be written" in c["message"]],
            "the guest's conditions tell that its log is lost",
        )
        assert "No space left" in losing[0]["message"]
        # The console does not need the disk.
        with Client(own_daemon.endpoint) as client, client.console(f"guests/{name}", read_only=True) as console:
            assert next(iter(console))
        # A guest that cannot have its directory is told why.
        done = own_daemon.hvctl("run", "-o", "json", "-d", "--kernel", kernel("hello.elf"), "--name", "late")
        error = json.loads(done.stderr[done.stderr.index("{") :])["error"]
        assert (done.returncode, error["reason"]) == (125, "DISK_FULL"), error
        assert own_daemon.show("late")["state"] == "FAILED"
        assert own_daemon.runner(name) == runner
        ballast.unlink()
        wait_for(lambda: not own_daemon.show(name)["conditions"], "the log is written again")
        done = own_daemon.ok("logs", name)
        log = done.stdout + done.stderr
        assert "bytes of the guest's output are missing here" in log
        own_daemon.ok("start", "late")
        assert own_daemon.wait("late")["exit_code"] == 0
        own_daemon.clear()
        own_daemon.stop()


# --- damaged files ---


@pytest.mark.parametrize("damage", ["garbage", "middle", "directory", "empty"])
def test_a_damaged_store(own_daemon: RealDaemon, damage: str) -> None:
    """It says so and touches nothing; moved away, the guests are taken from their directories."""
    name = own_daemon.run("ticker.elf")
    runner = own_daemon.runner(name)
    own_daemon.stop()
    store = own_daemon.state_dir / "hvd.sqlite"
    for file in own_daemon.state_dir.glob("hvd.sqlite-*"):
        file.unlink()
    if damage == "directory":
        store.unlink()
        store.mkdir()
    elif damage == "empty":
        store.write_bytes(b"")
    elif damage == "garbage":
        store.write_bytes(os.urandom(20000))
    else:
        with store.open("r+b") as file:
            file.seek(100)
            file.write(os.urandom(8000))
    if damage != "empty":  # an empty file is a database without tables
        before = store.stat()
        done = start(own_daemon.directory, own_daemon.directory / "hvd.sock")
        refused(done, "DIRECTORY_UNUSABLE" if damage == "directory" else "STORE_DAMAGED", own_daemon.state_dir)
        assert store.stat().st_size == before.st_size
        assert is_process(runner)
        store.rename(store.with_suffix(".damaged"))
    own_daemon.start()
    assert own_daemon.runner(name) == runner


@pytest.mark.parametrize("file", ["images.sqlite"])
def test_a_damaged_catalog(own_daemon: RealDaemon, file: str) -> None:
    own_daemon.stop()
    (own_daemon.state_dir / file).write_bytes(os.urandom(20000))
    refused(start(own_daemon.directory, own_daemon.directory / "hvd.sock"), "STORE_DAMAGED", file)
    (own_daemon.state_dir / file).unlink()
    own_daemon.start()


def test_garbage_in_the_runtime_directory(own_daemon: RealDaemon) -> None:
    good, torn, stranger, robbed, gone = (
        own_daemon.run("ticker.elf", name=name) for name in ("good", "torn", "stranger", "robbed", "gone")
    )
    guests = own_daemon.runtime_dir / "guests"
    directories = {name: guests / own_daemon.show(name)["uid"] for name in (good, torn, stranger, robbed, gone)}
    runners = {name: own_daemon.runner(name) for name in directories}
    own_daemon.stop(signal.SIGKILL)
    for name in (torn, stranger, robbed, gone):
        os.kill(runners[name], signal.SIGKILL)
    wait_for(
        lambda: not any(is_process(runners[name]) for name in (torn, stranger, robbed, gone)), "the runners are gone"
    )
    (directories[torn] / "pid").write_text('{"pid": 12')
    (directories[torn] / "exit.json").write_bytes(os.urandom(100))
    victim = subprocess.Popen(["sleep", "600"])
    process = json.loads((directories[stranger] / "pid").read_text())
    (directories[stranger] / "pid").write_text(json.dumps(process | {"pid": victim.pid}))
    for file in directories[robbed].iterdir():
        file.unlink()
    shutil.rmtree(directories[gone])
    (guests / "odd").mkdir()
    (guests / "odd" / "pid").write_text("[[[[" * 1000)
    (guests / "a file").write_text("")
    (guests / "ünï code").mkdir()
    (guests / "link").symlink_to("/")
    (guests / "loop").symlink_to("loop")
    os.mkfifo(guests / "pipe")
    (guests / "half.deleted").mkdir()
    (guests / os.fsdecode(b"\xff")).mkdir()
    try:
        own_daemon.start()
        found = own_daemon.listed()
        assert found[good]["state"] == "RUNNING"
        assert own_daemon.runner(good) == runners[good]
        for name in (torn, stranger, robbed, gone):
            assert found[name]["state"] == ("FAILED" if name == stranger else "LOST"), found[name]
            assert found[name]["status_message"], "it says why"
        for name in (torn, stranger, robbed, gone):
            own_daemon.ok("kill", name)
        own_daemon.ok("start", torn)
        assert own_daemon.show(torn)["state"] == "RUNNING"
        assert victim.poll() is None, "a process that is not ours is not touched"
        assert not (guests / "half.deleted").exists(), "what a crash left of a deletion"
        assert os.path.isdir("/proc"), "no link is followed"
    finally:
        victim.kill()
        victim.wait()


# --- a runner that stands still ---


@pytest.mark.slow  # it is waited for its answer
def test_a_runner_that_stands_still(own_daemon: RealDaemon) -> None:
    name, neighbour = own_daemon.run("ticker.elf"), own_daemon.run("ticker.elf")
    runner = own_daemon.runner(name)
    os.kill(runner, signal.SIGSTOP)
    try:
        began = time.monotonic()
        hanging = own_daemon.spawn("pause", name, "-o", "json")
        reading = own_daemon.spawn("mem", "read", name, "0x100000", "16", "-o", "json")
        for _ in range(5):
            own_daemon.ok("list")
            own_daemon.ok("pause", neighbour)
            own_daemon.ok("resume", neighbour)
        own_daemon.ok("stats", "--count", "1")
        for each in (hanging, reading):
            assert each.end() != 0
            error = json.loads(each.err[each.err.index("{") :])["error"]
            assert error["reason"] == "RUNNER_TIMEOUT", error
            assert "kill" in error["help"]
        assert time.monotonic() - began < 60
        # A daemon that finds it so starts all the same, and a verb that comes before it knows waits for that.
        own_daemon.restart(signal.SIGKILL)
        own_daemon.ok("list")
        own_daemon.ok("kill", name)
        assert not is_process(runner)
        assert own_daemon.show(name)["state"] == "LOST"
        assert own_daemon.show(neighbour)["state"] == "RUNNING"
    finally:
        if is_process(runner):
            os.kill(runner, signal.SIGCONT)


def test_a_runner_that_is_killed(daemon: RealDaemon) -> None:
    name, neighbour = daemon.run("ticker.elf"), daemon.run("ticker.elf")
    directory = daemon.runtime_dir / "guests" / daemon.show(name)["uid"]
    os.kill(daemon.runner(name), signal.SIGKILL)
    ended = daemon.wait(name)
    assert (ended["state"], ended["reason"]) == ("FAILED", "RUNNER_CRASHED")
    assert "SIGKILL" in ended["status_message"]
    assert daemon.show(neighbour)["state"] == "RUNNING"
    daemon.ok("start", name)
    daemon.ok("delete", "--force", name)
    assert not directory.exists()


# --- over time ---


@pytest.mark.parametrize("guests", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_grows_over_many_guests(own_daemon: RealDaemon, guests: int) -> None:
    """So many guests made, run and deleted: descriptors as before, memory nearly so, directories empty."""

    def resident() -> int:
        return int(Path(f"/proc/{own_daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{own_daemon.pid}/fd"))

    with Client(own_daemon.endpoint) as client:

        def cycles(number: int) -> None:
            for _ in range(number):
                guest = client.run_guest(kernel=kernel("hello.elf"), memory_bytes=8 << 20)
                assert client.wait_guest(name=guest.name).exit_code == 0
                client.delete_guest(name=guest.name)

        cycles(20)  # caches and arenas fill first
        before, open_before = resident(), descriptors()
        cycles(guests)
        wait_for(lambda: descriptors() <= open_before, "descriptors are as before")
        # The event log keeps 4096 events, of 1.2 KB in memory each, and a guest makes six of them.
        assert resident() - before < (2 << 20) + guests * 6 * 1200
    assert not list((own_daemon.runtime_dir / "guests").iterdir())
    wait_for(lambda: not own_daemon.runners(), "no runner is left")


def test_sockets_are_not_left_behind(own_daemon: RealDaemon) -> None:
    path = own_daemon.endpoint.removeprefix("unix://")
    assert own_daemon.stop() == 0
    assert not os.path.exists(path)
    with socket.socket(socket.AF_UNIX) as probe:
        assert probe.connect_ex(path) != 0
    own_daemon.start()
