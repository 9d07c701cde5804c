"""Which way of learning system calls is taken, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_daemon import RealDaemon
from test_containers import root

from hvd.backends.container.trace.choice import choose

__all__ = ["root"]


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert choose("off").reason and not choose("off").ways
    monkeypatch.setattr("hvd.backends.container.trace.ebpf.Programs", refuse)
    choice = choose("auto")
    assert choice.ways == ("tracefs",) and "Operation not permitted" in choice.remark
    assert "eBPF" in choose("ebpf").reason
    monkeypatch.setattr("hvd.backends.container.trace.tracefs._mount", refuse)
    choice = choose("auto")
    assert not choice.ways and "eBPF" in choice.reason and "trace files" in choice.reason
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in choose("auto").reason


def test_switched_off_it_is_said_where_one_looks(root: Path) -> None:
    with RealDaemon("--container-tracer", "off") as daemon:
        daemon.ok("image", "import", "box", str(root))
        assert "switched off" in daemon.hvctl("doctor").stdout
        daemon.ok("create", "--name", "c", "--image", "box", "--", "true")
        done = daemon.hvctl("trace", "c")
        assert done.returncode != 0 and "switched off" in done.stderr
        daemon.clear()
