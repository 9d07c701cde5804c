"""What a trace can become: one timeline of guests of different backends, call stacks, files for Perfetto, summaries."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from real_daemon import RealDaemon, kernel

MACHINES = ("emulation", "trap", "rewriting", "paravirt")


def machines(daemon: RealDaemon) -> list[str]:
    """Backends that run the test kernels here."""
    with daemon.client() as client:
        found = {each.name.removeprefix("backends/"): each.available for each in client.list_backends().backends}
    return [name for name in MACHINES if found.get(name)]


def image(name: str, backend: str) -> str:
    return kernel(f"{name}.pv.elf" if backend == "paravirt" else f"{name}.elf")


def start(daemon: RealDaemon, name: str, backend: str, append: str) -> str:
    daemon.ok("create", "--name", name, "--backend", backend, "--kernel", image("callers", backend), "--memory", "8M", "--append", append)
    return name


def traced(daemon: RealDaemon, names: list[str], *words: str) -> Any:
    """From the first instruction of the first to the end of the last."""
    trace = daemon.spawn("trace", "-f", *words, *names)
    trace.wait_err("tracing")
    daemon.ok("start", *names)
    for name in names:
        daemon.wait(name)
    assert trace.end() == 0, trace.err
    return trace


def test_one_timeline_of_guests_of_every_backend(daemon: RealDaemon, tmp_path: Path) -> None:
    names = [start(daemon, backend, backend, "n=30") for backend in machines(daemon)]
    assert len(names) > 1, "only one kind of machine runs here"
    records = tmp_path / "all.hvtrace"
    traced(daemon, names, "-o", "records", "-O", str(records))
    events = daemon.ok("trace", "read", "-o", "jsonl", str(records)).jsonl
    assert {event["guest"] for event in events} == {f"guests/{name}" for name in names}
    times = [event["time_ns"] for event in events]
    assert times == sorted(times)
    first = daemon.ok("trace", "read", "-o", "jsonl", "--count", "70", str(records)).jsonl
    assert first == events[:70], "the first in the order of time, not of the guest that was read first"
    for name in names:
        marks = [event["arguments"]["value0"] for event in events if event["guest"] == f"guests/{name}" and event["point"] == "hypercall.annotate"]
        assert marks == list(range(30)), name
    summary = daemon.ok("trace", "summary", "--file", str(records), "-o", "json").json
    rows = {(row["guest"], row["point"]): row for row in summary["points"]}
    for name in names:
        row = rows[f"guests/{name}", "hypercall.annotate"]
        assert row["count"] == 30 and 0 < row["p50_ns"] <= row["p90_ns"] <= row["p99_ns"] <= row["max_ns"] <= row["total_ns"]


@pytest.mark.parametrize("backend", MACHINES)
def test_call_stacks_with_names(daemon: RealDaemon, backend: str) -> None:
    if backend not in machines(daemon):
        pytest.skip(f"{backend} does not run here")
    # Under paravirt page tables are made by hypercalls.
    name = start(daemon, f"s-{backend}", backend, "n=40" if backend == "paravirt" else "n=40 paging=1")
    records = daemon.directory / f"{backend}.hvtrace"
    traced(daemon, [name], "--stack", "--kind", "hypercall", "--kind", "port-io", "-o", "records", "-O", str(records))
    events = daemon.ok("trace", "read", "-o", "jsonl", str(records)).jsonl
    marks = [event for event in events if event["point"] == "hypercall.annotate"]
    posts = [event for event in events if event["point"] == "port-out" and event["arguments"]["port"] == 0x80]
    assert len(marks) == len(posts) == 40
    for event in (*marks, *posts):
        callers = [frame["symbol"].partition("+")[0] for frame in event["stack"]]
        assert event["symbol"].startswith("inner") and callers[:3] == ["middle", "outer", "main"], event
    text = daemon.ok("trace", "read", "--count", "200", str(records)).stdout
    assert re.search(r"^\S+ \S+ hypercall\.annotate\(.*rip=0x[0-9a-f]+ \(inner\+0x[0-9a-f]+\) <.*>\n    0x[0-9a-f]+ middle\+", text, re.MULTILINE)
    summary = daemon.ok("trace", "summary", "--file", str(records)).stdout
    assert re.search(r"^0x[0-9a-f]+  inner\+0x[0-9a-f]+ +\S+ +40 ", summary, re.MULTILINE), summary
    assert re.search(r"^40 times .*\n    0x\S+ inner\+\S+\n    0x\S+ middle\+\S+\n    0x\S+ outer\+", summary, re.MULTILINE), summary


def test_one_session_wants_stacks_and_another_does_not(daemon: RealDaemon) -> None:
    name = start(daemon, "both", "emulation", "n=20")
    plain, stacks = daemon.directory / "plain.hvtrace", daemon.directory / "stacks.hvtrace"
    other = daemon.spawn("trace", "-f", "--kind", "hypercall", "-o", "records", "-O", str(plain), name)
    other.wait_err("tracing")
    traced(daemon, [name], "--stack", "--kind", "hypercall", "-o", "records", "-O", str(stacks))
    assert other.end() == 0
    without, with_them = (daemon.ok("trace", "read", "-o", "jsonl", str(path)).jsonl for path in (plain, stacks))
    assert len(without) == len(with_them) >= 20
    assert not any("stack" in event for event in without) and all("stack" in event for event in with_them if event["point"].endswith("annotate"))


def slices(trace: Trace) -> tuple[dict[int, str], dict[int, list[tuple[str, int, int, set[int]]]]]:
    """Names of tracks, and on each (name, begin, end, flows); asserts that they nest and that nothing is left open."""
    names: dict[int, str] = {}
    interned: dict[int, str] = {}
    packets: dict[int, list[tuple[int, Any]]] = defaultdict(list)
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            names[track.uuid] = track.thread.thread_name or track.process.process_name or track.name
            assert not track.parent_uuid or track.parent_uuid in names
        interned |= {name.iid: name.name for name in packet.interned_data.event_names}
        if packet.HasField("track_event"):
            packets[packet.track_event.track_uuid].append((packet.timestamp, packet.track_event))
    found: dict[int, list[tuple[str, int, int, set[int]]]] = defaultdict(list)
    for uuid, events in packets.items():
        assert uuid in names
        assert [time for time, _ in events] == sorted(time for time, _ in events)
        opened: list[tuple[str, int, set[int]]] = []
        for time, event in events:
            if event.type == TrackEvent.TYPE_SLICE_END:
                name, begin, flows = opened.pop()
                found[uuid].append((name, begin, time, flows))
            elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
                opened.append((interned[event.name_iid], time, set(event.flow_ids)))
            else:
                assert event.type == TrackEvent.TYPE_INSTANT
                found[uuid].append((interned[event.name_iid], time, time, set(event.flow_ids)))
        assert not opened
    return names, found


def on(names: dict[int, str], tracks: dict[int, list[tuple[str, int, int, set[int]]]], name: str) -> list[tuple[str, int, int, set[int]]]:
    """All slices on the tracks of this name."""
    return [each for uuid, found in tracks.items() if names[uuid] == name for each in found]


def processed(path: Path) -> Any:
    """The trace processor: the program that $PERFETTO_TRACE_PROCESSOR names, one in PATH, or what the package fetches from the network when
    it is first used, if it can be had."""
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    if program := os.environ.get("PERFETTO_TRACE_PROCESSOR") or shutil.which("trace_processor_shell"):
        return TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=program))
    try:
        return TraceProcessor(trace=str(path))
    except Exception as error:  # noqa: BLE001  whatever keeps it from coming
        pytest.skip(f"Perfetto's trace processor cannot be had here: {error}")


def test_a_file_for_perfetto(daemon: RealDaemon, tmp_path: Path) -> None:
    """Read with Perfetto's own classes: a process for each guest, tracks that nest, arguments, and flows to what a device did."""
    path, records = tmp_path / "trace.perfetto", tmp_path / "trace.hvtrace"
    daemon.ok("image", "import", "bootdisk", kernel("boot.img"), "--kind", "disk")
    made = daemon.hvctl("create", "--name", "disk", "--backend", "emulation", "--disk", "bootdisk", "--boot", "disk", "--memory", "16M")
    if "FIRMWARE" in made.stderr or "firmware" in made.stderr:
        pytest.skip(made.stderr)
    assert made.returncode == 0, made.stderr
    disk = "disk"
    others = [start(daemon, f"p-{backend}", backend, "n=20") for backend in machines(daemon)]
    traced(daemon, [disk, *others], "--kind", "device", "--kind", "hypercall", "--kind", "halt", "-o", "records", "-O", str(records))
    daemon.ok("trace", "read", "-o", "perfetto", "-O", str(path), str(records))
    trace = Trace.FromString(path.read_bytes())
    names, tracks = slices(trace)
    assert {"disk", *others} <= set(names.values()) and "vcpu 0" in names.values() and "device disk 0" in names.values()
    events = daemon.ok("trace", "read", "-o", "jsonl", str(records)).jsonl
    assert sum(map(len, tracks.values())) == len(events), "every record is there"
    work = {flow: (name, begin) for name, begin, _, flows in on(names, tracks, "device disk 0") for flow in flows}
    crossings = {flow: (name, begin, end) for name, begin, end, flows in on(names, tracks, "vcpu 0") for flow in flows}
    assert work and work.keys() == crossings.keys(), "each flow leads from one crossing to one work"
    for flow, (name, begin) in work.items():
        crossing, first, last = crossings[flow]
        assert name.startswith("disk-") and crossing == "virtio-notify" and first <= begin <= last
    annotations = {name.name for packet in trace.packet for name in packet.interned_data.debug_annotation_names}
    assert {"rip", "value0", "result", "offset", "length"} <= annotations


