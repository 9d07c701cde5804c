"""The jail of runners and cells: seen from outside on guests of the real daemon, and from inside by trying to get out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_daemon import ROOT, RealDaemon, children, kernel, wait_for

from hvd.cell.area import Fd
from hvd.jail import landlock, seccomp, user

pytestmark = pytest.mark.skipif(bool(user.missing()), reason=f"the jail's walls need privileges: {', '.join(user.missing())}")
RAWIO_CHROOT = 1 << 17 | 1 << 18
PERFMON = 1 << 38


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def namespaces(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt", "ipc", "uts", "pid")}


def check_locked_in(pid: int, owner: int, capabilities: int) -> None:
    about = status(pid)
    assert set(about["Uid"].split()) == set(about["Gid"].split()) == {str(owner)} and about["Groups"] == ""
    for which in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
        assert int(about[which], 16) | capabilities == capabilities, which
    assert (about["NoNewPrivs"], about["Seccomp"]) == ("1", "2")
    ours = namespaces("self")
    assert not [kind for kind, name in namespaces(pid).items() if name == ours[kind]]
    assert not Path(f"/proc/{pid}/root/etc").exists() and not Path(f"/proc/{pid}/root/dev").exists()
    links = subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"1: lo: <LOOPBACK> .*\n?(?:\d+: \w+@NONE: <NOARP> .*\n?)*", links), links


def descriptors(pid: int) -> set[str]:
    """What is open, without numbers and the guest's own directory."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(re.sub(r":\[\d+\]", "", os.readlink(entry)))
    return found


def spares(daemon: RealDaemon, backend: str) -> set[int]:
    """Runners that wait for a guest of that backend, those of other guests' templates apart, which come when nothing is asked of them."""
    ours = f"-m hvd.runner.template {backend}$"
    found_templates = subprocess.run(["pgrep", "-P", str(daemon.pid), "-f", "--", ours], capture_output=True, text=True)
    templates = [int(pid) for pid in found_templates.stdout.split()]
    found = set()
    for pid in (pid for template in templates for pid in children(template)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            about = status(pid)
            if about["Name"] == "hvd:spare" and not about["State"].startswith("Z"):
                found.add(pid)
    return found


@pytest.mark.parametrize(("backend", "spare"), [("emulation", False), ("emulation", True), ("trap", False), ("rewriting", True)])
def test_a_guest_s_processes_are_locked_in(daemon: RealDaemon, backend: str, spare: bool) -> None:
    for pid in spares(daemon, backend):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not spares(daemon, backend), "they have ended")
    if spare:
        if daemon.hvctl("run", "--rm", "--backend", backend, "--kernel", kernel("hello.elf"), "--memory", "8M").returncode == 6:
            pytest.skip(f"{backend} does not run here")
        wait_for(lambda: spares(daemon, backend), "there is a spare")
    waiting = {pid: children(pid) for pid in spares(daemon, backend)}
    # It has a network and a root of its own at hand, but is still in the host's.
    for pid in waiting:
        for kind in ("net", "mnt"):
            assert namespaces(pid)[kind] == namespaces(daemon.pid)[kind]
            assert kind in descriptors(pid)
    done = daemon.hvctl("run", "-d", "--name", "g", "--backend", backend, "--kernel", kernel("echo.elf"), "--memory", "8M")
    if done.returncode == 6:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    shown = daemon.show("g")
    runner, owner = int(shown["host_pid"]), user.user_of(shown["uid"])
    assert (runner in waiting) == spare
    check_locked_in(runner, owner, 0 if backend == "emulation" else RAWIO_CHROOT)
    home = daemon.runtime_dir / "guests" / shown["uid"]
    assert {path.stat().st_uid for path in (home, home / "console.log", home / "control") if path.exists()} == {owner}
    allowed = {"/dev/null", "socket", "anon_inode", "pipe", kernel("echo.elf")}
    allowed |= {f"/proc/{cell}/maps" for cell in waiting.get(runner, [])}
    odd = {
        target for target in descriptors(runner)
        if target.split(":")[0] not in allowed and not target.startswith(("/memfd:", "anon_inode:", str(home), str(daemon.state_dir / "blobs")))
    }  # fmt: skip
    assert not odd, odd
    mounts = [line.split() for line in Path(f"/proc/{runner}/mountinfo").read_text().splitlines()]
    # Nothing that is mounted on the host comes in there, and the other way round.
    assert not [mount for mount in mounts if mount[6] != "-"]
    assert {mount[4]: mount[5].split(",")[0] for mount in mounts if not mount[4].startswith("/proc")}.items() >= {"/": "ro", str(home): "rw"}.items()
    cells = children(runner)
    assert bool(cells) == (backend != "emulation")
    assert not spare or cells == waiting[runner]  # made ahead
    for cell in cells:
        check_locked_in(cell, owner, RAWIO_CHROOT)
        assert int(status(cell)["CapEff"], 16) | 1 << 17 == 1 << 17
        assert status(cell)["Seccomp_filters"] == "2"
        assert os.listdir(f"/proc/{cell}/root") == []
        assert {int(number) for number in os.listdir(f"/proc/{cell}/fd")} - {Fd.CONSOLE + 3} == {Fd.MEMORY, Fd.GO, Fd.LEFT, Fd.CONSOLE}
        assert status(cell)["NSsid"] == status(runner)["NSsid"]
        # Its runner goes on to look at it, and to signal it.
        assert any(shadow.get("mapped") for shadow in json.loads(daemon.ok("-o", "json", "mem", "translate", "g", "0x100000").stdout)["shadows"])
        daemon.ok("pause", "g")
        daemon.ok("resume", "g")
    # It works as ever: console, memory, snapshot, what is written when it ends.
    daemon.ok("snapshot", "g", "one")
    daemon.ok("restore", "g", "one")
    daemon.ok("kill", "g")
    assert daemon.show("g")["reason"] == "KILLED"
    # And nothing of the jail is left.
    wait_for(lambda: not Path(f"/proc/{runner}").exists(), "the runner is gone")
    assert shown["uid"] not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("why", ["its cell was killed", "its cell was stopped", "another engine", "another size"])
