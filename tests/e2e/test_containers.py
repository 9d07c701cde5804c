"""Containers through the real daemon and the real client: a root of busybox, imported as a folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import busybox_root
from hvapi.v1 import guest_pb2
from hvctl.sdk import AsyncClient
from real_daemon import RealDaemon, is_process, wait_for

from hvd.backends.container.backend import BACKEND
from hvd.cgroup.hierarchy import hierarchy


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("busybox") / "root")


@pytest.fixture
def box(daemon: RealDaemon, root: Path) -> Iterator[RealDaemon]:
    """A daemon with the image "box", and nothing left over when its guests are gone."""
    availability = BACKEND.probe()
    if not availability.available:
        reason = f"container: {availability.reason}; {availability.remedy}"
        if "container" in os.environ.get("HVD_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    if "images/box" not in daemon.ok("image", "list", "-o", "name").stdout:
        daemon.ok("image", "import", "box", str(root))
    yield daemon
    uids = [guest["uid"] for guest in daemon.listed().values()]
    for name in daemon.listed():
        daemon.ok("delete", "--force", name)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert not [uid for uid in uids if uid in mounts]
    groups = hierarchy()
    assert not [path for uid in uids for path in groups.directories(uid) if path.exists()]


def test_run_ends_with_its_exit_code_and_the_image_says_that_it_is_a_container(box: RealDaemon) -> None:
    done = box.hvctl("run", "--name", "c", "--image", "box", "--env", "GREETING=hi there", "--", "sh", "-c", "echo $GREETING; exit 7")
    assert (done.returncode, done.stdout) == (7, "hi there\n")
    assert "backend container" in done.stderr
    guest = box.show("c")
    assert (guest["backend"], guest["state"], guest["reason"], guest["exit_code"]) == ("container", "STOPPED", "EXITED", 7)
    assert guest["rootfs_path"].endswith("/rootfs") and "machine" not in guest


def test_its_root_is_a_folder_and_its_init_a_process_of_the_host(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", "echo data > /srv/file; echo up; exec sleep 1000")
    box.wait_logs("c", "up")
    guest = box.show("c")
    assert is_process(int(guest["host_pid"])) and is_process(int(guest["monitor_pid"]))
    assert (Path(guest["rootfs_path"]) / "srv" / "file").read_text() == "data\n"
    box.ok("pause", "c")
    assert box.show("c")["state"] == "PAUSED"
    box.ok("resume", "c")
    box.ok("kill", "c")
    guest = box.show("c")
    assert (guest["reason"], guest["exit_code"], guest["exit_signal"]) == ("KILLED", 137, "SIGKILL")
    box.ok("start", "c")
    box.ok("delete", "--force", "c")


def test_stop_asks_first_and_kills_after_the_grace_period(box: RealDaemon) -> None:
    polite = "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done"
    box.ok("run", "-d", "--name", "polite", "--image", "box", "--", "sh", "-c", polite)
    box.wait_logs("polite", "up")
    box.ok("stop", "polite", "--timeout", "30")
    assert (box.show("polite")["exit_code"], "bye" in box.ok("logs", "polite").stdout) == (4, True)
    box.ok("run", "-d", "--name", "deaf", "--image", "box", "--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    box.wait_logs("deaf", "up")
    box.ok("stop", "deaf", "--timeout", "0.5")
    assert box.show("deaf")["reason"] == "KILLED"


def test_it_outlives_the_daemon_and_its_end_is_known(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "a", "--image", "box", "--", "sh", "-c", "while :; do echo tick; sleep 0.05; done")
    box.ok("run", "-d", "--name", "b", "--image", "box", "--", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 5")
    b, before = box.show("b"), box.show("a")["host_pid"]
    monitor = int(b["monitor_pid"])
    box.stop(signal.SIGKILL)
    (Path(b["rootfs_path"]) / "tmp" / "go").touch()
    wait_for(lambda: not is_process(monitor), "the end of b")
    box.start()
    assert (box.show("a")["state"], box.show("a")["host_pid"]) == ("RUNNING", before)
    assert (box.show("b")["state"], box.show("b")["exit_code"]) == ("STOPPED", 5)


def test_limits_and_what_they_did(box: RealDaemon) -> None:
    done = box.hvctl(
        "run", "--name", "c", "--image", "box", "--memory", "16M", "--", "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=64"
    )
    guest = box.show("c")
    assert (done.returncode, guest["reason"], guest["oom_killed"]) == (137, "OUT_OF_MEMORY", True)
    assert guest["limits"]["memory_bytes"] == str(16 << 20)


def test_two_runtimes(box: RealDaemon) -> None:
    for engine in BACKEND.engines():
        if engine.availability.available:
            done = box.hvctl("run", "--rm", "--image", "box", "--engine", engine.name, "--", "echo", engine.name)
            assert (done.returncode, done.stdout) == (0, f"{engine.name}\n")


def test_the_hosts_null_device_stays_the_hosts(box: RealDaemon) -> None:
    """It is the standard input of a container that is not attached, and crun makes root of the container the owner of that."""
    for engine in (engine.name for engine in BACKEND.engines() if engine.availability.available):
        box.ok("run", "-d", "--name", engine, "--image", "box", "--engine", engine, "--", "sleep", "1000")
        # Tests beside this one make containers, too.
        wait_for(lambda: os.stat("/dev/null").st_uid == 0, lambda engine=engine: f"{engine} gives /dev/null back")


def test_the_restart_policy(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--restart", "on-failure:2", "--", "sh", "-c", "echo again; exit 3")
    wait_for(lambda: any(c["reason"] == "MAX_RETRIES" for c in box.show("c").get("conditions", [])), "it gave up")
    assert box.ok("logs", "c").stdout.count("again") == 3


BAD = {
    "../escaped": {"name": "../../escaped"},
    "hard link out": {"name": "a", "type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"},
    "device": {"name": "disk", "type": tarfile.BLKTYPE, "devmajor": 8},
}


@pytest.mark.parametrize("case", BAD)
def test_an_archive_that_leaves_its_root(box: RealDaemon, tmp_path: Path, case: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo()
        for field, value in BAD[case].items():
            setattr(member, field, value)
        archive.addfile(member)
    refused = box.hvctl("image", "import", "bad", "--kind", "rootfs", str(tmp_path / "bad.tar"), "-o", "json")
    assert refused.returncode == 1 and json.loads(refused.stderr)["error"]["reason"] == "ARCHIVE_UNSAFE", refused.stderr
    assert "images/bad" not in box.ok("image", "list", "-o", "name").stdout


def test_refusals_have_reasons(box: RealDaemon, tmp_path: Path) -> None:
    cases = [
        (("--image", "box", "--", "/no/such"), "CONTAINER_FAILED"),
        (("--image", "box", "--user", "nobody-here", "--", "true"), "FIELD_INVALID"),
        (("--image", "box", "--volume", f"{tmp_path}:/srv", "--", "true"), "PATH_REFUSED"),
        (("--image", "box"), "FIELD_INVALID"),
        (("--image", "missing", "--", "true"), "IMAGE_NOT_FOUND"),
        (("--backend", "emulation", "--image", "box", "--", "true"), "CAPABILITY_MISSING"),
    ]
    for words, reason in cases:
        refused = box.hvctl("run", "-o", "json", *words)
        assert refused.returncode == 125 and json.loads(refused.stderr[refused.stderr.index("{") :])["error"]["reason"] == reason, refused.stderr


def test_exec(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--env", "A=1", "--", "sh", "-c", "echo up; exec sleep 1000")
    box.wait_logs("c", "up")
    done = box.hvctl("exec", "c", "-e", "B=2", "-w", "/srv", "--", "sh", "-c", "echo $A $B; pwd; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "1 2\n/srv\n", "err\n")
    assert box.hvctl("exec", "c", "--", "cat", stdin="typed\n" * 1000).stdout == "typed\n" * 1000
    assert box.hvctl("exec", "c", "--user", "www", "--", "id", "-u").stdout == "33\n"
    assert box.hvctl("exec", "c", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = box.hvctl("exec", "c", "--", "/no/such")
    assert missing.returncode == 125 and "no such file" in missing.stderr
    box.ok("kill", "c")
    assert box.hvctl("exec", "c", "--", "true").returncode == 125


def test_exec_on_a_terminal(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sleep", "1000")
    terminal = box.terminal("exec", "-t", "c", "--", "sh", rows=33, columns=77)
    terminal.type("ls -l /proc/self/fd/0; echo list=$((6*7))\n")  # which a list's own 42, of a time, is not
    assert "/dev/pts/" in terminal.wait_for("list=42")
    terminal.type("exit 5\n")
    assert terminal.end() == 5 and terminal.restored


def test_whoever_leaves_exec_takes_its_program_along(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sleep", "1000")
    child = box.spawn("exec", "c", "--", "sh", "-c", "echo up; exec sleep 999")
    child.wait_out("up")
    assert "sleep 999" in box.ok("exec", "c", "--", "ps").stdout
    assert child.interrupt() == 130
    wait_for(lambda: "sleep 999" not in box.ok("exec", "c", "--", "ps").stdout, "the end of the program")


def test_a_signal_of_choice(box: RealDaemon) -> None:
    script = "trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done"
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", script)
    box.wait_logs("c", "up")
    box.ok("kill", "--signal", "HUP", "c")
    box.wait_logs("c", "hup")
    assert box.show("c")["state"] == "RUNNING"
    assert box.hvctl("kill", "--signal", "NONSENSE", "c").returncode == 1


def test_exec_by_the_sdk_for_asyncio(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sleep", "1000")

    async def typed() -> tuple[bytes, int | None]:
        setup = guest_pb2.ExecSetup(name="guests/c", command=["cat"])
        async with AsyncClient(box.endpoint) as client, client.execute(setup) as execution:
            await execution.write(b"typed")
            await execution.end_input()
            output = b"".join([data async for _, data in execution])
            return output, execution.exit_code

    assert asyncio.run(typed()) == (b"typed", 0)


def test_a_clone_has_what_a_stopped_container_wrote_and_goes_its_own_way(box: RealDaemon) -> None:
    script = "cat /srv/file; echo $HOSTNAME >> /srv/file; rm -f /bin/wc; ls /bin/wc"
    box.hvctl("run", "--name", "a", "--image", "box", "--env", "HOSTNAME=once", "--", "sh", "-c", script)
    box.ok("clone", "a", "b")
    for name in ("b", "a"):
        box.ok("start", name)
        box.ok("wait", name)
        assert box.ok("logs", name).stdout.count("once") == 1