def test_perfettos_trace_processor_reads_it(daemon: RealDaemon, tmp_path: Path) -> None:
    path = tmp_path / "trace.perfetto"
    name = start(daemon, "one", "emulation", "n=50")
    traced(daemon, [name], "--kind", "hypercall", "-o", "perfetto", "-O", str(path))
    with processed(path) as processor:
        counted = list(processor.query("select count(*) as n from slice where name = 'hypercall.annotate'"))
        assert counted[0].n == 50
        assert [row.name for row in processor.query("select name from process where name = 'one'")] == ["one"]
        arguments = list(processor.query("select count(*) as n from args where flat_key = 'debug.value0'"))
        assert arguments[0].n == 50


def test_binary_forms_are_not_for_a_terminal(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    terminal = daemon.terminal("trace", "--count", "1", "-o", "perfetto", name)
    assert "not for a terminal" in terminal.wait_for("terminal")
    assert terminal.end() == 2
    damaged = daemon.directory / "damaged.hvtrace"
    daemon.ok("trace", "--count", "50", "-o", "records", "-O", str(damaged), name)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    done = daemon.hvctl("trace", "read", "-o", "jsonl", str(damaged))
    assert done.returncode == 1 and "in the middle of a block" in done.stderr
    assert daemon.hvctl("trace", "read", kernel("ticker.elf")).returncode == 1
    assert daemon.hvctl("trace", "--count", "1", "-O", "/nowhere/file", name).returncode == 1
