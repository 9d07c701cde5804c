"""A guest that goes on under another backend, by name: in the middle of translated code, of what is emulated, and back."""

from __future__ import annotations

import re

import pytest
from hvapi.v1 import guest_pb2
from real_daemon import RealDaemon, kernel, wait_for

from hvd.backends.rewriting.backend import BACKEND

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")
# Over memory, with interrupts: tenths of a second where it is translated.
WORK = "memory=1 timer=200 n=30000000"


def _caught(daemon: RealDaemon, name: str) -> None:
    """A paused guest is let go, and paused again somewhere in its computation."""
    with daemon.client() as client:
        for _ in range(100):
            client.resume_guest(guest_pb2.ResumeGuestRequest(name=f"guests/{name}"))
            client.pause_guest(guest_pb2.PauseGuestRequest(name=f"guests/{name}"))
            registers = {row["name"]: int(row["value"]) for row in daemon.ok("regs", name, "-o", "json").json["registers"]}
            if registers["rflags"] & 0x200:  # it has switched interrupts on, and its first turns are behind it
                return
    pytest.fail("it has not begun")


def _result(daemon: RealDaemon, name: str) -> str:
    """What it wrote last, at its end."""
    wait_for(lambda: daemon.show(name)["state"] == "STOPPED", "its end")
    found = re.findall(r"checksum (0x[0-9a-f]+)\ncompute: ok", daemon.ok("logs", name).stdout.replace("\r", ""))
    return str(found[-1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rewriting_to_emulation_and_back(daemon: RealDaemon) -> None:
    options = ("--backend", "rewriting", "--append", WORK)
    right = _result(daemon, daemon.run("compute.elf", *options))
    daemon.ok("create", "--name", "mover", "--memory", "8M", "--kernel", kernel("compute.elf"), *options)
    daemon.ok("start", "--paused", "mover")
    _caught(daemon, "mover")
    daemon.ok("snapshot", "mover", "one")
    daemon.ok("restore", "mover", "one", "--backend", "emulation")
    assert daemon.show("mover")["backend"] == "emulation"
    _caught(daemon, "mover")
    daemon.ok("snapshot", "mover", "two")
    daemon.ok("restore", "mover", "two", "--backend", "rewriting")
    assert daemon.show("mover")["backend"] == "rewriting"
    _caught(daemon, "mover")
    daemon.ok("resume", "mover")
    assert _result(daemon, "mover") == right
    assert daemon.ok("logs", "mover").stdout.count("checksum") == 1
    daemon.ok("restore", "mover", "one", "--backend", "emulation")
    daemon.ok("resume", "mover")
    assert _result(daemon, "mover") == right
    assert daemon.ok("logs", "mover").stdout.count("checksum") == 2
