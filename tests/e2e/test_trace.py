"""Crossings as they happen: `hvctl trace` on real guests, from their first instruction on."""

from __future__ import annotations

import re

from real_daemon import Process, RealDaemon, kernel, wait_for

# seconds guest point(arguments) [= result] rip=address [user] [<duration>]
LINE = re.compile(
    r"(?P<time>\d+\.\d{6}) (?P<guest>\S+) (?P<point>[\w.-]+)\((?P<arguments>[^)]*)\)(?: = (?P<result>\S+))? "
    r"rip=0x[0-9a-f]+(?: user)?(?: <[\d.]+(?:ns|us|ms|s)>)?"
)


def traced(daemon: RealDaemon, guest: str, *words: str, append: str = "") -> Process:
    """A guest that is started only when the trace of it has begun; the trace, ended."""
    daemon.ok("create", "--name", "a", "--kernel", kernel(guest), "--memory", "16M", "--append", append)
    daemon.ok("start", "--paused", "a")
    trace = daemon.spawn("trace", "-f", *words, "a")
    trace.wait_err("tracing a")
    daemon.ok("resume", "a")
    daemon.wait("a")
    assert trace.end() == 0, trace.err
    return trace


def test_every_kind_of_crossing_is_a_decoded_line(daemon: RealDaemon) -> None:
    lines = traced(daemon, "ticker.elf", append="count=2").out.splitlines()
    for line in lines:
        assert LINE.fullmatch(line), line
    # The serial line's transmit register, the 8254's interrupt, the wait for it.
    assert any(re.search(r" a port-out\(port=0x3f8, size=1, value=0x[0-9a-f]+\) rip=0x10[0-9a-f]+ <", line) for line in lines)
    assert any(re.search(r" a port-in\(port=0x3fd, size=1, value=0x[0-9a-f]+\) ", line) for line in lines)
    assert len([line for line in lines if " interrupt(vector=0x20) " in line]) >= 20
    assert any(re.search(r" halt\(interrupts=true\) .*<[\d.]+(us|ms)>", line) for line in lines)
    # The whole of it: the exit is the last call.
    assert " hypercall.exit(code=0) " in lines[-1]
    sent = bytes(int(match[1], 16) for line in lines if (match := re.search(r"port-out\(port=0x3f8, size=1, value=(0x[0-9a-f]+)\)", line)))
    assert b"ticker: ok" in sent


def test_exceptions_by_name(daemon: RealDaemon) -> None:
    lines = traced(daemon, "exceptions.elf", "--kind", "exception", "--kind", "page-fault").out.splitlines()
    points = {match["point"] for line in lines if (match := LINE.fullmatch(line))}
    assert {"exception.divide-error", "exception.invalid-opcode", "exception.general-protection", "exception.page-fault"} <= points
    assert any("exception.page-fault(address=0x" in line and "error-code=0x" in line for line in lines)


def test_hypercalls_by_name_with_arguments_result_and_duration(daemon: RealDaemon) -> None:
    trace = traced(daemon, "hypercalls.elf", "--kind", "hypercall")
    lines = [line.partition(" a ")[2] for line in trace.out.splitlines()]
    assert all(line.startswith("hypercall.") and line.endswith(">") for line in lines)
    for wanted in (
        r"hypercall\.version\(\) = 1 ",
        r"hypercall\.log\(address=0x[0-9a-f]+, length=21\) = 0 ",
        r"hypercall\.log\(address=0x[0-9a-f]+, length=1025\) = -EINVAL ",
        r"hypercall\.log\(address=0xf0000000, length=16\) = -EFAULT ",
        r"hypercall\.annotate\(value0=0xdeadbeef, value1=0x2a\) = 0 ",
        r"hypercall\.clock\(\) = [\d.]+(us|ms|s) ",
        r"hypercall\.unknown\(number=7\) = -ENOSYS ",
        r"hypercall\.exit\(code=0\) ",
    ):
        assert any(re.match(wanted, line) for line in lines), f"{wanted}: {lines}"
    summary = {row["reason"]: int(row["count"]) for row in daemon.ok("trace", "summary", "a", "-o", "json").json["rows"]}
    calls = {point: count for point, count in summary.items() if point.startswith("hypercall.")}
    assert sum(calls.values()) == len(lines), "the counters say the same as the records"
    assert calls["hypercall.annotate"] == 2


