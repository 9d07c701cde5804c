"""System calls of containers, through the real daemon and the real client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hvctl.sdk import Client
from real_daemon import Process, RealDaemon, require_backend, wait_for
from test_containers import box, root

from hvd.backends.container.backend import BACKEND
from hvd.backends.container.runtime import is_hybrid
from hvd.backends.container.trace import tracefs
from hvd.backends.container.trace.choice import choose

OPENS = 23
KNOWN = "/srv/known"
WORKLOAD = f"i=0; while [ $i -lt {OPENS} ]; do : > {KNOWN}; i=$((i+1)); done"
__all__ = ["box", "root"]


@pytest.fixture(scope="module", params=["ebpf", "tracefs"])
def tracer(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    if why := choose(way).reason:
        pytest.skip(why)
    return way


@pytest.fixture(scope="module")
def shared_daemon(tracer: str) -> Iterator[RealDaemon]:
    with RealDaemon("--container-tracer", tracer) as daemon:
        require_backend(daemon)
        yield daemon


@pytest.fixture(autouse=True)
def nothing_left(shared_daemon: RealDaemon) -> Iterator[None]:
    assert left_over(shared_daemon) == []
    yield
    wait_for(lambda: not left_over(shared_daemon), "the programs are unloaded, the instances are gone")


def left_over(daemon: RealDaemon) -> list[str]:
    """eBPF programs and instances of tracefs that this daemon holds; others may trace, too."""
    found = []
    for info in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        try:
            text = info.read_text()
        except OSError:
            continue
        found += [str(info) for line in text.splitlines() if line.startswith("raw_tracepoint:")]
    with tracefs.mounted() as files:
        return found + [directory.name for directory in (files / "instances").glob(f"hvd-{daemon.pid}-*")]


def tracing(daemon: RealDaemon, *words: str) -> Process:
    process = daemon.spawn("trace", *words, "-f", "-o", "jsonl")
    process.wait_err("tracing ")
    return process


def records(process: Process) -> list[dict[str, Any]]:
    assert process.end() == 0
    return [json.loads(line) for line in process.out.splitlines()]


def lines_so_far(process: Process) -> list[dict[str, Any]]:
    """Of one that goes on: the last line may not be whole yet."""
    return [json.loads(line) for line in process.out.rpartition("\n")[0].splitlines()]


def opens(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in found if r["point"] in ("open", "openat") and r["texts"]["pathname"] == KNOWN]


def creating(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What ": > FILE" does; also without paths."""
    return [r for r in found if r["point"] in ("open", "openat") and r["arguments"]["flags"] & os.O_CREAT]


def test_a_known_workload_gives_exactly_its_calls_and_no_other_container_appears(box: RealDaemon, tracer: str) -> None:
    box.ok("run", "-d", "--name", "other", "--image", "box", "--", "sh", "-c", "while :; do cat /etc/group; done >/dev/null")
    box.ok("create", "--name", "c", "--image", "box", "--", "sh", "-c", f"{WORKLOAD}; cat /none; (exec cat /etc/passwd) > /dev/null; exit 0")
    with contextlib.closing(tracing(box, "c")) as process:
        box.ok("start", "c")
        found = records(process)
    assert not [r for r in found if r["point"] == "lost"]
    seen = [r for r in creating(found) if r["arguments"]["tid"] == 1]
    assert len(seen) == OPENS
    assert all(r["result"] >= 0 and r["duration_ns"] > 0 and r["kind"] == "system-call" for r in seen)
    threads = {r["arguments"]["tid"] for r in found}
    assert len(threads) >= 3  # the shell and what it forked
    # Programs without threads. By trace files, the process of one that ended before it was looked at is not known.
    known = [r for r in creating(found) if "pid" in r]
    assert all(r["pid"] == r["arguments"]["tid"] for r in known)
    assert len(known) >= OPENS if tracer == "tracefs" else known == creating(found)
    if tracer == "ebpf":
        assert max(threads) < 100  # the container's own numbers
        assert opens(found) == seen
        paths = {path for r in found for path in r.get("texts", {}).values()}
        assert "/etc/group" not in paths and "/etc/passwd" in paths
        missing = [r for r in found if r.get("texts", {}).get("pathname") == "/none"]
        assert [r["result"] for r in missing if r["point"].startswith("open")] == [(1 << 64) - 2]
    else:
        assert not [r for r in found if "texts" in r]
    assert all(r["guest"] == "guests/c" for r in found)
    with urllib.request.urlopen(box.metrics_url()) as answer:
        metrics = answer.read().decode()
    assert re.search(r'^hvd_\w+\{[^}]*"exit_group"[^}]*\} [1-9]', metrics, re.MULTILINE)
    rows = {row["reason"]: int(row["count"]) for row in box.ok("trace", "summary", "c", "-o", "json").json["rows"]}
    assert rows["openat" if "openat" in rows else "open"] >= OPENS and rows["exit_group"] >= 3


def test_one_process_of_several(box: RealDaemon) -> None:
    box.ok("create", "--name", "c", "--image", "box", "--", "sh", "-c", f"{WORKLOAD}; cat /none; exit 0")
    with contextlib.closing(tracing(box, "c", "--pid", "1")) as process:
        box.ok("start", "c")
        found = records(process)
    assert {r["pid"] for r in found} == {1} and len(creating(found)) == OPENS


