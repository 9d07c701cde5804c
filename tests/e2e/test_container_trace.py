"""System calls of containers, through the real daemon and the real client."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_daemon import Process, RealDaemon, wait_for
from test_containers import box, root  # noqa: F401  fixtures

from hvd.backends.container.backend import BACKEND
from hvd.backends.container.runtime import is_hybrid
from hvd.backends.contract import Capability

OPENS = 23
KNOWN = "/srv/known"
WORKLOAD = f"i=0; while [ $i -lt {OPENS} ]; do : > {KNOWN}; i=$((i+1)); done"


@pytest.fixture(autouse=True)
def traceable(daemon: RealDaemon) -> Iterator[None]:
    if Capability.TRACE not in BACKEND.capabilities:
        pytest.skip(BACKEND.limitations[Capability.TRACE])
    assert programs(daemon) == []
    yield
    wait_for(lambda: not programs(daemon), "the programs are unloaded")


def programs(daemon: RealDaemon) -> list[str]:
    """eBPF programs that this daemon holds; others may trace, too."""
    found = []
    for info in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        try:
            text = info.read_text()
        except OSError:
            continue
        found += [str(info) for line in text.splitlines() if line.startswith("raw_tracepoint:")]
    return found


def tracing(daemon: RealDaemon, *words: str) -> Process:
    process = daemon.spawn("trace", *words, "-f", "-o", "jsonl")
    process.wait_err("tracing ")
    return process


def records(process: Process) -> list[dict[str, Any]]:
    assert process.end() == 0
    return [json.loads(line) for line in process.out.splitlines()]


def opens(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in found if r["point"] in ("open", "openat") and r["texts"]["pathname"] == KNOWN]


def test_a_known_workload_gives_exactly_its_calls_and_no_other_container_appears(box: RealDaemon) -> None:  # noqa: F811
    box.ok("run", "-d", "--name", "other", "--image", "box", "--", "sh", "-c", "while :; do cat /etc/group; done >/dev/null")
    box.ok("create", "--name", "c", "--image", "box", "--", "sh", "-c", f"{WORKLOAD}; cat /none; (exec cat /etc/passwd) > /dev/null; exit 0")
    with contextlib.closing(tracing(box, "c")) as process:
        box.ok("start", "c")
        found = records(process)
    assert not [r for r in found if r["point"] == "lost"]
    seen = opens(found)
    assert len(seen) == OPENS
    assert all(r["result"] >= 0 and r["duration_ns"] > 0 and r["kind"] == "system-call" for r in seen)
    paths = {path for r in found for path in r.get("texts", {}).values()}
    assert "/etc/group" not in paths and "/etc/passwd" in paths
    missing = [r for r in found if r.get("texts", {}).get("pathname") == "/none"]
    assert [r["result"] for r in missing if r["point"].startswith("open")] == [(1 << 64) - 2]
    assert len({r["arguments"]["pid"] for r in found}) >= 3  # the shell and what it forked
    assert all(r["guest"] == "guests/c" for r in found)
    with urllib.request.urlopen(box.metrics_url()) as answer:
        metrics = answer.read().decode()
    assert re.search(r'^hvd_\w+\{[^}]*"exit_group"[^}]*\} [1-9]', metrics, re.MULTILINE)
    rows = {row["reason"]: int(row["count"]) for row in box.ok("trace", "summary", "c", "-o", "json").json["rows"]}
    assert rows["openat" if "openat" in rows else "open"] >= OPENS and rows["exit_group"] >= 3


def test_what_exec_starts_is_followed_and_lines_read_like_those_of_strace(box: RealDaemon) -> None:  # noqa: F811
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sleep", "1000")
    with contextlib.closing(box.spawn("trace", "c", "-f")) as process:
        process.wait_err("tracing ")
        box.ok("exec", "c", "--", "cat", "/etc/passwd")
        process.wait_out("exit_group(")
        wait_for(lambda: 'pathname="/etc/passwd"' in process.out, "the open")
        process.interrupt()
    line = next(line for line in process.out.splitlines() if 'pathname="/etc/passwd"' in line and " open" in line)
    assert " c open" in line and "flags=O_RDONLY" in line and " = " in line and line.endswith("s>")


def test_a_flood_is_lost_in_part_and_counted(box: RealDaemon) -> None:  # noqa: F811
    box.ok("create", "--name", "c", "--image", "box", "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=300000")
    with contextlib.closing(tracing(box, "c", "--reason", "read")) as process:
        box.ok("start", "c")
        found = records(process)
    lost = sum(r.get("lost", 0) for r in found)
    shown = sum(r["point"] == "read" for r in found)
    assert shown and lost
    assert shown <= 300100


def test_one_that_an_earlier_daemon_started_is_traced_too(box: RealDaemon) -> None:  # noqa: F811
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", f"while :; do : > {KNOWN}; sleep 0.05; done")
    box.restart(signal.SIGKILL)
    done = box.ok("trace", "c", "--reason", "openat", "--reason", "open", "--count", "5", "-o", "jsonl")
    assert len(opens(done.jsonl)) >= 4


def test_a_container_without_a_group_of_version_2_is_refused_with_the_reason(box: RealDaemon) -> None:  # noqa: F811
    if not is_hybrid() or not any(e.name == "crun" and e.availability.available for e in BACKEND.engines()):
        pytest.skip("crun on a hybrid host")
    box.ok("run", "-d", "--name", "c", "--image", "box", "--engine", "crun", "--", "sleep", "1000")
    refused = box.hvctl("trace", "c")
    assert refused.returncode != 0 and "version 2" in refused.stderr and "runc" in refused.stderr


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from hvd.backends.container.trace import recorder

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in recorder.reason()
