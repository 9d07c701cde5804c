"""Blocks of raw records become events with names, arguments and times; loss and damage do not go unnoticed."""

from __future__ import annotations

import pytest
from fake_inspection import POINTS, make_record
from hvapi import record
from hvapi.v1 import trace_pb2
from hvctl.sdk import HvctlError, TraceDecoder, TraceEvent
from hvctl.sdk.trace_formats import FORMATS, duration_text
from hypothesis import given
from hypothesis import strategies as st


def decode(*blocks: trace_pb2.StreamTraceResponse) -> list[TraceEvent]:
    header = trace_pb2.TraceHeader(guests=["guests/a", "guests/b"], points=POINTS)
    header.monotonic_epoch.FromSeconds(1_700_000_000)
    decoder = TraceDecoder()
    first = trace_pb2.StreamTraceResponse(header=header)
    return list(decoder.decode_all([first, *blocks]))


def test_a_port_access() -> None:
    block = trace_pb2.StreamTraceResponse(guest=1, records=make_record(12_345_678_000, 2, 0x3F8, 1, 0x48))
    (event,) = decode(block)
    assert (event.guest, event.name, event.kind) == ("guests/b", "port-out", "port-io")
    assert [(a.name, a.value, a.text) for a in event.arguments] == [
        ("port", 0x3F8, "0x3f8"),
        ("size", 1, "1"),
        ("value", 0x48, "0x48"),
    ]
    assert event.result is None
    assert event.duration_ns == 1200
    assert str(event) == "12.345678 b port-out(port=0x3f8, size=1, value=0x48) rip=0x100123 <1.2us>"
    assert event.wall_time.isoformat().startswith("2023-11-14T22:13:32.345678")
    assert event.document()["arguments"] == {"port": 0x3F8, "size": 1, "value": 0x48}


def test_a_hypercall_has_a_result_and_placeholders_vanish() -> None:
    flags = record.FLAG_UNTIMED | record.FLAG_USER
    (event,) = decode(
        trace_pb2.StreamTraceResponse(records=make_record(0, 65, 0x2000, 5, 0, 2**64 - 14, duration=0, flags=flags))
    )
    assert event.line("0") == "0 a hypercall.log(address=0x2000, length=5) = -EFAULT rip=0x100123 user"
    assert event.duration_ns is None
    assert event.document()["result"] == 2**64 - 14


def test_an_unknown_point_still_prints() -> None:
    (event,) = decode(trace_pb2.StreamTraceResponse(records=make_record(0, 200, 1, 2, 3, 4)))
    assert event.line("0").startswith("0 a point-200(a0=0x1, a1=0x2, a2=0x3, a3=0x4) rip=")


def test_lost_records_are_an_event_before_those_that_came() -> None:
    events = decode(
        trace_pb2.StreamTraceResponse(records=make_record(7, 2, 1, 1, 1)),
        trace_pb2.StreamTraceResponse(records=make_record(9, 2, 1, 1, 1), lost=123),
        trace_pb2.StreamTraceResponse(guest=1, lost=4),
    )
    assert [event.lost for event in events] == [0, 123, 0, 4]
    assert "123 records lost" in str(events[1])
    assert events[1].time_ns == 7
    assert events[1].document()["lost"] == 123


def test_a_lost_record_of_the_ring_itself_counts_too() -> None:
    point = trace_pb2.TracePoint(id=9, name="lost", kind="lost")
    point.arguments.add(name="records", format="dec")
    decoder = TraceDecoder(trace_pb2.TraceHeader(guests=["guests/a"], points=[point]))
    (event,) = decoder.decode(trace_pb2.StreamTraceResponse(records=make_record(0, 9, 55)))
    assert event.lost == 55


@pytest.mark.parametrize(
    "block",
    [
        trace_pb2.StreamTraceResponse(records=b"x" * 63),
        trace_pb2.StreamTraceResponse(records=b"x" * 65),
        trace_pb2.StreamTraceResponse(guest=2, records=make_record(0, 2)),
    ],
)
def test_damaged_blocks_are_refused(block: trace_pb2.StreamTraceResponse) -> None:
    with pytest.raises(HvctlError) as caught:
        decode(block)
    assert caught.value.reason == "TRACE_BLOCK_INVALID"


@given(st.binary(min_size=64, max_size=64 * 20).map(lambda data: data[: len(data) // 64 * 64]))
def test_any_whole_block_decodes_and_prints(data: bytes) -> None:
    events = decode(trace_pb2.StreamTraceResponse(records=data))
    assert len(events) == sum(not item.flags & record.FLAG_MORE for item in record.decode(data))
    for event in events:
        assert "\n" not in str(event)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("hex", 255, "0xff"),
        ("dec", 255, "255"),
        ("signed", 2**64 - 1, "-1"),
        ("vector", 14, "0x0e"),
        ("bool", 1, "true"),
        ("ns", 1500, "1.5us"),
        ("errno", 0, "0"),
        ("errno", 2**64 - 22, "-EINVAL"),
        ("errno", 2**32 - 38, "-ENOSYS"),
        ("errno", 5000, "5000"),
        ("bytes", int.from_bytes(b'h"i\n', "little"), '"h\\x22i\\x0a"'),
    ],
)
def test_formats(form: str, value: int, text: str) -> None:
    assert FORMATS[form](value) == text


def test_durations() -> None:
    assert [duration_text(ns) for ns in (999, 1200, 2_500_000, 3_000_000_000)] == ["999ns", "1.2us", "2.5ms", "3.0s"]
