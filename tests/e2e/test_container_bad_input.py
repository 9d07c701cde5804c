"""What goes wrong with containers: a clear reason, the guests beside it unharmed, and nothing left: mounts, control groups,
processes, namespaces and descriptors of the daemon are counted before and after each test."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from real_daemon import RealDaemon, is_process, wait_for
from test_containers import box, root  # noqa: F401

from hvd.cgroup.hierarchy import PARENT, hierarchy

SLEEPER = ("sh", "-c", "echo up; exec sleep 1000")


@dataclass(frozen=True)
class Census:
    """Of one daemon, whatever else runs on this machine."""

    mounts: tuple[str, ...]
    processes: tuple[int, ...]
    namespaces: tuple[str, ...]  # that the daemon keeps
    descriptors: int  # one more or less for each client that has just gone

    def is_as(self, before: Census) -> bool:
        return replace(self, descriptors=0) == replace(before, descriptors=0) and self.descriptors <= before.descriptors

    @classmethod
    def take(cls, daemon: RealDaemon) -> Census:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        links = []
        for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
            try:
                links.append(os.readlink(entry))
            except FileNotFoundError:
                continue
        kept = [link for link in links if link.split(":")[0] in ("mnt", "net", "pid", "ipc", "uts", "user", "cgroup")]
        mounts = [line.split()[4] for line in lines if str(daemon.directory) in line]
        return cls(tuple(mounts), tuple(daemon.runners()), tuple(sorted(kept)), len(links))


def groups() -> set[Path]:
    found = hierarchy()
    places = {path / PARENT for path in (*found.version_1.values(), *found.named, *([found.unified] if found.unified else []))}
    return {path for place in places if place.is_dir() for path in place.iterdir() if path.is_dir()}


@pytest.fixture
def counted(box: RealDaemon) -> Iterator[RealDaemon]:  # noqa: F811
    box.ok("list")
    before = Census.take(box)
    yield box
    uids = {guest["uid"] for guest in box.listed().values()}
    box.clear()
    wait_for(lambda: Census.take(box).is_as(before), lambda: f"all gone: {Census.take(box)} is not {before}")
    assert not {path for path in groups() if path.name in uids}


def refused(daemon: RealDaemon, *words: str) -> dict[str, str]:
    done = daemon.hvctl("run", "-o", "json", *words)
    assert done.returncode == 125, (done.stdout, done.stderr)
    return dict(json.loads(done.stderr[done.stderr.index("{") :])["error"])


def put(daemon: RealDaemon, name: str) -> None:
    """One that answers."""
    daemon.ok("run", "-d", "--name", name, "--image", "box", "--", *SLEEPER)
    daemon.wait_logs(name, "up")


def answers(daemon: RealDaemon, name: str) -> bool:
    return daemon.hvctl("exec", name, "--", "echo", "well").stdout == "well\n"


@pytest.mark.parametrize("engine", ["runc", "crun"])
def test_commands_that_do_not_run(counted: RealDaemon, engine: str) -> None:
    for command, problem in (("/no/such", "no such file"), ("/etc/passwd", "permission denied"), ("/etc", " "), ("nothing", "not found")):
        error = refused(counted, "--image", "box", "--engine", engine, "--", command)
        assert error["reason"] == "CONTAINER_FAILED" and problem in error["message"].lower(), error
    for script, code in (("exit 3", 3), ("exit 0", 0)):
        done = counted.hvctl("run", "--rm", "--image", "box", "--engine", engine, "--", "sh", "-c", script)
        assert done.returncode == code, done.stderr
    failed = [guest for guest in counted.listed().values() if guest["state"] == "FAILED"]
    assert len(failed) == 4 and {guest["reason"] for guest in failed} == {"CONTAINER_FAILED"}


def test_a_fork_bomb_and_a_memory_hog_harm_nobody_else(counted: RealDaemon) -> None:
    put(counted, "neighbour")
    machine = counted.run("ticker.elf")
    bomb = "echo up; b() { b | b & b; }; b"
    counted.ok("run", "-d", "--name", "bomb", "--image", "box", "--pids", "40", "--memory", "32M", "--cpus", "0.5", "--", "sh", "-c", bomb)
    counted.wait_logs("bomb", "up")
    hog = counted.hvctl("run", "--name", "hog", "--image", "box", "--memory", "16M", "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M")
    assert (hog.returncode, counted.show("hog")["reason"]) == (137, "OUT_OF_MEMORY")
    assert answers(counted, "neighbour")
    before = counted.ok("logs", machine).stdout
    wait_for(lambda: counted.ok("logs", machine).stdout != before, "the machine goes on")

    def is_held() -> bool:
        bomb = counted.show("bomb")
        return bomb["state"] != "RUNNING" or int(bomb.get("limit_effects", {}).get("pids_limit_hits", "0")) > 0

    wait_for(is_held, "it meets its limit")
    counted.ok("delete", "--force", "bomb")
    assert answers(counted, "neighbour")


@pytest.mark.parametrize("engine", ["runc", "crun"])
def test_its_monitor_is_killed(counted: RealDaemon, engine: str) -> None:
    put(counted, "neighbour")
    script = "sleep 1000 & echo up; wait"
    counted.ok("run", "-d", "--name", "c", "--image", "box", "--engine", engine, "--", "sh", "-c", script)
    counted.wait_logs("c", "up")
    guest = counted.show("c")
    os.kill(int(guest["monitor_pid"]), signal.SIGKILL)
    counted.wait("c", "failed")
    assert (counted.show("c")["state"], counted.show("c")["reason"]) == ("FAILED", "MONITOR_GONE")
    assert not is_process(int(guest["host_pid"])) and not {path for path in groups() if path.name == guest["uid"]}
    counted.ok("start", "c")  # and it can run again
    assert answers(counted, "neighbour")


def test_its_init_is_killed_from_outside(counted: RealDaemon) -> None:
    counted.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", "sleep 1000 & echo up; wait")
    counted.wait_logs("c", "up")
    os.kill(int(counted.show("c")["host_pid"]), signal.SIGKILL)
    counted.wait("c", "stopped")
    guest = counted.show("c")
    assert (guest["reason"], guest["exit_code"], guest["exit_signal"]) == ("EXITED", 137, "SIGKILL")


def test_what_is_taken_or_missing(counted: RealDaemon, tmp_path: Path) -> None:
    put(counted, "taken")
    assert refused(counted, "--name", "taken", "--image", "box", "--", "true")["reason"] == "NAME_TAKEN"
    assert refused(counted, "--image", "box", "--volume", f"{tmp_path}:/srv", "--", "true")["reason"] == "PATH_REFUSED"
    assert refused(counted, "--image", "box", "--network", "missing", "--", "true")["reason"] == "NETWORK_NOT_FOUND"
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        error = refused(counted, "--image", "box", "--network", "host", "-p", f"{port}:80", "--", "true")
        assert error["reason"] in ("FIELD_INVALID", "PORT_TAKEN"), error
    # Not /etc/passwd of the image, but a file of it that is no folder.
    assert refused(counted, "--image", "box", "--tmpfs", "/etc/passwd/below", "--", "true")["reason"] == "CONTAINER_FAILED"


# --- a runtime that stands still in the middle of `create` ---

# Gives the bundle a hook that runs when namespaces and control groups are there and the container's first process waits.
STALLING = """#!/bin/sh
for word; do [ "$word" = create ] && creating=1; done
if [ "$creating" ] && [ -e {folder}/stall ]; then
    config=$(pwd)/config.json
    for word; do [ "$bundle" ] && config=$word/config.json && bundle=; [ "$word" = --bundle ] && bundle=1; done
    sed -i 's|^{{|{{"hooks": {{"createRuntime": [{{"path": "{folder}/hook"}}]}}, |' "$config"
    echo $$ > {folder}/{engine}.new && mv {folder}/{engine}.new {folder}/{engine}.pid
