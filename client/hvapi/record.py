"""The trace record: 64 bytes, little-endian, the one form on disk, in shared memory and on the wire.

hvd/board/native/crossing.h is the same in C; tests/unit/test_layouts.py compares the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

RECORD = struct.Struct("<QIHBBHHIQ4Q")
RECORD_BYTES = RECORD.size
FLAG_USER = 1
FLAG_UNTIMED = 2
FLAG_LONG = 4
# The record continues the one before it, of which it has the point and the kind: a PIECE. Its payload is up to five more arguments,
# or, with FLAG_TEXT, bytes that the argument whose position stands in place of the vcpu points to. Several continue each other.
FLAG_MORE = 8
FLAG_TEXT = 16
# The payload is up to five return addresses of the guest's call stack, the innermost first; in place of the duration stands their size.
FLAG_STACK = 32
PIECE = struct.Struct("<QIHBBHHI40s")  # in place of the duration: how many bytes of the payload count
PAYLOAD_BYTES = 40
MORE_WORDS = struct.Struct("<5Q")


class Record(NamedTuple):
    """One crossing between guest and hypervisor."""

    time_ns: int  # CLOCK_MONOTONIC of the host at entry into the hypervisor
    duration_ns: int  # entry to exit; 0 with FLAG_UNTIMED
    point: int  # TracePoint.id
    kind: int
    backend: int
    vcpu: int
    flags: int
    sequence: int
    rip: int  # guest-virtual
    a0: int
    a1: int
    a2: int
    a3: int


def decode(block: bytes) -> Iterator[Record]:
    """The records of a block (StreamTraceResponse.records). Raises struct.error when it is not a whole number of records."""
    for fields in RECORD.iter_unpack(block):
        yield Record(*fields)
