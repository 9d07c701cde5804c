"""Pages of the kernel's ring buffer, as trace_pipe_raw gives them (Documentation/trace/ring-buffer-map.rst, include/linux/ring_buffer.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PAGE_BYTES = 4096
_HEADER = 16  # time stamp, and how many bytes are used
_USED = 0xFFFFF
# Types of an event, its low five bits; up to 28 it is the length in words.
_DATA, _PADDING, _EXTEND = 28, 29, 30
_WORD = struct.Struct("<I").unpack_from


def events(page: bytes) -> Iterator[tuple[int, int]]:
    """Time stamp and where the event's data begin, of each event in the page. Raises struct.error for what is no page."""
    time, used = struct.unpack_from("<QQ", page)
    at, end = _HEADER, min(_HEADER + (used & _USED), len(page))
    while at < end:
        word = _WORD(page, at)[0]
        kind, delta = word & 31, word >> 5
        if kind <= _DATA:
            time += delta
            if kind == 0:
                yield time, at + 8
                at += 4 + _WORD(page, at + 4)[0]
            else:
                yield time, at + 4
                at += 4 + 4 * kind
        elif kind == _PADDING:
            if delta == 0:
                return
            at += 4 + _WORD(page, at + 4)[0]
        else:
            more = delta + (_WORD(page, at + 4)[0] << 27)
            # An absolute stamp has 59 bits; what is above them has not changed since.
            time = time + more if kind == _EXTEND else time >> 59 << 59 | more
            at += 8
