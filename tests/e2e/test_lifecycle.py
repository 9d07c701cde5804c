"""Every verb on real guests, and every way in which a guest can end, through the real daemon and the real client."""

from __future__ import annotations

import os
import signal
import uuid

import pytest
from hvctl.sdk import Client, HvctlError
from real_daemon import RealDaemon, also_under, kernel, wait_for

# DESIGN, "How a guest ends": kernel, options, state, reason, exit code, what the message names, exit code of `run`.
ENDS = [
    pytest.param("hello.elf", (), "STOPPED", "EXITED", 0, "", 0, id="exit hypercall, 0"),
    pytest.param("flat.bin", ("--flat", "0x100000"), "STOPPED", "EXITED", 3, "code 3", 3, id="debug exit port"),
    pytest.param("halt.elf", (), "STOPPED", "HALTED", 0, "0x10", 0, id="HLT with interrupts off"),
    pytest.param("reset.elf", (), "STOPPED", "RESET", 0, "keyboard controller", 0, id="reset"),
    pytest.param("triple.elf", (), "STOPPED", "TRIPLE_FAULT", 0, "0x10", 0, id="triple fault"),
    pytest.param("wild.elf", (), "FAILED", "EXECUTION_ERROR", None, "at 0xc8000000 (no memory is there)", 125, id="ran wild"),
]


@pytest.mark.parametrize(("guest", "options", "state", "reason", "code", "message", "run_code"), ENDS)
def test_end(
    daemon: RealDaemon, guest: str, options: tuple[str, ...], state: str, reason: str, code: int | None, message: str, run_code: int
) -> None:
    done = daemon.hvctl("run", "--name", "a", "--kernel", kernel(guest), "--memory", "8M", *options)
    assert done.returncode == run_code, done.stderr
    assert f"{guest.partition('.')[0]}: ok" in done.stdout
    found = daemon.listed()["a"]
    assert (found["state"], found["reason"], found.get("exit_code")) == (state, reason, code)
    assert message in found["status_message"]
    assert found["host_pid"] == "0" and found["end_time"] >= found["start_time"]


def test_the_guests_own_code_is_that_of_run(daemon: RealDaemon) -> None:
    """Typed through a pipe into the guest, which ends with 7 by the exit hypercall."""
    done = daemon.hvctl("run", "--rm", "--name", "a", "--kernel", kernel("echo.elf"), stdin="hello\nq")
    assert done.returncode == 7 and "hello\n" in done.stdout, done
    assert "a" not in daemon.listed()


def test_run_that_cannot_is_125(daemon: RealDaemon) -> None:
    assert daemon.hvctl("run", "--kernel", "/nowhere/vmlinuz").returncode == 125
    refused = daemon.hvctl("run", "--name", "Not_A_Name", "--kernel", kernel("hello.elf"))
    assert refused.returncode == 125 and "next step:" in refused.stderr


@pytest.mark.parametrize("guest", ["reset.elf", "triple.elf"])
def test_reset_restarts_if_that_is_wanted(daemon: RealDaemon, guest: str) -> None:
    """It boots anew in the same process, again and again."""
    name = daemon.run(guest, "--on-reset", "restart")
    pid = daemon.runner(name)
    said = f"{name.partition('-')[0]}: ok"
    wait_for(lambda: daemon.ok("logs", name).stdout.count(said) >= 3, "three boots")
    assert daemon.show(name)["state"] == "RUNNING" and daemon.runner(name) == pid
    daemon.ok("update", name, "--on-reset", "stop")
    daemon.ok("kill", name)


def test_kill(daemon: RealDaemon) -> None:
    name = daemon.run("spin.elf")
    pid = daemon.runner(name)
    assert daemon.ok("kill", name).stdout.split() == [name, "STOPPED", "KILLED", "0"]
    assert pid not in daemon.runners()
    daemon.ok("kill", name)  # what has ended is killed already


def test_a_killed_runner_has_failed_and_starts_again(daemon: RealDaemon) -> None:
    process = daemon.spawn("run", "--name", "a", "--kernel", kernel("echo.elf"))
    process.wait_out("echo: type")
    os.kill(daemon.runner("a"), signal.SIGKILL)
    assert process.end() == 125
    assert "FAILED" in process.err
    found = daemon.listed()["a"]
    assert (found["state"], found["reason"]) == ("FAILED", "RUNNER_CRASHED") and "exit_code" not in found
    assert "hvctl start" in found["status_message"]
    daemon.ok("start", "a")
    assert daemon.show("a")["state"] == "RUNNING"


