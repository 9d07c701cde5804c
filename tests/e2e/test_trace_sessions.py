"""Trace sessions that the daemon writes to files: filters, loss, rotation, several at once, and what becomes of them when things end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hvctl.output import document
from hvctl.sdk import TraceDecoder
from real_daemon import BIN, RealDaemon, wait_for


def session(daemon: RealDaemon, name: str) -> dict[str, Any]:
    with daemon.client() as client:
        return document(client.get_trace(name=f"traces/{name}"))


def records(daemon: RealDaemon, name: str) -> int:
    with daemon.client() as client:
        return int(client.get_trace(name=f"traces/{name}").records)


def documents(daemon: RealDaemon, name: str) -> list[dict[str, Any]]:
    """Its events, as `hvctl trace follow -o jsonl` has them; without a process for it."""
    decoder = TraceDecoder()
    with daemon.client() as client, client.read_trace(name=f"traces/{name}") as responses:
        blocks = (block for response in responses for block in response.blocks)
        return [event.document() for event in decoder.decode_all(blocks)]


def test_a_session_outlives_its_client_and_is_read_back(daemon: RealDaemon) -> None:
    guests = [daemon.run("ticker.elf") for _ in range(2)]
    assert daemon.ok("trace", "start", "--name", "both", "--kind", "interrupt", *guests).stdout == "both\n"
    for name in guests:  # there are ten interrupts between two of its lines
        daemon.wait_logs(name, f"tick {daemon.ok('logs', name).stdout.count('tick') + 1}")
    wait_for(lambda: records(daemon, "both") >= 300, "records are written, of both")
    listed = daemon.ok("trace", "list", "-o", "json").json["traces"]
    assert [(each["name"], each["state"]) for each in listed] == [("traces/both", "RUNNING")]
    daemon.ok("trace", "stop", "both")
    daemon.ok("trace", "stop", "both")  # changes nothing
    ended = session(daemon, "both")
    assert (ended["state"], ended["status_message"]) == ("STOPPED", "stopped")
    events = daemon.ok("trace", "follow", "both", "-o", "jsonl").jsonl
    assert len(events) == int(ended["records"]), "every record is read back"
    assert {event["point"] for event in events} == {"interrupt"}
    assert {event["guest"] for event in events} == {f"guests/{name}" for name in guests}
    times = [event["time_ns"] for event in events]
    assert times == sorted(times), "guests are merged in the order of time"
    summary = daemon.ok("trace", "summary", "--session", "both", "-o", "json").json
    assert summary["records"] == len(events) and {row["point"] for row in summary["points"]} == {"interrupt"}
    daemon.ok("trace", "delete", "both")
    assert daemon.hvctl("trace", "show", "both").returncode == 3
    assert not list((daemon.state_dir / "traces").iterdir())


def test_ten_sessions_on_one_guest_each_with_its_own_choice(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    choices = [["--kind", "interrupt"], ["--kind", "port-io"], ["--reason", "halt"], ["--reason", "port-in"], ["--longer-than", "1ms"],
               ["--address", "0x0-0xfffff"], ["--address", "0x100000-0x1fffff"], ["--kind", "hypercall"], ["--pid", "1"], []]  # fmt: skip
    for number, choice in enumerate(choices):
        daemon.ok("trace", "start", "--name", f"s{number}", *choice, name)
    wait_for(lambda: records(daemon, "s9") >= 500, "the one that wants everything gets it")
    daemon.ok("trace", "stop", *(f"s{number}" for number in range(10)))
    found = [documents(daemon, f"s{number}") for number in range(10)]
    assert {event["point"] for event in found[0]} == {"interrupt"}
    assert {event["point"] for event in found[1]} <= {"port-in", "port-out"} and found[1]
    assert {event["point"] for event in found[2]} == {"halt"}
    assert {event["point"] for event in found[3]} == {"port-in"}
    assert found[4] and all(event["duration_ns"] >= 1_000_000 for event in found[4])
    assert found[5] == [] == found[7], "what matches nothing is empty and ends clearly"
    assert found[6] and all(0x100000 <= event["rip"] <= 0x1FFFFF for event in found[6])
    assert found[8], "there are no processes to choose in a machine"
    assert "does nothing" in daemon.ok("trace", "--pid", "1", "--count", "1", name).stderr
    assert {int(each["lost"]) for each in daemon.ok("trace", "list", "-o", "json").json["traces"]} == {0}
    daemon.ok("trace", "delete", *(f"s{number}" for number in range(10)))


def test_a_guest_deleted_in_the_middle_ends_its_session(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    daemon.ok("trace", "start", "--name", "short", name)
    follower = daemon.spawn("trace", "follow", "short", "-o", "jsonl")
    viewer = daemon.spawn("trace", "-f", name)
    for process in (follower, viewer):
        process.wait_err("tracing")
    wait_for(lambda: records(daemon, "short") >= 10, "it is traced")
    daemon.ok("delete", "--force", name)
    assert follower.end() == 0 and viewer.end() == 0, "both streams end, and well"
    ended = session(daemon, "short")
    assert (ended["state"], ended["status_message"]) == ("STOPPED", "its guests have ended")
    assert len(follower.out.splitlines()) == int(ended["records"])
    assert f"{int(str(ended['records']))} records" in follower.err
    daemon.ok("trace", "delete", "short")


def test_rotation_keeps_the_newest_and_tells_what_went(daemon: RealDaemon) -> None:
    name = daemon.run("flood.elf")  # prints as fast as it can
    daemon.ok("trace", "start", "--name", "little", "--max-bytes", "1M", "--files", "2", name)
    wait_for(lambda: records(daemon, "little") >= 60_000, "more than fits was written")
    daemon.ok("trace", "stop", "little")
    ended = session(daemon, "little")
    assert int(ended["bytes"]) <= 1.5 * (1 << 20)
    files = list((daemon.state_dir / "traces" / "little").glob("*.hvtrace"))
    assert len(files) == 2
    assert sum(path.stat().st_size for path in files) == int(ended["bytes"])
    with daemon.client() as client, client.read_trace(name="traces/little") as responses:
        blocks = [block for response in responses for block in response.blocks]
    kept, lost = sum(len(block.records) // 64 for block in blocks), sum(block.lost for block in blocks)
    assert sum(block.HasField("header") for block in blocks) == 1
    assert kept + lost == int(ended["records"]) + int(ended["lost"]), "what is not there is told as lost"
    assert 0 < kept < int(ended["records"])
    daemon.ok("trace", "delete", "little")


def test_a_full_disk_loses_records_and_says_so(own_daemon: RealDaemon, tmp_path: Path) -> None:
    daemon = own_daemon
    name = daemon.run("ticker.elf")
    traces = daemon.state_dir / "traces"
    traces.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "hvd-test", str(traces)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        daemon.ok("trace", "start", "--name", "full", name)
        ballast = traces / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        full = wait_for(
            lambda: "No space left" in (found := session(daemon, "full"))["status_message"] and found["lost"] != "0" and found, "records are lost"
        )
        assert full["state"] == "RUNNING"
        ticks = daemon.ok("logs", name).stdout.count("tick")
        daemon.wait_logs(name, f"tick {ticks + 1}")  # the guest goes on
        before = int(full["records"])
        os.unlink(ballast)
        # A page that was not quite full may take some more records before there is room.
        wait_for(
            lambda: records(daemon, "full") > before and session(daemon, "full")["status_message"] == "", "it goes on when there is room"
        )
        daemon.ok("trace", "stop", "full")
        ended = session(daemon, "full")
        with daemon.client() as client, client.read_trace(name="traces/full") as responses:
            blocks = [block for response in responses for block in response.blocks]
        assert sum(len(block.records) // 64 for block in blocks) == int(ended["records"])
        assert sum(block.lost for block in blocks) == int(ended["lost"]), "the stream tells where the gap was"
        daemon.ok("trace", "delete", "full")
    finally:
        subprocess.run(["umount", "--lazy", str(traces)], check=True)
    daemon.clear()


@pytest.mark.slow
def test_a_daemon_that_goes_ends_its_sessions_and_keeps_their_files(own_daemon: RealDaemon) -> None:
    daemon = own_daemon
    name = daemon.run("ticker.elf")
    for how, kill in (("gentle", signal.SIGTERM), ("killed", signal.SIGKILL)):
        daemon.ok("trace", "start", "--name", how, "--kind", "interrupt", name)
        wait_for(lambda how=how: records(daemon, how) >= 10, "it is traced")
        daemon.restart(kill)
        ended = session(daemon, how)
        assert (ended["state"], ended["status_message"]) == ("STOPPED", "the daemon ended")
        events = daemon.ok("trace", "follow", how, "-o", "jsonl").jsonl
        assert len(events) >= 10 and {event["point"] for event in events} == {"interrupt"}
    daemon.clear()


def test_a_slow_reader_of_a_session_disturbs_nobody(daemon: RealDaemon) -> None:
    name = daemon.run("flood.elf")
    daemon.ok("trace", "start", "--name", "busy", name)
    reader = daemon.spawn("trace", "follow", "busy", "-o", "jsonl")
    reader.wait_err("tracing")
    reader.popen.send_signal(signal.SIGSTOP)
    before = records(daemon, "busy")
    wait_for(lambda: records(daemon, "busy") > before + 20_000, "the session goes on")
    reader.popen.kill()
    daemon.ok("trace", "delete", "busy")


def test_what_cannot_be_asked_for(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    for words, said in (
        (["--name", "Not A Name"], "no valid trace name"), (["--max-bytes", "1K"], "out of range"), (["--reason", "nonsense"], "is not known"),
    ):  # fmt: skip
        done = daemon.hvctl("trace", "start", *words, name)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    assert daemon.hvctl("trace", "start", "nobody").returncode == 3
    assert daemon.hvctl("trace", "stop", "nothing").returncode == 3
    assert daemon.hvctl("trace", "--address", "0x20-0x10", name).returncode == 2
    daemon.ok("trace", "start", "--name", "one", name)
    assert daemon.hvctl("trace", "start", "--name", "one", name).returncode == 1
    daemon.ok("trace", "delete", "one", "--allow-missing")
    daemon.ok("trace", "delete", "one", "--allow-missing")
    assert "traces/one" not in {each["name"] for each in daemon.ok("trace", "list", "-o", "json").json["traces"]}


def test_top_has_crossings_a_second_by_kind(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    lines = daemon.ok("top", "--every", "300ms", "--count", "3").stdout.splitlines()
    titles = lines[0].split()
    assert titles[:2] == ["NAME", "BACKEND"] and "BY KIND /S" in lines[0] and "MEMORY" in titles and "CPU%" in titles
    rows = [line for line in lines if line.startswith(name)]
    # On a busy host there may be 300 ms without any.
    assert len(rows) == 3 and any(re.search(r"interrupt \d+", row) and re.search(r"halt \d+", row) for row in rows[1:]), rows


def test_completion_asks_the_daemon(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    daemon.ok("trace", "start", "--name", "night", name)

    def completed(*words: str) -> list[str]:
        asked = {"_HVCTL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["hvctl", *words]), "COMP_CWORD": str(len(words))}
        done = subprocess.run([BIN / "hvctl"], env=daemon.environment | asked, capture_output=True, text=True, check=True)
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert {"start", "stop", "points", "summary"} <= set(completed("trace", ""))
    assert completed("trace", "tick") == [name]
    assert completed("trace", "stop", "n") == ["night"]
    assert completed("trace", "--kind", "int") == ["interrupt"]
    assert completed("trace", "start", "--reason", "port-i") == ["port-in"]
    daemon.ok("trace", "delete", "night")