def test_a_spare_whose_cell_is_of_no_use_makes_another(daemon: RealDaemon, why: str) -> None:
    words = ["run", "-d", "--backend", "rewriting", "--kernel", kernel("echo.elf")]
    if daemon.hvctl(*words, "--memory", "8M", "--name", "a").returncode == 6:
        pytest.skip("rewriting does not run here")
    daemon.ok("kill", "a")
    waiting = {pid: children(pid) for pid in wait_for(lambda: spares(daemon, "rewriting"), "there is a spare")}
    sent = {"its cell was killed": signal.SIGKILL, "its cell was stopped": signal.SIGSTOP}
    for cell in (cell for cells in waiting.values() for cell in cells if why in sent):
        os.kill(cell, sent[why])
    different = {"another engine": ["--engine", "breakpoint"], "another size": ["--memory", "16M"]}
    done = daemon.hvctl(*words, "--memory", "8M", "--name", "b", *different.get(why, []))
    if done.returncode == 6:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    runner, owner = daemon.runner("b"), user.user_of(daemon.show("b")["uid"])
    assert (runner in waiting) == (why != "its cell was stopped")  # that spare is ended, and another, or none, taken
    check_locked_in(runner, owner, RAWIO_CHROOT | PERFMON)
    (cell,) = [cell for cell in children(runner) if not status(cell)["State"].startswith("Z")]
    assert not any(cell in cells for cells in waiting.values())
    check_locked_in(cell, owner, RAWIO_CHROOT | PERFMON)
    daemon.ok("pause", "b")
    daemon.ok("kill", "b")