def test_what_exec_starts_is_followed_and_lines_read_like_those_of_strace(box: RealDaemon, tracer: str) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sleep", "1000")
    with contextlib.closing(box.spawn("trace", "c", "-f")) as process:
        process.wait_err("tracing ")
        box.ok("exec", "c", "--", "cat", "/etc/passwd")
        process.wait_out("exit_group(")
        if tracer == "tracefs":
            wait_for(lambda: re.search(r"openat?\(.*flags=O_RDONLY.* = 3 <", process.out), "the open")
            assert "nsenter" not in process.out
            process.interrupt()
            return
        wait_for(lambda: 'pathname="/etc/passwd"' in process.out, "the open")
        process.interrupt()
    line = next(line for line in process.out.splitlines() if 'pathname="/etc/passwd"' in line and " open" in line)
    assert " c open" in line and "flags=O_RDONLY" in line and " = " in line and line.endswith("s>")


def test_a_flood_is_lost_in_part_and_counted(box: RealDaemon, tracer: str) -> None:
    calls = 150_000
    box.ok("create", "--name", "c", "--image", "box", "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={calls}")
    with contextlib.closing(tracing(box, "c", "--reason", "read")) as process:
        box.ok("start", "c")
        found = records(process)
    lost = sum(r.get("lost", 0) for r in found)
    shown = sum(r["point"] == "read" for r in found)
    assert shown and lost
    # A read(2) has two records; a gap may cut one in half. Trace files do not tell more than that there was a call.
    told, gaps = 2 * shown + lost, len(found) - shown
    assert told <= 2 * calls + 200
    assert told >= (2 * calls - gaps if tracer == "ebpf" else calls)
    rows = {row["reason"]: int(row["count"]) for row in box.ok("trace", "summary", "c", "-o", "json").json["rows"]}
    if tracer == "ebpf":
        assert "lost" not in rows and calls <= rows["read"] <= calls + 100
    else:  # a half of a call may have been lost, too
        assert calls <= rows["read"] + 2 * rows.get("lost", 0) and rows["read"] <= calls + 100


def test_one_that_an_earlier_daemon_started_is_traced_too(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", f"while :; do : > {KNOWN}; sleep 0.05; done")
    with contextlib.closing(tracing(box, "c")) as process:
        process.wait_out('"guests/c"')
        box.restart(signal.SIGKILL)  # whose instances are swept
    done = box.ok("trace", "c", "--reason", "openat", "--reason", "open", "--count", "5", "-o", "jsonl")
    assert len(creating(done.jsonl)) >= 4


def test_only_chosen_calls_leave_the_kernel(box: RealDaemon) -> None:
    """What is not chosen is not even counted; who chooses more gets more, and the first still gets his own."""
    script = f"{WORKLOAD}; while [ ! -e /tmp/go ]; do sleep 0.05; done; {WORKLOAD}"
    box.ok("create", "--name", "c", "--image", "box", "--", "sh", "-c", script)
    with contextlib.closing(tracing(box, "c", "--reason", "open", "--reason", "openat")) as process:
        box.ok("start", "c")
        wait_for(lambda: len(creating(lines_so_far(process))) >= OPENS, "the first half")
        counted = {row["reason"] for row in box.ok("trace", "summary", "c", "-o", "json").json["rows"]}
        assert counted <= {"open", "openat"}
        with contextlib.closing(tracing(box, "c", "--reason", "close")) as other:
            box.ok("exec", "c", "--", "touch", "/tmp/go")
            closes = records(other)
        found = records(process)
    assert {r["point"] for r in found} <= {"open", "openat"} and {r["point"] for r in closes} == {"close"}
    assert len([r for r in creating(found) if r["arguments"]["tid"] == 1]) == 2 * OPENS


def test_without_a_group_of_version_2_by_trace_files_or_refused_with_the_reason(box: RealDaemon, tracer: str) -> None:
    if not is_hybrid() or not any(e.name == "crun" and e.availability.available for e in BACKEND.engines()):
        pytest.skip("crun on a hybrid host")
    script = f"while :; do : > {KNOWN}; sleep 0.05; done"
    box.ok("run", "-d", "--name", "c", "--image", "box", "--engine", "crun", "--", "sh", "-c", script)
    if tracer == "ebpf":
        refused = box.hvctl("trace", "c")
        assert refused.returncode != 0 and "version 2" in refused.stderr and "runc" in refused.stderr
    else:
        done = box.ok("trace", "c", "--reason", "openat", "--reason", "open", "--count", "3", "-o", "jsonl")
        assert len(creating(done.jsonl)) == 3


@pytest.mark.slow
def test_a_daemon_answers_while_a_container_floods_its_trace(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "calm", "--image", "box", "--", "sleep", "1000")

    def seconds() -> float:
        times = []
        with Client(box.endpoint, timeout=60) as client:
            client.list_guests()
            for _ in range(20):
                began = time.monotonic()
                client.list_guests()
                times.append(time.monotonic() - began)
        return sorted(times)[10]

    idle = seconds()
    flood = "dd if=/dev/zero of=/dev/null bs=1"
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", f"{flood} & {flood}")
    with contextlib.closing(box.spawn("trace", "c", "-f", "--reason", "read", "--reason", "write", "-o", "jsonl")) as process:
        process.wait_err("tracing ")
        process.wait_out('"lost"')
        busy = seconds()
        box.ok("trace", "calm", "--for", "200ms")  # begins and ends beside it
        process.interrupt()
    print(f"list_guests: {idle * 1e3:.2f} ms idle, {busy * 1e3:.2f} ms under flood")
    assert busy < 2.0