fi
exec {real} "$@"
"""
HOOK = "#!/bin/sh\ntouch {folder}/stalled\nwhile [ -e {folder}/stall ]; do sleep 0.1; done\n"


class Stall:
    def __init__(self, folder: Path, engine: str) -> None:
        self.folder, self.engine = folder, engine
        real = next(path / engine for path in map(Path, os.environ["PATH"].split(":")) if (path / engine).exists())
        for name, text in ((engine, STALLING), ("hook", HOOK)):
            (folder / name).write_text(text.format(folder=folder, engine=engine, real=real))
            (folder / name).chmod(0o755)
        folder.chmod(0o755)
        folder.parent.chmod(0o711)

    def begin(self) -> None:
        (self.folder / "stall").touch()

    def reached(self) -> int:
        """The runtime's process, once it is in the middle."""
        wait_for(lambda: (self.folder / "stalled").exists(), "the runtime stands still")
        return int((self.folder / f"{self.engine}.pid").read_text())

    def end(self) -> None:
        for name in ("stall", "stalled"):
            (self.folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def stalling(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealDaemon, Stall]]:  # noqa: F811
    stall = Stall(tmp_path_factory.mktemp("stall"), "runc")
    with RealDaemon(prefix=("env", f"PATH={stall.folder}:{os.environ['PATH']}")) as daemon:
        daemon.ok("image", "import", "box", str(root))
        yield daemon, stall


