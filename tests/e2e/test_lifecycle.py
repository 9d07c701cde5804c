"""Verbs and ends of guests, through the real daemon and the real client."""

from __future__ import annotations

import pytest
from real_daemon import RealDaemon, kernel

ENDS = [
    # kernel, options, state, reason, exit code, exit code of `run`
    ("hello.elf", (), "STOPPED", "EXITED", 0, 0),
]


@pytest.mark.parametrize(("guest", "options", "state", "reason", "code", "run_code"), ENDS)
def test_end(
    daemon: RealDaemon, guest: str, options: tuple[str, ...], state: str, reason: str, code: int, run_code: int
) -> None:
    done = daemon.hvctl("run", "--name", "a", "--kernel", kernel(guest), "--memory", "8M", *options)
    assert done.returncode == run_code, done.stderr
    found = daemon.listed()["a"]
    assert (found["state"], found["reason"], found.get("exit_code")) == (state, reason, code)
