"""What a host may refuse, walked through the verbs of a real daemon: each fails with the reason or is done, the daemon goes on, and the same
verb without the fault succeeds. Clocks that jump, disks that are slow."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import leaks
import pytest
from container_harness import busybox_root
from fault_table import FAIL, WAIT, FaultTable
from fault_walk import Verbs, Walked, walk
from hvctl.sdk import Client
from real_daemon import RealDaemon, is_process, require_backend, wait_for

from hvd.backends.container.backend import BACKEND as CONTAINER

# "hvd" in the name: the daemon, its templates, its runners.
PROCESSES = ("hvd",)
# What nobody wants to be told: it says nothing.
NOTHING_SAID = ("INTERNAL", "NOT_EXPLAINED", "TIMED_OUT", "DAEMON_UNREACHABLE")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> FaultTable:
    return FaultTable(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def daemon(faults: FaultTable) -> Iterator[RealDaemon]:
    with RealDaemon(prefix=("env", f"LD_PRELOAD={faults.library}")) as daemon:
        require_backend(daemon)
        yield daemon


@pytest.fixture(scope="module")
def verbs(daemon: RealDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verbs]:
    root = busybox_root(tmp_path_factory.mktemp("box") / "root") if CONTAINER.probe().available else None
    with Client(daemon.endpoint, timeout=90) as client:
        yield Verbs(daemon, client, root)


def check(walked: Walked, least: int) -> None:
    print(f"{walked.faults} faults: {dict(walked.outcomes)}")
    assert walked.faults >= least, walked
    silent = [outcome for outcome in walked.outcomes if outcome[2].startswith(NOTHING_SAID)]
    assert not silent, silent


def test_every_fault_of_a_creation(faults: FaultTable, verbs: Verbs) -> None:
    check(walk(faults, verbs, PROCESSES, names=("create", "log")), 50)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", ["start", "snapshot", "clone", "start box"])
def test_every_fault_of_a_verb(faults: FaultTable, verbs: Verbs, verb: str) -> None:
    if verb not in verbs.table():
        pytest.skip("containers do not run here")
    runner = verbs.daemon.runner("victim")
    check(walk(faults, verbs, PROCESSES, names=(verb,)), 10)
    assert verbs.daemon.runner("victim") == runner and is_process(runner)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_fault_of_a_copy(faults: FaultTable, verbs: Verbs) -> None:
    """It writes no file of the daemon's own: what it needs is a process and its pipes."""
    if "copy" not in verbs.table():
        pytest.skip("containers do not run here")
    walked = walk(faults, verbs, PROCESSES, names=("copy",))
    check(walked, 1)
    assert walked.outcomes["copy", "pipe EMFILE", "TOO_MANY_FILES"] >= 3, walked


def test_descriptors_run_out_and_come_back(faults: FaultTable, verbs: Verbs) -> None:
    """Not one, but all for a while: those who have connections are served, and afterwards everybody is."""
    daemon = verbs.daemon
    for call in ("open", "socket", "pipe", "eventfd", "memfd"):
        with faults.fault(call, act=FAIL, error=errno.EMFILE, process="hvd"):
            verbs.client.list_guests()
    assert daemon.hvctl("list").returncode == 0
    verbs.client.start_guest(name="guests/idle")
    verbs.client.kill_guest(name="guests/idle")


def test_the_clock_jumps(faults: FaultTable, verbs: Verbs) -> None:
    """Ahead and back: no guest ends, nobody waits longer or shorter, and times are those of the clock."""
    daemon, client = verbs.daemon, verbs.client
    client.create_guest(guest_id="jumper", guest={"backend": "emulation", "machine": {"kernel": verbs.digest, "memory_bytes": 4 << 20}})
    for jump in (86400 * 400, -86400 * 400, 0):
        faults.clock(jump)
        started = client.start_guest(name="guests/jumper")
        assert abs(started.start_time.seconds - (time.time() + jump)) < 600
        lines = daemon.ok("logs", "victim").stdout.count("tick")
        wait_for(lambda lines=lines: daemon.ok("logs", "victim").stdout.count("tick") > lines, "the victim ticks on")
        assert client.stop_guest(name="guests/jumper", grace_period={"nanos": 100_000_000}).state == started.STOPPED
    client.delete_guest(name="guests/jumper")
    assert daemon.show("victim")["state"] == "RUNNING"


def test_a_slow_disk_holds_up_only_those_who_write(faults: FaultTable, verbs: Verbs) -> None:
    done = threading.Event()
    verbs.client.get_registers(name="guests/victim")  # the first time it takes longer

    def create() -> None:
        with Client(verbs.daemon.endpoint, timeout=90) as other:
            guest = {"backend": "emulation", "machine": {"kernel": verbs.digest, "memory_bytes": 4 << 20}}
            other.create_guest(guest_id="slow", guest=guest)
        done.set()

    with faults.fault("sync", act=WAIT, path="hvd.sqlite", seconds=2.5):
        writer = threading.Thread(target=create)
        writer.start()
        wait_for(lambda: faults.seen() > 0, "its creation is at the disk")
        for _ in range(3):
            verbs.client.get_guest(name="guests/victim")
            verbs.client.get_registers(name="guests/victim")
        assert not done.is_set(), "readers waited for the writer"
        writer.join()
    verbs.client.delete_guest(name="guests/slow")


def test_nothing_is_left(daemon: RealDaemon, verbs: Verbs) -> None:
    daemon.clear()
    assert not list((daemon.runtime_dir / "guests").glob("[0-9a-f]*"))
    assert not list((daemon.state_dir / "guests").glob("*")), "files of guests that are gone"
    assert not leaks.mounts_below(daemon.directory)