@pytest.fixture
def stalled(stalling: tuple[RealDaemon, Stall], box: RealDaemon) -> Iterator[tuple[RealDaemon, Stall]]:  # noqa: F811
    """box: where there can be no containers it says why."""
    daemon, stall = stalling
    yield daemon, stall
    stall.end()
    uids = {guest["uid"] for guest in daemon.listed().values()}
    daemon.clear()
    wait_for(lambda: (now := Census.take(daemon)).mounts == now.processes == (), lambda: str(Census.take(daemon)))
    assert not {path for path in groups() if path.name in uids}


def start(daemon: RealDaemon, stall: Stall) -> str:
    daemon.ok("create", "--name", "c", "--image", "box", "--", *SLEEPER)
    stall.begin()
    return str(daemon.show("c")["uid"])


def goes_on(daemon: RealDaemon, stall: Stall) -> None:
    stall.end()
    daemon.ok("start", "c")
    daemon.wait_logs("c", "up")
    daemon.ok("delete", "--force", "c")


def test_the_runtime_is_killed_while_it_creates(stalled: tuple[RealDaemon, Stall]) -> None:
    daemon, stall = stalled
    uid = start(daemon, stall)
    client = daemon.spawn("start", "c")
    pid = stall.reached()
    assert {path for path in groups() if path.name == uid}, "it is in the middle"
    os.kill(pid, signal.SIGKILL)
    assert client.end() and "runc create" in client.err, client.err
    guest = daemon.show("c")
    assert (guest["state"], guest["reason"]) == ("FAILED", "CONTAINER_FAILED")
    assert not {path for path in groups() if path.name == uid} and not Census.take(daemon).mounts
    wait_for(lambda: not daemon.runners(), "no process of it is left")
    goes_on(daemon, stall)


def test_the_monitor_is_killed_while_the_runtime_creates(stalled: tuple[RealDaemon, Stall]) -> None:
    daemon, stall = stalled
    uid = start(daemon, stall)
    client = daemon.spawn("start", "c")
    pid = stall.reached()
    os.kill(parent(pid), signal.SIGKILL)
    assert client.end(), client.err
    assert daemon.show("c")["state"] == "FAILED"
    assert not {path for path in groups() if path.name == uid} and not Census.take(daemon).mounts
    goes_on(daemon, stall)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("goes_on_alone", [False, True])
def test_the_daemon_is_killed_while_the_runtime_creates(stalled: tuple[RealDaemon, Stall], goes_on_alone: bool) -> None:
    """The next one takes down what it finds, whether it is still being made or was completed meanwhile."""
    daemon, stall = stalled
    uid = start(daemon, stall)
    daemon.spawn("start", "c")
    pid = stall.reached()
    daemon.stop(signal.SIGKILL)
    if goes_on_alone:
        stall.end()
        wait_for(lambda: not is_process(pid), "the runtime has made it")
        time.sleep(0.2)
    daemon.start()
    guest = daemon.show("c")
    assert (guest["state"], guest["reason"]) == ("FAILED", "CONTAINER_FAILED")
    assert not {path for path in groups() if path.name == uid} and not Census.take(daemon).mounts
    wait_for(lambda: not daemon.runners(), "no process of it is left")
    goes_on(daemon, stall)
