"""Paravirtualisation as users see it: what its guests call, by name, with arguments and the caller; who is refused, and why."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_daemon import RealDaemon, kernel

from hvd.backends.paravirt.backend import BACKEND

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")
PARAVIRT = ("--backend", "paravirt")


def test_calls_by_name(daemon: RealDaemon) -> None:
    """Counted always; with arguments, result, duration and caller for whoever listens; in the metrics by name."""
    daemon.ok("run", "-d", *PARAVIRT, "--name", "calls", "--kernel", kernel("ticker.pv.elf"))
    lines = daemon.ok("trace", "--kind", "hypercall", "--symbols", "--count", "40", "calls").stdout.splitlines()
    shown = re.compile(
        r"calls hypercall\.(idle\(\)|port-out\(port=0x20, size=1, value=0x20\)|console\(address=0x\w+, length=1\)) "
        r"= \d+ rip=0x\w+ \((\w+)\S*\) <\S+s>"
    )
    found = [match for line in lines if (match := shown.search(line))]
    assert len(found) == 40, lines
    assert "main" in {match.group(2) for match in found}
    summary = daemon.ok("trace", "summary", "calls").stdout
    assert re.search(r"^hypercall +hypercall\.idle +\d+ ", summary, re.MULTILINE), summary
    # STI, CLI and PUSHF are none: the few that trap are those before it asked for the ABI, and those of its entry.
    assert "privileged.pushf" not in summary
    assert re.search(r'^hvd_guest_hypercalls_total\{call="idle",guest="calls"\} \d', daemon.ok("metrics", "calls").stdout, re.MULTILINE)
    assert re.search(r'^hvd_guest_callouts_total\{guest="calls"\} [1-9]', daemon.ok("metrics", "calls").stdout, re.MULTILINE)
    assert "0 sensitive instructions" in daemon.ok("census", "calls").stderr
    daemon.ok("snapshot", "calls", "s")
    daemon.ok("create", "--backend", "emulation", "--name", "other", "--kernel", kernel("ticker.pv.elf"))
    refused = daemon.hvctl("restore", "other", "calls/s")
    assert refused.returncode != 0 and "ia32-paravirt/1" in refused.stderr
    daemon.ok("restore", "calls", "s")
    assert daemon.show("calls")["state"] == "RUNNING"
    daemon.ok("kill", "calls")


@pytest.mark.parametrize("other", ["emulation", "rewriting"])
def test_snapshots_stay_on_their_side(daemon: RealDaemon, other: str) -> None:
    """The same kernel runs there, too, but without the page of its virtual processor: both ways are refused before anything is changed."""
    for backend, elsewhere in (("paravirt", other), (other, "paravirt")):
        daemon.ok("run", "-d", "--backend", backend, "--name", backend, "--kernel", kernel("ticker.pv.elf"))
        daemon.ok("snapshot", backend, "s")
        before = daemon.show(backend)["host_pid"]
        refused = daemon.hvctl("restore", backend, "s", "--backend", elsewhere)
        assert refused.returncode != 0
        assert "ia32-paravirt/1" in refused.stderr and "next step: restore it into a guest like the one it was taken of" in refused.stderr
        assert (daemon.show(backend)["state"], daemon.show(backend)["host_pid"]) == ("RUNNING", before)


def test_the_hole_is_closed_and_who_is_no_guest_of_it_is_told(daemon: RealDaemon, tmp_path: Path) -> None:
    done = daemon.hvctl("run", *PARAVIRT, "--name", "hole", "--kernel", kernel("hole.pv.elf"))
    assert done.returncode == 0 and "HOLE closed" in done.stdout
    other = daemon.hvctl("run", *PARAVIRT, "--name", "other", "--kernel", kernel("hole.elf"))
    assert other.returncode == 125 and "it has no HVD note" in other.stderr and "hvpvcc" in other.stderr
    finished = tmp_path / "finished"
    subprocess.run([sys.executable, "-m", "hvd.hvpvcc.main", "--finish", kernel("hole.hvpv.elf"), "-o", finished], check=True)
    assert daemon.hvctl("run", *PARAVIRT, "--kernel", finished).returncode == 0
    for backend in ("emulation", "trap"):
        refused = daemon.hvctl("run", "--backend", backend, "--kernel", finished)
        assert refused.returncode == 125 and "finished by hvpvcc" in refused.stderr
