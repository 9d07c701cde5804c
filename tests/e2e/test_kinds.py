"""docs/kinds.md: each claim has a command that shows it. Here they are run, and must say what the page says, numbers apart."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import BIN, ROOT, RealDaemon, wait_for

PAGE = ROOT / "docs" / "kinds.md"
# What a comment behind a command says when it is not for a test.
DEAR = re.compile(r"\s{2,}# .*$")
# Numbers differ from machine to machine, and so do widths of columns.
NUMBER = re.compile(r"(?:0x[0-9a-f]+|\d[\d,.]*(?:[num]?s)?)")


@dataclass
class Step:
    command: str
    expected: list[str] = field(default_factory=list)


def steps() -> list[Step]:
    """The page's commands, in its order, and lines that they print (not all of them)."""
    found: list[Step] = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("    $ "):
            found.append(Step(line.removeprefix("    $ ")))
        elif line.startswith("    ") and found:
            found[-1].expected.append(line.strip())
    return found


def pattern(line: str) -> re.Pattern[str]:
    parts = [re.escape(part) for part in NUMBER.split(line)]
    return re.compile(NUMBER.pattern.join(re.sub(r"(?:\\ )+", r"\\s+", part) for part in parts) + r"\s*")


@pytest.mark.slow
def test_the_commands_say_what_the_page_says(shared_daemon: RealDaemon) -> None:
    backends = {each["name"]: each for each in shared_daemon.ok("backends", "-o", "json").json["backends"]}
    if missing := [name for name, each in backends.items() if not each["available"] and name != "backends/kvm"]:
        pytest.skip(f"the page needs all kinds; here {missing} do not run")
    environment = shared_daemon.environment | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    ran = 0
    for step in steps():
        if DEAR.search(step.command):
            continue
        if step.command.startswith("hvctl trace summary"):  # a guest that has just begun
            wait_for(lambda: "tick 3" in shared_daemon.ok("logs", "ticker").stdout, "the ticker ticks")
        words = ["sh", "-c", step.command]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
        assert "Traceback" not in done.stderr, done.stderr
        assert step.expected or not done.returncode, (step.command, done.stdout, done.stderr)
        lines = [line.strip() for line in done.stdout.splitlines()]
        for wanted in step.expected:
            assert any(pattern(wanted).fullmatch(line) for line in lines), f"{step.command}\nno line like {wanted!r} in\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran > 20


def test_a_container_has_the_hosts_kernel(shared_daemon: RealDaemon, tmp_path: Path) -> None:
    """What the page lets its reader see, with a root of this machine's own busybox: nothing is fetched."""
    if not any(each["name"] == "backends/container" and each["available"] for each in shared_daemon.ok("backends", "-o", "json").json["backends"]):
        pytest.skip("containers do not run here")
    shared_daemon.ok("image", "import", "own-box", str(busybox_root(tmp_path / "root")))
    told = shared_daemon.ok("run", "--rm", "--image", "own-box", "--", "cat", "/proc/sys/kernel/osrelease").stdout.strip()
    assert told == os.uname().release


def test_commands_have_links_that_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
    assert any("hvctl compare" in step.command for step in steps())
