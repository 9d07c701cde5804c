"""Counting and recording of crossings, seen from the reader's side: files, not memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hvapi.record import FLAG_UNTIMED, RECORD_BYTES, Record, decode
from hypothesis import given
from hypothesis import strategies as st

from hvd.board.hot import TAP_RECORDS, HotBoard
from hvd.errors import HvdError
from hvd.trace.counters import BUCKET_NS, COUNTERS_BYTES, DISKS_OFFSET, Counters, decode_counters, read_counters
from hvd.trace.points import BY_NAME, BackendId, Kind
from hvd.trace.text import crossing_text

ENABLED_OFFSET, HEAD_OFFSET = 12, 16
PORT_OUT = BY_NAME["port-out"].id
HALT = BY_NAME["halt"].id


class Files:
    """A board and the daemon's view of its two files."""

    def __init__(self, directory: Path, records: int = 8) -> None:
        self.counters_path, self.trace_path = directory / "counters", directory / "trace"
        self.board = HotBoard(
            BackendId.EMULATION, counters=self.counters_path, trace=self.trace_path, trace_records=records
        )

    def counters(self) -> Counters:
        fd = os.open(self.counters_path, os.O_RDONLY)
        try:
            return read_counters(fd)
        finally:
            os.close(fd)

    def enable(self, *kinds: Kind) -> None:
        with open(self.trace_path, "r+b") as file:
            file.seek(ENABLED_OFFSET)
            file.write(struct.pack("<I", sum(1 << kind for kind in kinds)))

    def trace(self) -> tuple[int, list[Record]]:
        """The head, and the slots in order of place."""
        data = self.trace_path.read_bytes()
        return struct.unpack_from("<Q", data, HEAD_OFFSET)[0], list(decode(data[64:]))


def test_counts_without_a_listener(tmp_path: Path) -> None:
    files = Files(tmp_path)
    board = files.board
    start = board.host_ns()
    for _ in range(3):
        board.cross(PORT_OUT, start, 0x1000)
    board.cross(HALT, 0, 0)
    counters = files.counters()
    assert set(counters.points) == {PORT_OUT, HALT}
    out = counters.points[PORT_OUT]
    assert out.count == sum(out.histogram) == 3
    assert 0 < out.max_ns <= out.total_ns <= 3 * out.max_ns
    halt = counters.points[HALT]
    assert (halt.count, halt.total_ns, sum(halt.histogram)) == (1, 0, 0)  # untimed: counted only
    assert counters.records == 0 and files.trace()[0] == 0
    assert 0 < counters.start_ns <= start


def test_histogram_buckets(tmp_path: Path) -> None:
    """A duration of at least d lies in d's bucket or above it, whatever the machine's speed."""
    files = Files(tmp_path)
    for age in (0, 30_000, 20_000_000, 10**9):
        files.board.cross(PORT_OUT, files.board.host_ns() - age, 0)
    histogram = files.counters().points[PORT_OUT].histogram
    assert sum(histogram) == 4
    for age, least in ((30_000, 3), (20_000_000, 2), (10**9, 1)):
        first = next((i for i, bound in enumerate(BUCKET_NS) if age <= bound), len(BUCKET_NS))
        assert sum(histogram[first:]) >= least
    assert histogram[-1] >= 1


