"""What the daemon writes into a ring itself, read by those who read a board's, and decoded by the client."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hvapi.record import RECORD
from hvapi.v1 import trace_pb2
from hvctl.sdk.trace import TraceDecoder, TraceEvent
from hvctl.sdk.trace_formats import FORMATS
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.backends.container.trace.points import POINTS
from hvd.backends.container.trace.syscalls import CALLS
from hvd.guests.tracing import message_of
from hvd.runner.directory import COUNTERS, TRACE, TRACE_RECORDS
from hvd.trace import points
from hvd.trace.counters import read_counters
from hvd.trace.filter import Filter
from hvd.trace.points import BY_ID, BackendId, Kind
from hvd.trace.ring import RingReader
from hvd.trace.session import GuestTrace, TraceSwitch
from hvd.trace.writer import RecordWriter

BY_NAME = {point.name: point for point in POINTS}
RENAME, READ = BY_NAME["renameat2"], BY_NAME["read"]
LOST = points.BY_NAME["lost"].id
ALL = Filter((), (), POINTS)


def decoded(blocks: list[tuple[bytes, int]]) -> list[TraceEvent]:
    header = trace_pb2.TraceHeader(guests=["guests/c"], points=[message_of(point, []) for point in POINTS])
    decoder = TraceDecoder(header)
    return [
        event
        for records, lost in blocks
        for event in decoder.decode(trace_pb2.StreamTraceResponse(guest=0, records=records, lost=lost))
    ]


def read_all(trace: GuestTrace, most: int) -> list[tuple[bytes, int]]:
    blocks = []
    while True:
        block, lost, found = trace.read(most)
        if not found:
            return blocks
        blocks.append((block, lost))


@pytest.mark.parametrize("most", [7, 8, 11, 1000])
def test_long_crossings_come_whole_wherever_the_blocks_are_cut(tmp_path: Path, most: int) -> None:
    writer = RecordWriter(tmp_path, BackendId.CONTAINER, 1 << Kind.SYSTEM_CALL)
    trace = GuestTrace(tmp_path, ALL, TraceSwitch())
    old, new = b"/old/" + b"a" * 90, "/neu/ü\"".encode()
    for number in range(20):
        words = ((1 << 64) - 2, 7, (1 << 64) - 100, 0x1000, 5, 0x2000, number)
        writer.add(RENAME.id, RENAME.kind, 100 + number, 1500, 0x400000, words, {3: old, 5: new})
        writer.add(READ.id, READ.kind, 100 + number, None, 0x400000, (3, 7, 0, 0x3000, 4096), {})
    writer.flush()
    events = decoded(read_all(trace, most))
    assert len(events) == 40
    assert [a.text for a in events[2].arguments] == ["7", "AT_FDCWD", f'"{old.decode()}"', "5", '"/neu/ü\\""', "RENAME_NOREPLACE"]
    assert events[2].result is not None and events[2].result.text == "-ENOENT"
    assert events[2].document()["texts"] == {"oldpath": old.decode(), "newpath": new.decode()}
    assert [a.text for a in events[3].arguments] == ["7", "0", "0x3000", "4096"] and events[3].duration_ns is None
    trace.close()
    writer.close()


def test_losses_before_the_ring_and_in_it_are_counted(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, BackendId.CONTAINER, 1 << Kind.SYSTEM_CALL)
    trace = GuestTrace(tmp_path, Filter(["system-call"], [], POINTS), TraceSwitch())
    writer.lose(41)
    writer.add(READ.id, READ.kind, 1, 1, 0, (0, 7, 0, 0), {})
    writer.flush()
    assert [(event.lost, event.name) for event in decoded(read_all(trace, 100))] == [(41, "lost"), (0, "read")]
    for _ in range(TRACE_RECORDS // 500 + 1):
        for _ in range(500):
            writer.add(READ.id, READ.kind, 1, 1, 0, (0, 7, 0, 0), {})
        writer.flush()
    written = 500 * (TRACE_RECORDS // 500 + 1)
    events = decoded(read_all(trace, 1000))
    assert sum(event.lost for event in events) + sum(not event.lost for event in events) == written
    trace.close()
    writer.close()


def test_counters_of_system_calls(tmp_path: Path) -> None:
    for _ in range(2):  # the second goes on with what the first has left
        writer = RecordWriter(tmp_path, BackendId.CONTAINER, 0)
        writer.add(READ.id, READ.kind, 1, 300, 0, (0, 7, 0, 0), {})
        writer.add(READ.id, READ.kind, 1, 70_000, 0, (0, 7, 0, 0), {})
        writer.flush()
        writer.close()
    descriptor = os.open(tmp_path / COUNTERS, os.O_RDONLY)
    page = read_counters(descriptor)
    os.close(descriptor)
    counter = page.points[READ.id]
    assert (counter.count, counter.total_ns, counter.max_ns, sum(counter.histogram)) == (4, 140_600, 70_000, 4)
    assert page.records == 4 and RingReader(tmp_path / TRACE, from_start=True).unread() == 4


def test_crossings_without_records_are_counted(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, BackendId.CONTAINER, 0)
    writer.add(READ.id, READ.kind, 1, 300, 0, (0, 7, 0, 0), {})
    writer.count(READ.id, 3, 70_200, 70_000, [2, 0, 0, 0, 0, 0, 0, 1])
    writer.lose(5, 2)
    writer.flush()
    writer.close()
    with (tmp_path / COUNTERS).open("rb") as file:
        found = read_counters(file.fileno()).points
    counter = found[READ.id]
    assert (counter.count, counter.total_ns, counter.max_ns) == (4, 70_500, 70_000)
    assert counter.histogram[:8] == (2, 1, 0, 0, 0, 0, 0, 1)
    assert found[LOST].count == 2 and not found[LOST].total_ns


@given(st.binary(max_size=64 * 12).map(lambda data: data[: len(data) // 64 * 64]))
@settings(max_examples=200)
def test_nonsense_is_decoded_to_something(block: bytes) -> None:
    for event in decoded([(block, 0)]):
        assert event.document() and str(event)


def test_names_of_flags_protections_and_signals() -> None:
    def texts(name: str, *values: int) -> list[str]:
        point = BY_NAME[name]
        event = decoded([(RECORD.pack(1, 0, point.id, point.kind, 2, 0, 0, 0, 0, 0, 7, *values), 0)])[0]
        return [argument.text for argument in event.arguments[1:]]

    assert texts("kill", (1 << 64) - 1, 15) == ["-1", "SIGTERM"]
    assert texts("kill", 5, 0) == ["5", "0"]
    assert texts("open", 0, 0o2101102) == ["NULL", "O_RDWR|O_CREAT|O_TRUNC|O_LARGEFILE|O_CLOEXEC"]
    assert FORMATS["protection"](0) == "PROT_NONE" and FORMATS["protection"](0x4000003) == "PROT_READ|PROT_WRITE|0x4000000"


def test_the_table() -> None:
    assert len({point.id for point in POINTS}) == len({point.name for point in POINTS}) == len(POINTS)
    assert not {point.name for point in POINTS} & {point.name for point in BY_ID.values()}
    assert all(len(call.arguments) <= 6 and len(call.paths) <= 2 and call.number < 512 for call in CALLS.values())
    # arch/x86/entry/syscalls/syscall_64.tbl
    assert {name: CALLS[number].name for name, number in (("openat", 257), ("execve", 59), ("statx", 332), ("clone3", 435))}.items() <= {
        name: name for name in ("openat", "execve", "statx", "clone3")
    }.items()
