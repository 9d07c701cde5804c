"""The example program of docs/, as a user would run it, against the real daemon."""

from __future__ import annotations

import re
import subprocess
import sys

from real_daemon import ROOT, RealDaemon, kernel

EXAMPLE = ROOT / "docs" / "examples" / "trace_guest.py"


def run_example(daemon: RealDaemon, guest: str, seconds: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLE, daemon.endpoint, kernel(guest), seconds], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not daemon.listed(), "it deletes its guest"
    return done.stdout


def test_it_traces_a_guest_from_its_first_instruction_to_its_end(daemon: RealDaemon) -> None:
    text = run_example(daemon, "hypercalls.elf", "60")
    assert re.search(r" hypercall\.annotate\(value0=0xdeadbeef, value1=0x2a\) = 0 rip=0x[0-9a-f]+ <", text)
    assert " ended: EXITED, exit code 0" in text
    assert re.search(r"^ +2 hypercall\.annotate$", text, re.MULTILINE)


def test_it_stops_a_guest_that_goes_on(daemon: RealDaemon) -> None:
    text = run_example(daemon, "ticker.elf", "2")
    assert " interrupt(vector=0x20) " in text and " ended: KILLED, exit code 0" in text


def test_it_says_what_is_wrong(daemon: RealDaemon) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "unix:///nowhere/hvd.sock", kernel("hello.elf")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "/nowhere/hvd.sock" in done.stderr and "Traceback" not in done.stderr