def test_filters_counts_and_durations(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    only = daemon.ok("trace", "--reason", "halt", "--count", "5", name)
    assert [LINE.fullmatch(line)["point"] for line in only.stdout.splitlines()] == ["halt"] * 5  # type: ignore[index]
    assert "5 records" in only.stderr
    both = daemon.ok("trace", "--kind", "interrupt", "--kind", "port-io", "--count", "60", name).stdout
    points = {LINE.fullmatch(line)["point"] for line in both.splitlines()}  # type: ignore[index]
    assert "interrupt" in points and points <= {"interrupt", "port-in", "port-out"}
    assert daemon.ok("trace", "--for", "2s", name).stdout
    unknown = daemon.hvctl("trace", "--kind", "nonsense", "--count", "1", name)
    assert unknown.returncode == 1 and "nonsense" in unknown.stderr


def test_several_guests_in_one_stream(daemon: RealDaemon) -> None:
    names = [daemon.run("ticker.elf") for _ in range(2)]
    trace = daemon.spawn("trace", "-f", "--kind", "interrupt", *names)
    for name in names:
        trace.wait_out(f" {name} interrupt(")
    assert trace.interrupt() == 130
    lines = trace.out.rpartition("\n")[0].splitlines()
    assert {line.split()[1] for line in lines} == set(names)


def test_json_lines(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    events = daemon.ok("trace", "--count", "100", "-o", "jsonl", name).jsonl
    assert len(events) == 100
    times = [event["time_ns"] for event in events]
    assert times == sorted(times)
    assert all(event["guest"] == f"guests/{name}" and event["vcpu"] == 0 for event in events)
    sequence = [event["sequence"] for event in events]
    assert sequence == list(range(sequence[0], sequence[0] + 100))
    port = next(event for event in events if event["point"] == "port-out")
    assert port["kind"] == "port-io" and set(port["arguments"]) == {"port", "size", "value"}
    assert all(event["duration_ns"] is None or event["duration_ns"] >= 0 for event in events)


def test_points_are_listed(daemon: RealDaemon) -> None:
    points = {point["name"]: point for point in daemon.ok("trace", "points", "-o", "json").json["points"]}
    assert points["hypercall.log"]["kind"] == "hypercall"
    assert [argument["name"] for argument in points["hypercall.log"]["arguments"][:2]] == ["address", "length"]


def test_records_are_written_only_while_somebody_listens(daemon: RealDaemon) -> None:
    """Counting goes on always; the ring is written between the first listener's coming and the last one's leaving."""

    def records() -> float:
        text = daemon.ok("metrics", name).stdout
        match = re.search(rf'hvd_trace_records_total{{guest="{name}",sink="ring"}} (\S+)', text)
        assert match, text
        return float(match[1])

    def exits() -> int:
        return sum(int(row["count"]) for row in daemon.ok("trace", "summary", name, "-o", "json").json["rows"])

    name = daemon.run("ticker.elf")
    daemon.wait_logs(name, "tick 0")
    assert records() == 0 < exits()
    daemon.ok("trace", "--count", "10", name)

    def stands_still() -> bool:
        """While the guest crosses."""
        written, counted = records(), exits()
        wait_for(lambda: exits() > counted, "it crosses")
        return records() == written

    wait_for(stands_still, "recording ends with the last listener")
    written, counted = records(), exits()
    assert written >= 10
    daemon.wait_logs(name, f"tick {daemon.ok('logs', name).stdout.count('tick') + 1}")
    assert records() == written and exits() > counted


def test_a_trace_ends_with_its_guest(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    trace = daemon.spawn("trace", "-f", "--kind", "hypercall", name)
    trace.wait_err(f"tracing {name}")
    console = daemon.spawn("console", name)
    console.wait_out("echo: type")
    console.type("q")
    trace.wait_out("hypercall.exit(code=7)")
    assert trace.end() == 0
