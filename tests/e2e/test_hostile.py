"""A guest that attacks its host, as users see it: it ends, with the reason; the daemon and other guests do not notice."""

from __future__ import annotations

import os
import signal
import struct

import pytest
from hostile_rig import SCRIPT, Act
from hvapi.v1.guest_pb2 import Guest
from real_daemon import RealDaemon, children, is_process, wait_for

from hvd.backends.trap.backend import BACKEND

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")
TRAP = ("--backend", "trap")
OPEN = 2


def script(*steps: tuple[int, ...]) -> str:
    """For `mem write` at SCRIPT + 16."""
    return b"".join(struct.pack("<8Q", *step, *(0,) * (8 - len(step))) for step in steps).hex()


def test_a_system_call_of_the_host(daemon: RealDaemon) -> None:
    other = daemon.run("ticker.elf", *TRAP)
    name = daemon.run("hostile.bin", *TRAP, "--flat", "0x100000")
    wait_for(lambda: "hostile: ready" in daemon.ok("logs", name).stdout, "its first word")
    runner = daemon.runner(name)
    daemon.ok("mem", "write", name, hex(SCRIPT + 16), script((Act.CALL, OPEN, 0x110000, 0)))
    daemon.ok("mem", "write", name, hex(SCRIPT), "01")
    found = wait_for(lambda: daemon.show(name)["state"] == "FAILED" and daemon.show(name), "its end")
    assert "made a system call of the host" in found["status_message"], found
    wait_for(lambda: not is_process(runner), "the runner's end")
    ticks = daemon.ok("logs", other).stdout.count("tick")
    wait_for(lambda: daemon.ok("logs", other).stdout.count("tick") > ticks, "another tick of the other guest")


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_cell_that_is_killed(daemon: RealDaemon, paused: bool) -> None:
    """It is seen at once, by itself; the other guest, the console's log and the trace stay, and the restart policy acts."""
    other = daemon.run("ticker.elf", *TRAP)
    name = daemon.run("ticker.elf", *TRAP, "--restart", "on-failure")
    daemon.wait_logs(name, "tick 2")
    runner = daemon.runner(name)
    if paused:
        daemon.ok("pause", name)
    (cell,) = children(runner)
    neighbour = daemon.runner(other)
    with daemon.client() as client:
        events = iter(client.watch([f"guests/{name}"]))
        next(events)  # the present: whatever changes now is told
        os.kill(cell, signal.SIGKILL)
        failed = next(event.guest for event in events if event.guest.state == Guest.FAILED)
        assert "killed from outside" in failed.status_message and failed.reason == "EXECUTION_ERROR"
        again = next(event.guest for event in events if event.guest.state == Guest.RUNNING)
    assert again.host_pid != runner and again.restart_count == 1
    wait_for(lambda: not is_process(runner), "the runner's end")
    assert daemon.ok("logs", name).stdout.startswith("tick 0\r\ntick 1\r\ntick 2\r\n")
    assert daemon.runner(other) == neighbour and daemon.show(other)["state"] == "RUNNING"


def test_the_daemon_is_killed_and_comes_back(own_daemon: RealDaemon) -> None:
    """Cells belong to their runners: a guest ticks on without a daemon, and is adopted."""
    name = own_daemon.run("ticker.elf", *TRAP)
    own_daemon.restart(signal.SIGKILL)
    wait_for(lambda: own_daemon.show(name)["state"] == "RUNNING", "its adoption")
    ticks = own_daemon.ok("logs", name).stdout.count("tick")
    wait_for(lambda: own_daemon.ok("logs", name).stdout.count("tick") > ticks, "another tick")
    own_daemon.ok("kill", name)
