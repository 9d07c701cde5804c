"""The counters page of a guest (struct hv_counters, hvd/board/native/crossing.h), read by the daemon with pread.

The page belongs to the guest's runner, which may be gone, older or broken: nothing in it is trusted beyond its shape.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from dataclasses import dataclass

from hvd.errors import HvdError

MAGIC = 0x54435648  # "HVCT"
VERSION = 1
POINTS = 256
# Upper bounds of the histogram's buckets in nanoseconds; one more bucket, without a bound, follows.
BUCKET_NS: tuple[int, ...] = (
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000, 10_000_000, 100_000_000,
)  # fmt: skip
BUCKETS = len(BUCKET_NS) + 1

HEADER = struct.Struct("<II15Q")
HEADER_FIELDS = (
    "start_ns", "first_instruction_ns", "run_ns", "halted_ns", "console_out_bytes", "console_in_bytes", "resets",
    "records", "instructions", "shadow_pages", "cache_bytes", "callouts", "chained_jumps", "looked_up_jumps",
    "retranslated_blocks",
)  # fmt: skip
HEADER_BYTES = 8 * (1 + 15 + 16)  # with the reserved words
POINTS_OFFSET = HEADER_BYTES
POINT_WORDS = 3
HISTOGRAM_OFFSET = POINTS_OFFSET + POINTS * POINT_WORDS * 8
DISKS_OFFSET = HISTOGRAM_OFFSET + POINTS * BUCKETS * 8
DISKS = 16
DISK_WORDS = 12
DISK_FIELDS = (
    "present", "read_bytes", "written_bytes", "reads", "writes", "flushes", "discards", "errors", "busy_ns",
)  # fmt: skip
NICS_OFFSET = DISKS_OFFSET + DISKS * DISK_WORDS * 8
NICS = 8
NIC_WORDS = 12
NIC_FIELDS = (
    "present", "received_bytes", "received_packets", "transmitted_bytes", "transmitted_packets", "received_dropped",
    "transmitted_dropped",
)  # fmt: skip
COUNTERS_BYTES = NICS_OFFSET + NICS * NIC_WORDS * 8
# Points of higher numbers (system calls), count and histogram together; only in pages that the daemon writes (hvd/trace/writer.py).
EXTENDED_BASE = 512
EXTENDED_POINTS = 1024
EXTENDED_OFFSET = COUNTERS_BYTES
PAGE_BYTES = EXTENDED_OFFSET + EXTENDED_POINTS * (POINT_WORDS + BUCKETS) * 8


@dataclass(frozen=True, slots=True)
class PointCounter:
    """How often the guest crossed at one trace point. Times cover the crossings that were timed."""

    count: int
    total_ns: int
    max_ns: int
    histogram: tuple[int, ...]  # BUCKETS counts, not cumulative


# Of one disk or network card: the fields of its struct by their names.
DeviceCounters = dict[str, int]


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading. Fields are read without a lock: each is right, together they are a few nanoseconds apart."""

    start_ns: int  # CLOCK_MONOTONIC when the machine was made
    first_instruction_ns: int  # CLOCK_MONOTONIC; 0 = not yet
    run_ns: int  # executing the guest
    halted_ns: int  # waiting in HLT
    console_out_bytes: int
    console_in_bytes: int
    resets: int
    records: int  # trace records written
    instructions: int  # 0 = not counted by this backend
    # Of the native cell; the last five of a translator.
    shadow_pages: int  # of the guest, mapped now
    cache_bytes: int  # of translated code
    callouts: int  # from translated code into the monitor
    chained_jumps: int
    looked_up_jumps: int  # indirect ones that no table knew
    retranslated_blocks: int  # of places that had been translated before
    points: dict[int, PointCounter]  # by trace point id; only those that were crossed
    disks: dict[int, DeviceCounters]  # by slot; only those that there are
    nics: dict[int, DeviceCounters]


def _unreadable(problem: str) -> HvdError:
    return HvdError("COUNTERS_UNREADABLE", problem=problem)


def read_counters(fd: int) -> Counters:
    """Read the page from an open file. Raises HvdError COUNTERS_UNREADABLE when it is not ours or not written yet."""
    try:
        page = os.pread(fd, PAGE_BYTES, 0)
    except OSError as error:
        raise _unreadable(os.strerror(error.errno or 0)) from error
    return decode_counters(page)


def decode_counters(page: bytes) -> Counters:
    """The same for bytes at hand."""
    if len(page) < DISKS_OFFSET:
        raise _unreadable(f"{len(page)} bytes, a page has {COUNTERS_BYTES}")
    # A runner of an hvd before there were disks has a shorter one.
    page = page.ljust(COUNTERS_BYTES, b"\0")
    magic, version, *header = HEADER.unpack_from(page)
    if magic != MAGIC:
        raise _unreadable(f"magic number {magic:#010x}, not {MAGIC:#010x}")
    if version != VERSION:
        raise _unreadable(f"layout version {version}, this daemon reads {VERSION}")
    words = array("Q", page[POINTS_OFFSET:DISKS_OFFSET])
    if sys.byteorder == "big":
        words.byteswap()
    buckets = (HISTOGRAM_OFFSET - POINTS_OFFSET) // 8
    points: dict[int, PointCounter] = {}
    for point in range(POINTS):
        count, total_ns, max_ns = words[point * POINT_WORDS : (point + 1) * POINT_WORDS]
        if count:
            start = buckets + point * BUCKETS
            points[point] = PointCounter(count, total_ns, max_ns, tuple(words[start : start + BUCKETS]))
    points |= _extended(page)
    return Counters(
        **dict(zip(HEADER_FIELDS, header, strict=True)),
        points=points,
        disks=_devices(page, DISKS_OFFSET, DISKS, DISK_WORDS, DISK_FIELDS),
        nics=_devices(page, NICS_OFFSET, NICS, NIC_WORDS, NIC_FIELDS),
    )


def _extended(page: bytes) -> dict[int, PointCounter]:
    """Of a page that a daemon wrote, perhaps an earlier one with fewer points."""
    size = POINT_WORDS + BUCKETS
    whole = max(0, len(page) - EXTENDED_OFFSET) // (8 * size)
    words = array("Q", page[EXTENDED_OFFSET : EXTENDED_OFFSET + whole * 8 * size])
    if sys.byteorder == "big":
        words.byteswap()
    return {
        EXTENDED_BASE + at // size: PointCounter(words[at], words[at + 1], words[at + 2], tuple(words[at + POINT_WORDS : at + size]))
        for at in range(0, len(words), size)
        if words[at]
    }


def _devices(page: bytes, offset: int, slots: int, words: int, names: tuple[str, ...]) -> dict[int, DeviceCounters]:
    found: dict[int, DeviceCounters] = {}
    for slot in range(slots):
        values = struct.unpack_from(f"<{len(names)}Q", page, offset + slot * words * 8)
        if values[0]:
            found[slot] = dict(zip(names, values, strict=True))
    return found