def test_records_of_enabled_kinds(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.enable(Kind.PORT_IO)
    start = files.board.host_ns()
    files.board.cross(PORT_OUT, start, 0xFFFF_FFFF_8100_0000, 4, 0x3F8, 1, 0x41, 9)
    files.board.cross(HALT, start, 0)
    files.board.cross(PORT_OUT, 0, 0x10)
    head, records = files.trace()
    assert head == files.counters().records == 2
    first, second = records[:2]
    assert first._replace(duration_ns=0) == Record(
        start, 0, PORT_OUT, Kind.PORT_IO, BackendId.EMULATION, 0, 4, 0, 0xFFFF_FFFF_8100_0000, 0x3F8, 1, 0x41, 9
    )
    assert 0 < first.duration_ns < 10**9
    assert (second.flags, second.duration_ns, second.sequence, second.rip) == (FLAG_UNTIMED, 0, 1, 0x10)
    assert second.time_ns >= start
    files.enable()
    files.board.cross(PORT_OUT, start, 0)
    assert files.trace()[0] == 2


def test_ring_wraps_and_keeps_the_newest(tmp_path: Path) -> None:
    files = Files(tmp_path, records=12)  # rounded down to 8, a power of two
    files.enable(Kind.HALT)
    for number in range(21):
        files.board.cross(HALT, 0, number)
    head, records = files.trace()
    assert head == 21
    assert [record.rip for record in records[:8]] == [16, 17, 18, 19, 20, 13, 14, 15]
    assert len(files.trace_path.read_bytes()) == (1 + 12) * RECORD_BYTES


def test_trace_switched_on_before_the_start_is_kept(tmp_path: Path) -> None:
    (tmp_path / "trace").write_bytes(struct.pack("<12xI", 1 << Kind.HALT))
    files = Files(tmp_path)
    files.board.cross(HALT, 0, 1)
    assert files.trace()[0] == 1


def test_shared_header_is_not_trusted(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.enable(Kind.HALT)
    with open(files.trace_path, "r+b") as file:
        file.seek(8)
        file.write(b"\xff\xff\xff\xff")  # capacity
        file.seek(HEAD_OFFSET)
        file.write(b"\xff" * 8)
    for number in range(9):
        files.board.cross(HALT, 0, number)
    head, records = files.trace()
    assert head == 9 and records[0].rip == 8


def test_long_duration_saturates(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.enable(Kind.HALT)
    start = files.board.host_ns() - 6 * 10**9
    if start <= 0:
        pytest.skip("the host is up for less than six seconds")
    files.board.cross(HALT, start, 0)
    assert files.trace()[1][0].duration_ns == 2**32 - 1
    assert files.counters().points[HALT].max_ns >= 6 * 10**9


def test_unreadable_pages(tmp_path: Path) -> None:
    files = Files(tmp_path)
    page = files.counters_path.read_bytes()
    assert len(page) == COUNTERS_BYTES
    for broken in (b"", page[: DISKS_OFFSET - 1], bytes(COUNTERS_BYTES), page[:4] + b"\x02" + page[5:]):
        with pytest.raises(HvdError) as error:
            decode_counters(broken)
        assert error.value.reason == "COUNTERS_UNREADABLE"


@given(st.binary(max_size=200), st.integers(8, COUNTERS_BYTES - 200))
def test_nonsense_behind_the_magic_is_read_as_numbers(noise: bytes, offset: int) -> None:
    page = bytearray(COUNTERS_BYTES)
    page[:8] = struct.pack("<II", 0x54435648, 1)
    page[offset : offset + len(noise)] = noise
    decoded = decode_counters(bytes(page))
    assert all(0 <= point < 256 and counter.count for point, counter in decoded.points.items())


def test_device_counters(tmp_path: Path) -> None:
    files = Files(tmp_path)
    assert not files.counters().disks
    disk, card = files.board.disk_counters(3), files.board.nic_counters(7)
    disk[1] += 512
    card[2] += 1
    counters = files.counters()
    assert {slot: counter["read_bytes"] for slot, counter in counters.disks.items()} == {3: 512}
    assert {slot: counter["received_packets"] for slot, counter in counters.nics.items()} == {7: 1}
    for slot in (-1, 16):
        with pytest.raises(ValueError, match="slots"):
            files.board.disk_counters(slot)


def test_a_page_of_a_runner_that_knew_no_disks(tmp_path: Path) -> None:
    page = Files(tmp_path).counters_path.read_bytes()
    assert decode_counters(page[:DISKS_OFFSET]).disks == {}


def test_a_tap_keeps_the_last_crossings_and_says_how_many_it_lost() -> None:
    board = HotBoard(BackendId.EMULATION)
    board.cross(HALT, 0, 0x1000)
    assert board.tapped() == ([], 0)
    board.tap(True)
    for n in range(TAP_RECORDS + 6):
        board.cross(PORT_OUT, 0, 0x2000 + n, 0, 0x3F8, 1, n)
    records, lost = board.tapped()
    assert lost == 6
    assert [record.rip for record in records] == [0x2000 + n for n in range(6, TAP_RECORDS + 6)]
    assert crossing_text(records[0]) == "port-out(port=0x3f8, size=1, value=0x6) rip=0x2006"
    assert board.tapped() == ([], 0)
    board.cross(HALT, 0, 0x1000)
    assert len(board.tapped()[0]) == 1
    board.tap(False)
    board.cross(HALT, 0, 0x1000)
    assert board.tapped() == ([], 0)
    board.close()


@pytest.mark.parametrize(
    ("point", "arguments", "text"),
    [
        ("hypercall.log", (0x10, 5, 0, (1 << 64) - 14), "hypercall.log(address=0x10, length=5) = -EFAULT rip=0x1"),
        ("hypercall.clock", (0, 0, 0, 77), "hypercall.clock() = 77 ns rip=0x1"),
        ("exception.page-fault", (0x3000, 2, 0, 0), "exception.page-fault(address=0x3000, error-code=0x2) rip=0x1"),
        ("interrupt", (0x20, 0, 0, 0), "interrupt(vector=0x20) rip=0x1"),
        ("halt", (1, 0, 0, 0), "halt(interrupts=true) rip=0x1"),
    ],
)
def test_crossings_in_words(point: str, arguments: tuple[int, int, int, int], text: str) -> None:
    record = Record(0, 0, BY_NAME[point].id, 0, 0, 0, 0, 0, 1, *arguments)
    assert crossing_text(record) == text
    assert crossing_text(record._replace(flags=1)) == f"{text} user"


def test_an_unknown_crossing_has_words_too() -> None:
    assert crossing_text(Record(0, 0, 250, 0, 0, 0, 0, 0, 1, 5, 0, 0, 0)) == "point-250() rip=0x1"
