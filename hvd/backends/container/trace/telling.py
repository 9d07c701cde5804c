"""From a system call, as a source of events saw it, to records."""

from __future__ import annotations

from collections.abc import Sequence

from hvd.backends.container.trace.points import BY_KEY, COMPATIBLE, FIRST_ARGUMENT, unnamed
from hvd.trace.points import Kind
from hvd.trace.writer import RecordWriter

_MASK_32 = 0xFFFFFFFF


def tell(
    writer: RecordWriter,
    key: int,
    number: int,
    time_ns: int,
    duration_ns: int,
    rip: int,
    result: int,
    thread: int,
    process: int,
    arguments: Sequence[int],
    texts: Sequence[bytes | None] = (),
) -> None:
    """thread, process: as the container numbers them; 0 = not known.
    arguments: six; texts: what its paths point to, or its socket's address; None = not known."""
    call = BY_KEY.get(key)
    who = process << 32 | thread  # in one argument: whoever reads it takes them apart (hvctl/sdk/trace.py)
    if call is None:
        point = unnamed(key, number)
        writer.add(point.id, point.kind, time_ns, duration_ns, rip, (result, who, number, arguments[0]), {})
        return
    own = arguments[: call.arguments]
    words = [result, who, *(own if not key & COMPATIBLE else (word & _MASK_32 for word in own))]
    words += [0] * (4 - len(words))
    positions = call.paths if call.address is None else (call.address,)
    found = {FIRST_ARGUMENT + at: text for at, text in zip(positions, texts, strict=False) if text is not None}
    writer.add(call.point, Kind.SYSTEM_CALL, time_ns, None if call.endless else duration_ns, rip, words, found)
