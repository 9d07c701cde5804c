"""hvctl in this process against the fake daemon: what each verb prints, and with which code it ends."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import yaml
from cli_harness import Hvctl
from fake_daemon import FakeDaemon
from fake_inspection import make_record
from hvapi.v1 import guest_pb2, trace_pb2

Guest = guest_pb2.Guest


@pytest.fixture
def three(daemon: FakeDaemon, hvctl: Hvctl) -> Hvctl:
    """Guests a, b and c; b runs."""
    for name in ("a", "b", "c"):
        assert (
            hvctl("create", "--name", name, "--backend", "emulation", "--append", "hang", "--label", f"k={name}").code
            == 0
        )
    assert hvctl("start", "b").code == 0
    return hvctl


def test_list_json_is_the_response_message_with_every_page(three: Hvctl) -> None:
    document = three("list", "-o", "json").json
    assert set(document) == {"guests", "next_page_token"}
    assert [guest["name"] for guest in document["guests"]] == ["guests/a", "guests/b", "guests/c"]
    first, second, _ = document["guests"]
    assert (first["state"], second["state"]) == ("STOPPED", "RUNNING")
    # Fields without a value are there, under the proto's own names; exit_code has presence and is not.
    assert first["status_message"] == "" and first["restart_count"] == 0 and first["host_pid"] == "0"
    assert "exit_code" not in first
    assert second["host_pid"] == "4242"


def test_every_encoder_prints_the_same_document(three: Hvctl) -> None:
    document = three("list", "-o", "json").json
    line = three("list", "-o", "jsonl").out
    assert line.count("\n") == 1 and json.loads(line) == document
    assert yaml.safe_load(three("list", "-o", "yaml").out) == document
    assert three("list", "-o", "name").out == "guests/a\nguests/b\nguests/c\n"


def test_list_as_a_table(three: Hvctl) -> None:
    lines = three("list").out.splitlines()
    assert lines[0].split() == ["NAME", "BACKEND", "STATE", "REASON", "EXIT", "PID", "AGE"]
    assert lines[2].split()[:6] == ["b", "emulation", "RUNNING", "-", "-", "4242"]
    assert "UID" in three("list", "-o", "wide").out
    assert three("list", "--label", "k=c", "-o", "name").out == "guests/c\n"


@pytest.mark.parametrize("alias", ["ls", "ps"])
def test_aliases(three: Hvctl, alias: str) -> None:
    assert three(alias, "-o", "name").out.splitlines() == ["guests/a", "guests/b", "guests/c"]
    assert three("rm", "a").out == "a\n"


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "json", "mem", "map", "a"],
        ["mem", "-o", "json", "map", "a"],
        ["mem", "map", "-o", "json", "a"],
        ["mem", "map", "a", "-ojson"],
        ["mem", "map", "a", "--output=json", "--no-color", "--timeout", "30s"],
        ["--timeout", "30", "-o", "yaml", "mem", "map", "a", "-o", "json"],
    ],
    ids=" ".join,
)
def test_common_options_in_any_position(three: Hvctl, words: list[str]) -> None:
    assert three(*words).json["regions"][0]["owner"] == "ram"


def test_endpoint_in_any_position(hvctl: Hvctl, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVD_ENDPOINT", "unix:///nowhere")
    assert hvctl("--endpoint", daemon.endpoint, "list").code == 0
    assert hvctl("list", "--endpoint", daemon.endpoint).code == 0
    assert hvctl("list").code == 5


def test_show(three: Hvctl) -> None:
    assert three("show", "b", "-o", "json").json["name"] == "guests/b"
    assert three("show", "guests/b", "-o", "name").out == "guests/b\n"
    fields = dict(line.split(maxsplit=1) for line in three("show", "b").out.splitlines()[1:])
    assert fields["state"] == "RUNNING" and fields["labels.k"] == "b" and fields["machine.append"] == "hang"


def test_backends(hvctl: Hvctl) -> None:
    document = hvctl("backends", "-o", "json").json
    kvm = document["backends"][1]
    assert (kvm["name"], kvm["available"], kvm["reason"]) == ("backends/kvm", False, "/dev/kvm is missing")
    assert kvm["capabilities"] == []
    assert "/dev/kvm is missing; load kvm" in hvctl("backends").out


def test_doctor_and_version(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    outcome = hvctl("doctor")
    assert outcome.code == 0 and "load kvm" in outcome.out and daemon.endpoint in outcome.out
    assert hvctl("doctor", "-o", "json").json["version"] == "9.9"
    assert "hvd 9.9" in hvctl("version", "--daemon").out
    assert hvctl("version").out.startswith("hvctl ")


def test_create_sends_what_was_asked_for(hvctl: Hvctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "k", tmp_path / "i"
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    words = ["create", "--kernel", str(kernel), "--initrd", str(initrd), "--append", "console=ttyS0", "--memory", "64M"]
    words += [
        "--cpus",
        "2",
        "--flat",
        "0x8000",
        "--restart",
        "on-failure:3",
        "--on-reset",
        "restart",
        "--image",
        "linux",
    ]
    words += ["--label", "a=b", "--label", "c=d=e", "--engine", "native", "--name", "web-1", "one", "--", "--two"]
    outcome = hvctl(*words)
    assert outcome.code == 0 and outcome.out == "web-1\n"
    assert "backend emulation: the only one that runs here" in outcome.err
    guest = daemon.guests["guests/web-1"]
    machine = guest.machine
    assert {daemon.blobs[machine.kernel], daemon.blobs[machine.initrd]} == {b"kernel", b"initrd"}
    assert daemon.searches == 1
    assert hvctl("create", "--kernel", str(kernel), "--initrd", str(initrd), "--name", "web-2").code == 0
    assert daemon.guests["guests/web-2"].machine.kernel == machine.kernel
    assert daemon.searches == 1  # what it has already needs no asking
    assert (machine.memory_bytes, machine.cpus, machine.flat_load_address) == (64 << 20, 2, 0x8000)
    assert (machine.append, list(machine.args)) == ("console=ttyS0", ["one", "--two"])
    assert (guest.restart_policy.mode, guest.restart_policy.max_retries) == (guest_pb2.RestartPolicy.ON_FAILURE, 3)
    assert (guest.on_reset, guest.image, guest.engine) == (Guest.RESTART, "images/linux", "native")
    assert dict(guest.labels) == {"a": "b", "c": "d=e"}


def test_lifecycle(three: Hvctl, daemon: FakeDaemon) -> None:
    assert three("pause", "b").out == "b PAUSED\n"
    assert three("resume", "b", "-o", "json").json["state"] == "RUNNING"
    assert three("stop", "b", "--timeout", "1.5").out == "b STOPPED POWEROFF 0\n"
    assert daemon.requests("StopGuest")[0].grace_period.ToMilliseconds() == 1500
    assert three("start", "a", "--paused").out == "a PAUSED\n"
    assert daemon.requests("StartGuest")[-1].paused
    assert three("kill", "a", "b", "-o", "name").out == "guests/a\nguests/b\n"
    assert not daemon.requests("StopGuest")[0].HasField("grace_period") or len(daemon.requests("StopGuest")) == 1


def test_stop_without_timeout_leaves_the_grace_period_to_the_daemon(three: Hvctl, daemon: FakeDaemon) -> None:
    assert three("stop", "b").code == 0
    assert not daemon.requests("StopGuest")[0].HasField("grace_period")


def test_several_guests_go_on_after_a_failure(three: Hvctl) -> None:
    outcome = three("kill", "a", "nobody", "b", "-o", "json")
    assert outcome.code == 3
    assert [guest["name"] for guest in outcome.json["guests"]] == ["guests/a", "guests/b"]
    assert json.loads(outcome.err)["error"]["reason"] == "GUEST_NOT_FOUND"


def test_update_of_labels_keeps_the_others(three: Hvctl, daemon: FakeDaemon) -> None:
    assert three("update", "a", "--label", "new=1").code == 0
    assert dict(daemon.guests["guests/a"].labels) == {"k": "a", "new": "1"}
    assert three("update", "a", "--remove-label", "k").code == 0
    assert dict(daemon.guests["guests/a"].labels) == {"new": "1"}
    request = daemon.requests("UpdateGuest")[0]
    assert list(request.update_mask.paths) == ["labels"] and request.guest.etag == "1"
    assert three("update", "a").code == 2


def test_wait(three: Hvctl, daemon: FakeDaemon) -> None:
    assert three("wait", "b", "--for", "running", "--timeout", "10").out == "b RUNNING\n"
    outcome = three("wait", "b", "--timeout", "200ms")
    assert outcome.code == 124 and "0.2 s" in outcome.err
    assert daemon.requests("WaitGuest")[0].states == [Guest.RUNNING]
    assert daemon.requests("WaitGuest")[1].states == []


def test_delete(three: Hvctl, daemon: FakeDaemon) -> None:
    assert three("delete", "b").code == 4
    assert three("delete", "b", "--force").out == "b\n"
    assert three("delete", "b").code == 3
    assert three("delete", "c", "-o", "json").json == {}
    assert three("delete", "b", "--allow-missing").code == 0
    assert "guests/b" not in daemon.guests


# what is asked, exit code, reason
FAILURES = [
    (["show", "nobody"], 3, "GUEST_NOT_FOUND"),
    (["pause", "a"], 4, "GUEST_WRONG_STATE"),
    (["create", "--backend", "kvm"], 6, "BACKEND_UNAVAILABLE"),
    (["reset", "a"], 6, "CAPABILITY_MISSING"),
    (["create", "--name", "a"], 1, "NAME_TAKEN"),
    (["create", "--kernel", "/nonexistent"], 1, "FILE_UNREADABLE"),
    (["mem", "read", "a", "0xffffffff"], 1, "ADDRESS_OUTSIDE"),
    (["image", "delete", "none"], 3, "IMAGE_NOT_FOUND"),
    (["show", "a", "--endpoint", "unix:///nowhere"], 5, "DAEMON_UNREACHABLE"),
    (["show", "a", "--endpoint", "nonsense"], 2, "ENDPOINT_INVALID"),
    (["show"], 2, "USAGE"),
    (["nonsense"], 2, "USAGE"),
    (["list", "--nonsense"], 2, "USAGE"),
    (["create", "--memory", "0"], 2, "USAGE"),
    (["create", "--memory", "lots"], 2, "USAGE"),
    (["create", "--memory", "99999999999G"], 2, "USAGE"),
    (["mem", "read", "a", "-1"], 2, "USAGE"),
    (["mem", "write", "a", "0", "abc"], 2, "USAGE"),
    (["trace", "points", "too", "many"], 2, "USAGE"),
    (["metrics", "-o", "name"], 2, "USAGE"),
    (["run", "--backend", "kvm"], 125, "BACKEND_UNAVAILABLE"),
    (["run", "--nonsense"], 125, "USAGE"),
    (["run", "--append", "refuse"], 125, "IMAGE_FORMAT"),
    (["run", "--endpoint", "unix:///nowhere"], 125, "DAEMON_UNREACHABLE"),
]


@pytest.mark.parametrize(
    ("words", "code", "reason"), FAILURES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_failures(three: Hvctl, words: list[str], code: int, reason: str) -> None:
    outcome = three(*words)
    assert outcome.code == code
    assert outcome.out == ""
    assert "hvctl: " in outcome.err and "\nnext step: " in outcome.err


@pytest.mark.parametrize(
    ("words", "code", "reason"), FAILURES[:12], ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_failures_as_json(three: Hvctl, words: list[str], code: int, reason: str) -> None:
    outcome = three("-o", "json", *words)
    assert outcome.code == code and outcome.out == ""
    error = json.loads(outcome.err[outcome.err.index("{") :])["error"]
    assert set(error) == {"code", "reason", "metadata", "message", "help"}
    assert error["reason"] == reason and error["message"] and error["help"]


def test_typos_are_pointed_out_but_not_accepted(hvctl: Hvctl) -> None:
    assert "did you mean 'list'?" in hvctl("lits").err
    assert "did you mean 'import'?" in hvctl("image", "imprt").err
    assert hvctl("li").code == 2
    assert hvctl("show", "a", "--outputt", "json").code == 2


def test_a_call_that_takes_too_long_is_124(three: Hvctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDaemon, "GetGuest", lambda self, request, context: __import__("time").sleep(2))
    # The servicer's methods were bound when the server started, so a stream without an end serves here.
    assert three("stats", "--timeout", "300ms", "-o", "jsonl").code == 124


def test_logs(three: Hvctl, daemon: FakeDaemon) -> None:
    daemon.consoles["guests/a"].log = b"one\r\n\x1b[1mtwo\nthree"
    assert three("logs", "a").out.encode() == b"one\r\n\x1b[1mtwo\nthree"
    assert three("logs", "a", "--tail", "1").out == "three"
    assert three("logs", "a", "--tail", "0").out == ""
    assert three("logs", "a", "-t", "--tail", "1").out == "2023-11-14T22:13:20.000000Z three"
    lines = [json.loads(line) for line in three("logs", "a", "-o", "jsonl").out.splitlines()]
    assert base64.b64decode(lines[0]["text"]) == b"one\r\n" and lines[0]["stream"] == "stdout"
    assert three("logs", "a", "--since", "5m").code == 0
    assert daemon.requests("GetLogs")[-1].since.seconds > 1_700_000_000
    assert three("logs", "a", "--since", "yesterday").code == 2


def test_mem_read(three: Hvctl) -> None:
    lines = three("mem", "read", "a", "0x3e", "40").out.splitlines()
    assert lines[0].startswith("000000000000003e  3e 3f 40 41 42 43 44 45  46 47")
    assert lines[0].endswith("|>?@ABCDEFGHIJKLM|")
    assert len(lines) == 3
    document = three("mem", "read", "a", "0", "2000", "-o", "json").json
    assert document["address"] == "0" and base64.b64decode(document["data"]) == (bytes(range(256)) * 8)[:2000]


def test_mem_read_folds_equal_lines(three: Hvctl, daemon: FakeDaemon) -> None:
    daemon.memory[:256] = bytes(256)
    lines = three("mem", "read", "a", "0", "256").out.splitlines()
    assert lines[1:] == ["*", "0000000000000100"]


def test_mem_write(three: Hvctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    assert three("mem", "write", "a", "0x10", "48656c6c6f").out == "5 bytes written at 0x10\n"
    assert daemon.memory[0x10:0x15] == b"Hello"
    assert three("mem", "write", "a", "0x20", "--text", "World", "-o", "json").json == {"written_bytes": "5"}
    (tmp_path / "f").write_bytes(b"file")
    assert three("mem", "write", "a", "0x30", "--file", str(tmp_path / "f")).code == 0
    assert daemon.memory[0x20:0x25] + daemon.memory[0x30:0x34] == b"Worldfile"


def test_mem_dump(three: Hvctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "dump"
    outcome = three("mem", "dump", "a", "0x100", "1500", "-O", str(file))
    assert outcome.code == 0 and outcome.out == "" and "1500 bytes" in outcome.err
    assert file.read_bytes() == daemon.memory[0x100 : 0x100 + 1500]
    assert three("mem", "dump", "a", "-O", str(file)).code == 0
    assert file.read_bytes() == daemon.memory[:1024] + bytes(1024) + daemon.memory[2048:4096]
    assert three("mem", "dump", "a", "0x40", "4", "-O", "-").out == "@ABC"
    assert three("mem", "dump", "a", "0x40", "4", "-O", "/nonexistent/f").code == 1
    assert three("mem", "dump", "a", "0x40", "-O", "-").code == 2


def test_mem_translate_and_regs(three: Hvctl) -> None:
    assert "0x10 -> 0x10 (writable, supervisor, no-execute, page of 4K)" in three("mem", "translate", "a", "0x10").out
    assert "is not mapped: the PDE at 0x2000 is not present" in three("mem", "translate", "a", "0x5000").out
    assert three("mem", "translate", "a", "16", "-o", "json").json["physical_address"] == "16"
    registers = three("regs", "a").out
    assert "protected mode, privilege level 0" in registers and "0x100123" in registers and "0xffffffff" in registers


def test_metrics(three: Hvctl, daemon: FakeDaemon) -> None:
    assert three("metrics").out == "# TYPE hvd_guests gauge\nhvd_guests 1.0\n"
    assert three("metrics", "a", "-o", "json").json["families"][0]["name"] == "hvd_guests"
    assert list(daemon.requests("GetMetrics")[-1].names) == ["guests/a"]


def test_stats_and_top_without_a_terminal(three: Hvctl, daemon: FakeDaemon) -> None:
    rows = three("top", "--count", "1", "--every", "250ms").out.splitlines()
    assert [row.split()[0] for row in rows] == ["NAME", "busy", "idle"]
    assert "\x1b" not in "".join(rows)
    assert daemon.requests("WatchStats")[-1].interval.ToMilliseconds() == 250
    lines = three("stats", "--count", "2", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["stats"][0]["name"] for line in lines] == ["guests/idle"] * 2


def test_events(three: Hvctl, daemon: FakeDaemon) -> None:
    lines = three("events", "--present", "--count", "3").out.splitlines()
    assert [line.split()[1:4] for line in lines] == [
        ["a", "PRESENT", "STOPPED"],
        ["b", "PRESENT", "RUNNING"],
        ["c", "PRESENT", "STOPPED"],
    ]
    assert daemon.requests("WatchGuests")[-1].changes_only is False


def test_trace_lines(three: Hvctl, daemon: FakeDaemon) -> None:
    first = make_record(1_000_000_000, 2, 0x3F8, 1, 0x48) + make_record(1_000_002_100, 65, 0x2000, 5, 0, 0)
    daemon.trace_blocks = [
        trace_pb2.StreamTraceResponse(records=first),
        trace_pb2.StreamTraceResponse(records=make_record(1_500_000_000, 2, 0x20, 1, 0x20), lost=9),
    ]
    outcome = three("trace", "-f", "a", "--count", "3", "--kind", "port-io", "--reason", "port-out")
    assert outcome.out.splitlines() == [
        "0.000000 a port-out(port=0x3f8, size=1, value=0x48) rip=0x100123 <1.2us>",
        "0.000002 a hypercall.log(address=0x2000, length=5) = 0 rip=0x100123 <1.2us>",
        "0.000002 a --- 9 records lost: they came faster than they could be sent ---",
        "0.500000 a port-out(port=0x20, size=1, value=0x20) rip=0x100123 <1.2us>",
    ]
    assert outcome.code == 0 and "3 records, 9 lost" in outcome.err
    request = daemon.requests("StreamTrace")[-1]
    assert (list(request.names), list(request.kinds), list(request.reasons)) == (
        ["guests/a"],
        ["port-io"],
        ["port-out"],
    )


def test_trace_as_json_lines(three: Hvctl, daemon: FakeDaemon) -> None:
    daemon.trace_blocks = [trace_pb2.StreamTraceResponse(records=make_record(5, 65, 1, 2, 0, 2**64 - 1), lost=2)]
    lines = [json.loads(line) for line in three("trace", "a", "--for", "300ms", "-o", "jsonl").out.splitlines()]
    assert [line.get("lost") for line in lines] == [2, None]
    assert lines[1]["point"] == "hypercall.log" and lines[1]["arguments"] == {"address": 1, "length": 2}
    assert lines[1]["result"] == 2**64 - 1 and lines[1]["duration_ns"] == 1200


def test_trace_ends_by_for_with_0_and_by_timeout_with_124(three: Hvctl) -> None:
    assert three("trace", "a", "--for", "200ms").code == 0
    assert three("trace", "-f", "a", "--timeout", "200ms").code == 124
    assert three("trace", "nobody", "--for", "5s").code == 3


def test_trace_summary_and_points(three: Hvctl) -> None:
    rows = three("trace", "summary", "a").out.splitlines()
    assert rows[1].split() == ["port-io", "port-out", "10", "20.0us", "2.0us", "-", "-", "-", "3.0us"]
    assert three("trace", "-o", "json", "summary", "a").json["total"] == "12"
    assert "address, length, result" in three("trace", "points").out
    assert three("trace", "points", "-o", "name").out == "port-out\nhypercall.log\n"


def test_images(hvctl: Hvctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    kernel = tmp_path / "k"
    kernel.write_bytes(b"kernel")
    outcome = hvctl("image", "import", "mine", "--kernel", str(kernel), "--append", "quiet", "--memory", "32M")
    assert outcome.out == "mine\n"
    assert daemon.images["images/mine"].append == "quiet"
    assert hvctl("image", "list", "-o", "json").json["images"][0]["memory_bytes"] == str(32 << 20)
    assert hvctl("image", "ls", "-o", "name").out == "images/mine\n"
    built = hvctl("image", "build", "linux")
    assert built.out == "linux\n" and "compile 50% linux" in built.err and "fetch linux" in built.err
    assert hvctl("image", "delete", "mine").out == "mine\n"


def test_what_a_guest_named_does_not_drive_the_terminal(three: Hvctl, daemon: FakeDaemon) -> None:
    daemon.change("guests/a", status_message="\x1b]0;owned\x07", reason="BAD\x1b[31m")
    for words in (["list", "-o", "wide"], ["show", "a"], ["pause", "a"]):
        outcome = three(*words)
        assert "\x1b" not in outcome.out


def test_run_ends_as_the_guest_does(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    outcome = hvctl("run", "--append", "say=hello", "--name", "a")
    assert (outcome.code, outcome.out) == (0, "hello\r\n")
    assert "backend emulation: the only one that runs here" in outcome.err
    assert "EXITED" not in outcome.err
    assert daemon.requests("AttachConsole")[0].replay_bytes == 1 << 20
    outcome = hvctl("run", "--append", "say=x exit=7", "--rm", "--backend", "emulation", "--name", "b")
    assert outcome.code == 7 and "EXITED, exit code 7" in outcome.err and "backend" not in outcome.err
    assert set(daemon.guests) == {"guests/a"}
    assert hvctl("run", "--append", "fail").code == 125
    assert hvctl("run", "--append", "exit=256").code == 255


def test_run_detached(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    assert hvctl("run", "-d", "--name", "a", "--append", "hang").out == "a\n"
    assert hvctl("run", "-d", "--name", "b", "--append", "hang", "-o", "json").json["state"] == "RUNNING"
    assert daemon.requests("AttachConsole") == []
    assert hvctl("run", "-d", "--rm").code == 125


def test_run_that_cannot_start_says_what_is_left(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    outcome = hvctl("run", "--name", "a", "--append", "refuse")
    assert outcome.code == 125 and "hvctl delete a" in outcome.err and "guests/a" in daemon.guests
    assert hvctl("run", "--name", "b", "--append", "refuse", "--rm").code == 125
    assert "guests/b" not in daemon.guests


def test_run_with_a_timeout(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    assert hvctl("run", "--name", "a", "--append", "hang", "--rm", "--timeout", "500ms").code == 124
    assert "guests/a" not in daemon.guests


def test_console_of_a_guest_that_has_ended(hvctl: Hvctl, daemon: FakeDaemon) -> None:
    hvctl("run", "--name", "a", "--append", "say=hello exit=3")
    outcome = hvctl("console", "a")
    assert (outcome.code, outcome.out) == (0, "hello\r\n")
    assert "exit code 3" in outcome.err
    assert hvctl("console", "a", "--no-replay").out == ""


def test_files_that_are_none(hvctl: Hvctl, tmp_path: Path) -> None:
    for word in ("--kernel", "--initrd", "--symbols"):
        outcome = hvctl("run", word, str(tmp_path))
        assert outcome.code == 125 and f"File '{tmp_path}' is a directory." in outcome.err
        assert "No such file" in hvctl("create", word, str(tmp_path / "none")).err
    assert hvctl("create", "--kernel", "a\0b").code == 1


@pytest.mark.parametrize(("columns", "widest"), [("60", 58), ("200", 78), ("10", 50), ("", 78), ("many", 78)])
def test_help_is_as_wide_as_the_terminal(hvctl: Hvctl, monkeypatch: pytest.MonkeyPatch, columns: str, widest: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outcome = hvctl("run", "--help")
    prose = outcome.out.partition("Options:")[0].splitlines()
    assert outcome.code == 0 and widest - 16 < max(map(len, prose)) <= widest
