"""A trace in Perfetto's form (protos/perfetto/trace/trace.proto), for https://ui.perfetto.dev and its trace processor.

A guest is a process, each of its virtual CPUs (of a container: each thread) a track, each of its devices another. Crossings are slices with
their arguments; what is not timed is an instant. A flow leads from a crossing to the work that a device did for it. Only the few fields that
this needs are written, by hand: numbers are varints, fixed numbers or bytes (protobuf's "Encoding").
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hvctl.sdk.names import guest_id
from hvctl.sdk.trace import TraceEvent

# Fields of Trace, TracePacket, TrackDescriptor, ProcessDescriptor, ThreadDescriptor, TrackEvent, DebugAnnotation, InternedData.
_PACKET = 1
_TIMESTAMP, _SEQUENCE, _INTERNED, _TRACK_EVENT, _SEQUENCE_FLAGS, _CLOCK, _DESCRIPTOR = 8, 10, 12, 11, 13, 58, 60
_UUID, _NAME, _PROCESS, _THREAD, _PARENT = 1, 2, 3, 4, 5
_PROCESS_PID, _PROCESS_NAME = 1, 6
_THREAD_PID, _THREAD_TID, _THREAD_NAME = 1, 2, 5
_CATEGORY_IIDS, _ANNOTATIONS, _TYPE, _NAME_IID, _TRACK, _FLOWS = 3, 4, 9, 10, 11, 47
_ANNOTATION_NAME_IID, _UINT, _STRING = 1, 3, 6
_CATEGORIES, _EVENT_NAMES, _ANNOTATION_NAMES = 1, 2, 3
_IID, _INTERNED_NAME = 1, 2
_SLICE_BEGIN, _SLICE_END, _INSTANT = 1, 2, 3
_CLEARED, _NEEDS = 1, 2  # TracePacket.SequenceFlags
_CLOCK_MONOTONIC = 3  # BuiltinClock
_OUR_SEQUENCE = 1
_MASK = (1 << 64) - 1
# Events of a track that are put in order before they are written; nearly all that a crossing encloses end before it does.
WINDOW = 4096
# Work of devices, and crossings, among which what belongs together is looked for.
MOST_RECENT = 64


def _varint(value: int) -> bytes:
    value &= _MASK
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _fixed(number: int, value: int) -> bytes:
    return _varint(number << 3 | 1) + (value & _MASK).to_bytes(8, "little")


def _bytes(number: int, value: bytes | str) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
    return _varint(number << 3 | 2) + _varint(len(data)) + data


@dataclass(slots=True, order=True)
class _Slice:
    """Ordered so that what encloses another comes before it."""

    start_ns: int
    minus_end_ns: int
    number: int
    event: TraceEvent = field(compare=False)
    flows: list[int] = field(compare=False, default_factory=list)
    written: bool = field(compare=False, default=False)

    def encloses(self, other: _Slice) -> bool:
        return self.start_ns <= other.start_ns and self.minus_end_ns <= other.minus_end_ns

    def flow_from(self, crossing: _Slice) -> None:
        if not (self.written or crossing.written):
            crossing.flows.append(self.number)
            self.flows.append(self.number)


@dataclass(slots=True)
class _Track:
    uuid: int
    waiting: list[_Slice] = field(default_factory=list)
    open: list[int] = field(default_factory=list)  # ends of the slices that have begun
    last_ns: int = 0


class PerfettoWriter:
    """add() events in the order of the stream, then close()."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._guests: dict[str, int] = {}  # -> pid
        self._tracks: dict[tuple[str, str], _Track] = {}
        self._names: dict[tuple[int, str], int] = {}
        self._fresh: list[bytes] = []
        self._work: dict[str, deque[_Slice]] = {}
        self._crossings: dict[str, deque[_Slice]] = {}
        self._number = 0
        self._packet(_number(_SEQUENCE_FLAGS, _CLEARED))

    def add(self, event: TraceEvent) -> None:
        self._number += 1
        start = event.time_ns
        piece = _Slice(start, -(start + (event.duration_ns or 0)), self._number, event)
        if event.lost:
            self._put(self._cpu(event, "lost"), piece)
        elif event.work:
            self._put(self._track(event.guest, f"device {event.work}", 0), piece)
            # In the order of the stream what a crossing encloses comes before it, in the order of time behind it.
            asked = next((each for each in reversed(self._recent(event.guest, self._crossings)) if each.encloses(piece)), None)
            if asked is not None:
                piece.flow_from(asked)
            else:
                self._recent(event.guest, self._work).append(piece)
        else:
            if event.duration_ns is not None:
                work = self._recent(event.guest, self._work)
                for done in list(work):
                    if piece.encloses(done):
                        done.flow_from(piece)
                        work.remove(done)
                self._recent(event.guest, self._crossings).append(piece)
            self._put(self._cpu(event, ""), piece)

    @staticmethod
    def _recent(guest: str, slices: dict[str, deque[_Slice]]) -> deque[_Slice]:
        return slices.setdefault(guest, deque(maxlen=MOST_RECENT))

    def close(self) -> None:
        for track in self._tracks.values():
            self._drain(track, 0)
            for end in reversed(track.open):
                self._event(track, max(end, track.last_ns), _number(_TYPE, _SLICE_END))
            track.open.clear()

    def _put(self, track: _Track, piece: _Slice) -> None:
        heapq.heappush(track.waiting, piece)
        if len(track.waiting) > WINDOW:
            self._drain(track, WINDOW // 2)

    def _drain(self, track: _Track, keep: int) -> None:
        while len(track.waiting) > keep:
            self._emit(track, heapq.heappop(track.waiting))

    def _emit(self, track: _Track, piece: _Slice) -> None:
        # Slices of a track must nest: what came too late, or overlaps, is moved to where it can stand; its arguments say the truth.
        event, piece.written = piece.event, True
        start, end = max(piece.start_ns, track.last_ns), -piece.minus_end_ns
        while track.open and track.open[-1] <= start:
            self._event(track, track.open.pop(), _number(_TYPE, _SLICE_END))
        timed = event.duration_ns is not None and not event.lost
        body = [_number(_TYPE, _SLICE_BEGIN if timed else _INSTANT)]
        body.append(_number(_NAME_IID, self._iid(_EVENT_NAMES, event.name)))
        body.append(_number(_CATEGORY_IIDS, self._iid(_CATEGORIES, event.kind)))
        body += [self._annotation(name, value) for name, value in _arguments(event)]
        body += [_fixed(_FLOWS, flow) for flow in piece.flows]
        self._event(track, start, b"".join(body))
        if timed:
            end = max(start, end)
            track.open.append(min(end, track.open[-1]) if track.open else end)

    def _cpu(self, event: TraceEvent, what: str) -> _Track:
        for argument in event.arguments[:2] if event.kind == "system-call" else ():
            if argument.name == "tid":
                return self._track(event.guest, f"thread {argument.value}", argument.value)
        return self._track(event.guest, what or f"vcpu {event.record.vcpu}", event.record.vcpu + 1)

    def _track(self, guest: str, name: str, tid: int) -> _Track:
        """tid: of a thread; 0 = it is none."""
        track = self._tracks.get((guest, name))
        if track is None:
            pid = self._guests.get(guest)
            if pid is None:
                pid = self._guests[guest] = len(self._guests) + 1
                process = _number(_PROCESS_PID, pid) + _bytes(_PROCESS_NAME, guest_id(guest))
                self._packet(_bytes(_DESCRIPTOR, _number(_UUID, pid) + _bytes(_PROCESS, process)))
            track = self._tracks[guest, name] = _Track((1 << 32) + len(self._tracks))
            body = _number(_UUID, track.uuid) + _number(_PARENT, pid) + _bytes(_NAME, name)
            if tid:
                # Threads of different guests have different numbers, as the trace processor wants it.
                thread = _number(_THREAD_PID, pid) + _number(_THREAD_TID, pid << 22 | tid & 0x3FFFFF) + _bytes(_THREAD_NAME, name)
                body = _number(_UUID, track.uuid) + _number(_PARENT, pid) + _bytes(_THREAD, thread)
            self._packet(_bytes(_DESCRIPTOR, body))
        return track

    def _iid(self, what: int, name: str) -> int:
        iid = self._names.get((what, name))
        if iid is None:
            iid = self._names[what, name] = len(self._names) + 1
            self._fresh.append(_bytes(what, _number(_IID, iid) + _bytes(_INTERNED_NAME, name)))
        return iid

    def _annotation(self, name: str, value: int | str) -> bytes:
        content = _bytes(_STRING, value) if isinstance(value, str) else _number(_UINT, value)
        return _bytes(_ANNOTATIONS, _number(_ANNOTATION_NAME_IID, self._iid(_ANNOTATION_NAMES, name)) + content)

    def _event(self, track: _Track, time_ns: int, body: bytes) -> None:
        track.last_ns = max(track.last_ns, time_ns)
        packet = _number(_TIMESTAMP, time_ns) + _number(_CLOCK, _CLOCK_MONOTONIC) + _number(_SEQUENCE_FLAGS, _NEEDS)
        if self._fresh:
            packet += _bytes(_INTERNED, b"".join(self._fresh))
            self._fresh.clear()
        self._packet(packet + _bytes(_TRACK_EVENT, _number(_TRACK, track.uuid) + body))

    def _packet(self, body: bytes) -> None:
        self._write(_bytes(_PACKET, _number(_SEQUENCE, _OUR_SEQUENCE) + body))


def _arguments(event: TraceEvent) -> Iterable[tuple[str, int | str]]:
    if event.lost:
        yield "records", event.lost
        return
    for argument in event.arguments:
        yield argument.name, argument.text
    if (result := event.result) is not None:
        yield "result", result.text
    if event.rip:
        yield "rip", f"{event.rip:#x}"
    if event.symbol:
        yield "symbol", event.symbol
    if event.user:
        yield "user", "true"
    if event.stack:
        yield "stack", "\n".join(event.stack_lines)
