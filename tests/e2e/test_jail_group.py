"""The control groups of machines: what limits there are, what happens at them, and that they go with the guest, on guests of the real daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hvctl.sdk.errors import HvctlError
from real_daemon import RealDaemon, kernel, wait_for

from hvd.cgroup.hierarchy import hierarchy
from hvd.jail import group

pytestmark = pytest.mark.skipif(bool(group.problem()), reason=f"no control groups: {group.problem()}")
MIB = 1 << 20
GROUPS = hierarchy()
LIMIT, USED = ("memory.limit_in_bytes", "memory.usage_in_bytes") if "memory" in GROUPS.version_1 else ("memory.max", "memory.current")


def run(daemon: RealDaemon, name: str, backend: str, memory: str) -> str:
    """Its uid."""
    done = daemon.hvctl("run", "-d", "--name", name, "--backend", backend, "--kernel", kernel("echo.elf"), "--memory", memory)
    if "does not run here" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return str(daemon.show(name)["uid"])


def where(controller: str, uid: str) -> Path:
    found = GROUPS.directory(controller, uid)
    assert found is not None
    return found


def members(controller: str, uid: str) -> set[int]:
    try:
        return {int(word) for word in (where(controller, uid) / "cgroup.procs").read_text().split()}
    except FileNotFoundError:  # it is made while the guest starts
        return set()


def left(uid: str) -> list[Path]:
    return [path for path in GROUPS.directories(uid) if path.exists()]


@pytest.mark.parametrize("backend", ["emulation", "rewriting"])
def test_a_guest_s_processes_have_limits(daemon: RealDaemon, backend: str) -> None:
    uid = run(daemon, "g", backend, "8M")
    runner, least = daemon.runner("g"), 1 if backend == "emulation" else 2  # and its cell
    for controller in ("memory", "pids"):
        found = wait_for(lambda name=controller: len(those := members(name, uid)) >= least and those, f"they are in {controller}")
        assert runner in found
    assert (where("pids", uid) / "pids.max").read_text().strip() == str(group.MOST_PROCESSES)
    limit = int((where("memory", uid) / LIMIT).read_text())
    assert group.OWN_BYTES < limit < group.OWN_BYTES + 64 * MIB
    daemon.ok("kill", "g")
    assert not left(uid)
    assert daemon.show("g")["reason"] == "KILLED"


@pytest.mark.parametrize("backend", ["emulation", "rewriting"])
def test_who_is_over_the_limit_fails_alone(daemon: RealDaemon, backend: str) -> None:
    uid, neighbour = run(daemon, "hog", backend, "64M"), daemon.run("ticker.elf")
    wait_for(lambda: daemon.runner("hog") in members("memory", uid), "it is in its group")
    memory = where("memory", uid)
    limit = int((memory / USED).read_text()) + 8 * MIB
    (memory / LIMIT).write_text(str(limit))
    with daemon.client() as client, pytest.raises(HvctlError):
        for address in range(4 * MIB, 60 * MIB, MIB):
            client.write_memory(name="guests/hog", address=address, data=b"x" * MIB)
    ended = daemon.wait("hog")
    assert (ended["state"], ended["reason"], ended["oom_killed"]) == ("FAILED", "RUNNER_OUT_OF_MEMORY", True)
    assert f"more than the {limit // MIB} MiB" in ended["status_message"]
    assert not left(uid)
    assert daemon.show(neighbour)["state"] == "RUNNING"
    daemon.ok("start", "hog")  # with the limit that it had
    assert int((memory / LIMIT).read_text()) > group.OWN_BYTES
    daemon.ok("delete", "--force", "hog")
    assert not left(uid)


def test_groups_go_with_guests_whoever_sees_their_end(own_daemon: RealDaemon) -> None:
    daemon = own_daemon
    kept, killed, hog, bare = (run(daemon, name, "emulation", "8M") for name in ("kept", "killed", "hog", "bare"))
    runners = {uid: daemon.runner(name) for name, uid in (("kept", kept), ("killed", killed), ("hog", hog), ("bare", bare))}
    for uid, runner in runners.items():
        wait_for(lambda uid=uid, runner=runner: runner in members("memory", uid), "it is in its group")
    daemon.stop(signal.SIGKILL)
    os.kill(runners[killed], signal.SIGKILL)
    assert left(kept) and left(killed) and left(hog)
    # One that was not moved before the daemon died, and one whose group was not even made.
    for uid in (kept, bare):
        for controller in ("memory", "pids"):
            (where(controller, uid).parents[1] / "cgroup.procs").write_text(str(runners[uid]))
        assert runners[uid] not in members("memory", uid)
    limit = (where("memory", bare) / LIMIT).read_text()
    for controller in ("memory", "pids"):
        where(controller, bare).rmdir()
    daemon.start()
    assert daemon.show("killed")["reason"] == "RUNNER_CRASHED" and not left(killed)
    for uid in (kept, bare):
        wait_for(lambda uid=uid: runners[uid] in members("memory", uid), "the next daemon moves it")
    assert (where("memory", bare) / LIMIT).read_text() == limit
    assert (daemon.show("hog")["state"], members("pids", hog)) == ("RUNNING", {runners[hog]})
    for name, uid in (("kept", kept), ("hog", hog), ("bare", bare)):
        daemon.ok("delete", "--force", name)
        assert not left(uid)


def test_doctor_says_what_holds_machines_processes(daemon: RealDaemon) -> None:
    findings = {finding["subject"]: finding for finding in daemon.hvctl("doctor", "-o", "json").json["findings"]}
    assert findings["control groups"]["level"] == "OK"


def test_without_them_guests_run_and_doctor_says_so() -> None:
    with RealDaemon("--jail", "off") as daemon:
        findings = {finding["subject"]: finding for finding in daemon.hvctl("doctor", "-o", "json").json["findings"]}
        assert findings["control groups"]["level"] == "NOTE" and "jail is off" in findings["control groups"]["message"]
        uid = run(daemon, "g", "emulation", "8M")
        assert not left(uid)
