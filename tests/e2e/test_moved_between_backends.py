"""A guest that goes on under another backend, by name: in the middle of translated code, of what is emulated, and back; a Linux of Debian's, too."""

from __future__ import annotations

import re
import time

import pytest
from guest_shell import Shell, quiet_shell
from hvapi.v1 import guest_pb2
from real_daemon import RealDaemon, kernel, wait_for

from hvd.backends.rewriting.backend import BACKEND
from tests.guest_images import GuestUnavailable, guest_image

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")
# Over memory, with interrupts: tenths of a second where it is translated.
WORK = "memory=1 timer=200 n=30000000"
AWAY_SECONDS = 3.0


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


def _uptime(shell: Shell) -> float:
    return float(shell("cut -d' ' -f1 /proc/uptime"))


def _sleeps(shell: Shell) -> None:
    """A second of its timers takes one by its counter, and no more than outside."""
    start, before = time.monotonic(), _uptime(shell)  # in this order: the guest may answer late
    shell("sleep 1")
    assert 0.95 <= _uptime(shell) - before <= time.monotonic() - start + 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_linux_goes_on_without_noticing(daemon: RealDaemon) -> None:
    """Debian's 686 kernel: paused, then to emulation and back, twice. Its clock stands while it is not there."""
    try:
        image = guest_image("debian-686")
    except GuestUnavailable as error:
        pytest.skip(str(error))
    process = daemon.spawn("run", "--backend", "rewriting", "--name", "a", "--memory", "128M", "--kernel", str(image.kernel),
                           "--initrd", str(image.initrd), "--append", "console=ttyS0")  # fmt: skip
    shell = quiet_shell(process)
    shell("echo kept >/tmp/kept")
    clock = shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    start, before = time.monotonic(), _uptime(shell)
    daemon.ok("pause", "a")
    time.sleep(AWAY_SECONDS)
    daemon.ok("resume", "a")
    away = AWAY_SECONDS
    for number, backend in enumerate(("emulation", "rewriting", "emulation", "rewriting")):
        daemon.ok("snapshot", "a", str(number), timeout=120)
        daemon.ok("pause", "a")
        time.sleep(AWAY_SECONDS)
        away += AWAY_SECONDS
        daemon.ok("restore", "a", str(number), "--backend", backend, timeout=120)
        process = daemon.spawn("console", "a")
        process.type("\n")
        shell = Shell(process)
        _sleeps(shell)
    gone = _uptime(shell) - before
    assert 4 <= gone <= time.monotonic() - start - away
    assert shell("cat /tmp/kept") == "kept"
    said = shell("dmesg")
    assert not re.search(r"soft lockup|hard lockup|detected stall|skew is too large|time.*backw", said, re.IGNORECASE), said
    if clock == "tsc":  # a host that is very busy can make it look bad before all this
        assert shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "tsc" or "excessive read-back delay" in said
    daemon.ok("kill", "a")