def test_stop_ends_it_and_it_can_start_again(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    daemon.wait_logs(name, "tick 1")
    found = daemon.ok("stop", name, "--timeout", "1", "-o", "json").json
    assert found["state"] == "STOPPED"
    daemon.ok("stop", name)
    uid, pid = found["uid"], daemon.ok("start", name, "-o", "json").json["host_pid"]
    assert daemon.ok("start", name, "-o", "json").json["host_pid"] == pid, "starting what runs changes nothing"
    assert daemon.show(name)["uid"] == uid


@also_under("rewriting", "paravirt")
def test_pause_stands_still_and_resume_goes_on(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    daemon.wait_logs(name, "tick 0")
    for _ in range(2):
        assert daemon.ok("pause", name, "-o", "json").json["state"] == "PAUSED"
    before = daemon.ok("regs", name, "-o", "json").json
    clock = daemon.ok("logs", name).stdout
    assert daemon.ok("regs", name, "-o", "json").json == before
    assert daemon.ok("logs", name).stdout == clock
    for _ in range(2):
        assert daemon.ok("resume", name, "-o", "json").json["state"] == "RUNNING"
    daemon.wait_logs(name, f"tick {clock.count('tick') + 1}")


@also_under("rewriting")
def test_reset_boots_anew_in_the_same_process(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    daemon.wait_logs(name, "echo: type")
    pid = daemon.runner(name)
    daemon.ok("reset", name)
    wait_for(lambda: daemon.ok("logs", name).stdout.count("echo: type") == 2, "a second boot")
    assert daemon.runner(name) == pid


def test_wrong_states_say_what_to_do(daemon: RealDaemon) -> None:
    daemon.ok("create", "--name", "a", "--kernel", kernel("echo.elf"))
    for verb in ("pause", "resume", "reset", "regs"):
        refused = daemon.hvctl(verb, "a")
        assert refused.returncode == 4 and "hvctl start a" in refused.stderr, (verb, refused)
    assert daemon.hvctl("show", "b").returncode == 3
    daemon.ok("start", "a")
    refused = daemon.hvctl("delete", "a", "-o", "json")
    assert refused.returncode == 4 and '"GUEST_WRONG_STATE"' in refused.stderr
    daemon.ok("delete", "--force", "a")
    assert daemon.hvctl("delete", "a").returncode == 3
    daemon.ok("delete", "a", "--allow-missing")


def test_creation_with_a_request_id_is_done_once(daemon: RealDaemon) -> None:
    request_id = str(uuid.uuid4())
    with Client(daemon.endpoint) as client:
        digest = client.upload_file(kernel("hello.elf"))
        guest = {"machine": {"kernel": digest}}
        made = client.create_guest(guest_id="a", guest=guest, request_id=request_id)
        assert client.create_guest(guest_id="a", guest=guest, request_id=request_id).uid == made.uid
        with pytest.raises(HvctlError) as error:
            client.create_guest(guest_id="b", guest=guest, request_id=request_id)
        assert error.value.reason == "REQUEST_ID_REUSED"
        with pytest.raises(HvctlError) as error:
            client.create_guest(guest_id="a", guest=guest)
        assert error.value.reason == "NAME_TAKEN"
    assert list(daemon.listed()) == ["a"]


def test_wait(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    assert daemon.wait(name, "running", "paused")["state"] == "RUNNING"
    late = daemon.hvctl("wait", name, "--timeout", "0.2")
    assert late.returncode == 124 and "RUNNING" in late.stderr
    paused, ended = daemon.spawn("wait", name, "--for", "paused"), daemon.spawn("wait", name, "-o", "json")
    daemon.ok("pause", name)
    assert paused.end() == 0
    daemon.ok("kill", name)
    assert ended.end() == 0 and '"KILLED"' in ended.out


def test_events_and_watch_tell_a_whole_life(daemon: RealDaemon) -> None:
    events = daemon.spawn("events", "--present", "-o", "jsonl")
    watch = daemon.spawn("list", "--watch", "-o", "jsonl")
    for stream in (events, watch):
        stream.wait_out("BOOKMARK")
    daemon.run("echo.elf", name="a")
    daemon.ok("pause", "a")
    daemon.ok("kill", "a")
    daemon.ok("delete", "a")
    for stream in (events, watch):
        text = stream.wait_out('"DELETED"')
        places = [text.find(f'"{word}"') for word in ("CREATED", "STARTING", "RUNNING", "PAUSED", "KILLED", "DELETED")]
        assert -1 not in places and places == sorted(places), text
        assert stream.interrupt() == 130


def test_update_changes_labels_and_policies(daemon: RealDaemon) -> None:
    daemon.ok("create", "--name", "a", "--kernel", kernel("hello.elf"), "--label", "team=red", "--label", "stage=test")
    daemon.ok("create", "--name", "b", "--kernel", kernel("hello.elf"), "--label", "team=blue")
    changed = daemon.ok("update", "a", "--label", "team=green", "--remove-label", "stage", "--restart", "on-failure:2", "-o", "json").json
    assert changed["labels"] == {"team": "green"}
    assert changed["restart_policy"] == {"mode": "ON_FAILURE", "max_retries": 2}
    assert daemon.ok("list", "--label", "team=green", "-o", "name").stdout == "guests/a\n"


def test_a_policy_restarts_what_fails(daemon: RealDaemon) -> None:
    name = daemon.run("wild.elf", "--restart", "on-failure:2")

    def given_up() -> bool:
        found = daemon.show(name)
        return any(condition["type"] == "RESTART_GIVEN_UP" for condition in found["conditions"])

    wait_for(given_up, "two restarts in vain")
    found = daemon.show(name)
    assert found["restart_count"] == 2 and found["state"] == "FAILED"


@also_under("rewriting", "paravirt")
def test_memory_and_registers(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    daemon.wait_logs(name, "echo: type")
    assert daemon.ok("mem", "write", name, "0x400000", "hvd was here", "--text").stdout.startswith("12 bytes")
    assert "|hvd was here....|" in daemon.ok("mem", "read", name, "0x400000", "16").stdout
    regions = daemon.ok("mem", "map", name, "-o", "json").json["regions"]
    assert regions[0]["kind"] == "RAM" and regions[0]["length"] == str(8 << 20)
    file = daemon.directory / "ram"
    daemon.ok("mem", "dump", name, "-O", str(file))
    ram = file.read_bytes()
    assert len(ram) == 8 << 20 and ram[0x400000:0x40000C] == b"hvd was here"
    # The Multiboot header of the kernel lies where the kernel was loaded.
    assert ram[0x100000:0x100004] == bytes.fromhex("02b0ad1b")
    assert "0x400000 -> 0x400000" in daemon.ok("mem", "translate", name, "0x400000").stdout
    outside = daemon.hvctl("mem", "read", name, "0x7fffff", "2")
    assert outside.returncode == 1 and "mem map" in outside.stderr
    found = daemon.ok("regs", name, "-o", "json").json
    values = {register["name"]: int(register["value"]) for register in found["registers"]}
    assert values["cr0"] & 1 and 0x100000 <= values["rip"] < 0x110000


def test_stats_and_top(daemon: RealDaemon) -> None:
    busy, idle = daemon.run("spin.elf"), daemon.run("echo.elf")
    responses = daemon.ok("top", "--count", "3", "--every", "300ms", "-o", "jsonl").jsonl
    assert len(responses) == 3
    figures = {row["name"]: row for row in responses[-1]["stats"]}
    assert figures[f"guests/{busy}"]["cpu_ratio"] > figures[f"guests/{idle}"]["cpu_ratio"]
    table = daemon.ok("stats", "--count", "1", idle).stdout.splitlines()
    assert table[0].startswith("NAME") and table[1].startswith(idle) and len(table) == 2


def test_logs(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf", "--append", "count=6")
    follower = daemon.spawn("logs", "-f", name)
    daemon.wait(name)
    assert follower.end() == 0, "logs -f ends with the guest"
    lines = [f"tick {number}" for number in range(6)] + ["ticker: ok"]
    assert follower.out.split("\n")[:-1] == daemon.ok("logs", name).stdout.split("\n")[:-1]
    assert [line.strip() for line in follower.out.splitlines()] == lines
    assert daemon.ok("logs", name, "--tail", "2").stdout.split() == ["tick", "5", "ticker:", "ok"]
    assert daemon.ok("logs", name, "--tail", "0").stdout == ""
    stamped = [line.split(" ", 1) for line in daemon.ok("logs", name, "--timestamps").stdout.splitlines()]
    moment = next(time for time, text in stamped if "tick 3" in text)
    since = [line.strip() for line in daemon.ok("logs", name, "--since", moment).stdout.splitlines()]
    # What comes at once has one time: on a busy host that may be more than a tick.
    assert since == [text.strip() for time, text in stamped if time >= moment] and since[-4:] == lines[3:]
