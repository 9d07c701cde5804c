"""A fake daemon per test, and two ways to run hvctl: in this process (fast) and as a process of its own (stdin, terminals, signals)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Hvctl, Outcome, environment
from fake_daemon import FakeDaemon
from hvctl.cli import main


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "hvd.sock")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def hvctl(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hvctl:
    """Runs hvctl against the fake daemon: hvctl("list", "-o", "json")."""
    monkeypatch.setenv("HVD_ENDPOINT", daemon.endpoint)

    def run(*words: str) -> Outcome:
        capfd.readouterr()
        code = main(list(words))
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def process(daemon: FakeDaemon) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts hvctl as a process with pipes; killed at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options
        child = subprocess.Popen([sys.executable, "-m", "hvctl", *words], env=environment(daemon), **pipes)
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