def test_doctor_says_how_machines_are_held(daemon: RealDaemon) -> None:
    findings = {finding["subject"]: finding for finding in daemon.hvctl("doctor", "-o", "json").json["findings"]}
    assert findings["jail"]["level"] == "OK"
    assert findings["landlock"]["level"] == ("OK" if landlock.version() else "NOTE")


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
@pytest.mark.parametrize(("prefix", "options", "filters"), [(("setpriv", "--bounding-set", "-sys_admin"), (), "1"), ((), ("--jail", "off"), "0")])
def test_with_less_there_is_less_and_doctor_says_so(prefix: tuple[str, ...], options: tuple[str, ...], filters: str) -> None:
    with RealDaemon(*options, prefix=prefix) as daemon:
        findings = {finding["subject"]: finding for finding in daemon.hvctl("doctor", "-o", "json").json["findings"]}
        assert findings["jail"]["level"] == "NOTE" and ("sys_admin" if prefix else "off") in findings["jail"]["message"]
        about = status(daemon.runner(daemon.run("echo.elf")))
        assert (about["Uid"].split()[0], about["Seccomp_filters"]) == ("0", filters)
        for backend in ("trap", "rewriting"):
            done = daemon.hvctl("run", "--backend", backend, "--kernel", kernel("hello.elf"), "--memory", "8M")
            assert done.returncode == 0 or "does not run here" in done.stderr, done.stderr


def test_two_guests_are_two_users(daemon: RealDaemon) -> None:
    pids = [daemon.runner(daemon.run("echo.elf")) for _ in range(2)]
    first, second = (status(pid)["Uid"] for pid in pids)
    assert first != second


def test_a_cell_does_not_outlive_its_runner(daemon: RealDaemon) -> None:
    done = daemon.hvctl("run", "-d", "--name", "g", "--backend", "trap", "--kernel", kernel("echo.elf"), "--memory", "8M")
    if done.returncode == 6:
        pytest.skip(done.stderr)
    runner = daemon.runner("g")
    (cell,) = children(runner)
    # Outside they have the host's numbers, inside their own.
    assert status(runner)["NSpid"].split() == [str(runner), "1"]
    assert len(status(cell)["NSpid"].split()) == 2
    stopped = os.pidfd_open(cell)
    try:
        os.kill(cell, signal.SIGSTOP)  # it does not end by itself
        os.kill(runner, signal.SIGKILL)
        wait_for(lambda: daemon.show("g")["state"] == "FAILED", "the guest has ended")
        assert select.select([stopped], [], [], 0)[0], "the cell lives"
    finally:
        os.close(stopped)
    assert daemon.show("g")["reason"] == "RUNNER_CRASHED"


def escape(tmp_path: Path, walls: str) -> dict[str, Any]:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    secret.chmod(0o644)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1_900_000_000, 1_900_000_000)
    name = str(tmp_path / "socket")
    words = [sys.executable, str(ROOT / "tests" / "e2e" / "jail_escape.py"), walls, str(home), str(secret), str(os.getpid()), name]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"})
    assert done.returncode == 0, done.stderr
    assert secret.read_text() == "the host's"
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("own") == "what is the guest's own can be written"
    assert not {name: what for name, what in found.items() if what not in ("", "[]")}
    return found


def test_nobody_gets_out(tmp_path: Path) -> None:
    assert len(escape(tmp_path, "all")) > 65


@pytest.mark.skipif(landlock.version() < 6, reason="a Landlock that keeps signals and abstract sockets in: kernel 6.12")
@pytest.mark.parametrize("walls", ["landlock", "landlock around a child"])
def test_landlock_alone_keeps_even_root_from_what_is_not_the_guest_s(tmp_path: Path, walls: str) -> None:
    assert len(escape(tmp_path, walls)) > 20


def test_the_filter_knows_no_call_that_makes_links_devices_or_namespaces() -> None:
    forbidden = {"symlink": 88, "symlinkat": 266, "link": 86, "linkat": 265, "mknod": 133, "mknodat": 259, "unshare": 272, "setns": 308,
                 "mount": 165, "ptrace": 101, "bpf": 321, "io_uring_setup": 425, "init_module": 175, "iopl": 172, "ioperm": 173}  # fmt: skip
    assert not [name for name, number in forbidden.items() if number in seccomp.ALLOWED]
    assert len(seccomp.program()) // 8 < 4096
