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
