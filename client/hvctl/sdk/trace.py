"""From blocks of raw trace records to events with names and arguments.

    stream = client.stream_trace(names=["guests/web-1"])
    decoder = TraceDecoder()
    for block in stream:
        for event in decoder.decode(block):
            print(event)

A block holds up to 1000 records. An event is cheap until its arguments are asked for, so filter by point or kind first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hvapi import record
from hvapi.v1 import trace_pb2

from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id
from hvctl.sdk.trace_formats import FORMATS, TEXTS, duration_text, quoted

RESULT = "result"
# Of a container's record: the lower half is the thread, the upper one its process.
_THREAD = "tid"
_MASK_32 = (1 << 32) - 1
# Points of the work that devices do: disk-read, ..., nic-receive.
_WORK = ("disk-", "nic-")
# What datetime can tell: a hostile guest may record any time.
_LAST_SECOND = 253402300799.0
_PLACEHOLDERS = ("-", "")


class Argument(NamedTuple):
    """One argument of an event: its name, its 64 bits, and how people read them."""

    name: str
    value: int
    text: str


def _plain(text: bytes) -> str:
    return text.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    kind: str
    slots: tuple[tuple[int, str, Callable[[int], str]], ...]  # position, name, format; without the result
    result: tuple[int, Callable[[int], str]] | None
    texts: Mapping[int, Callable[[bytes], str]] = field(default_factory=dict)  # position -> format of its text, if not quoted


def _point(point: trace_pb2.TracePoint) -> _Point:
    slots: list[tuple[int, str, Callable[[int], str]]] = []
    result: tuple[int, Callable[[int], str]] | None = None
    for position, argument in enumerate(point.arguments):
        form = FORMATS.get(argument.format, FORMATS["hex"])
        if argument.name == RESULT:
            result = (position, form)
        elif argument.name not in _PLACEHOLDERS:
            slots.append((position, argument.name, form))
    texts = {position: TEXTS[argument.format] for position, argument in enumerate(point.arguments) if argument.format in TEXTS}
    return _Point(point.name, point.kind, tuple(slots), result, texts)


_LOST = _Point("lost", "lost", ((0, "records", str),), None)


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One crossing between a guest and the hypervisor, or (name "lost") a gap of so many of them."""

    guest: str  # resource name
    record: record.Record
    epoch_ns: int  # wall-clock time at monotonic time 0
    _point: _Point
    more: tuple[int, ...] = ()  # arguments that did not fit into the record
    texts: Mapping[int, bytes] = field(default_factory=dict)  # position of an argument -> the text it points to
    stack: tuple[int, ...] = ()  # return addresses, the innermost first; the instruction that crossed is not among them
    symbols: Mapping[int, str] = field(default_factory=dict)  # the guest's, as far as they were told

    @property
    def name(self) -> str:
        """Of the trace point: "port-out", "hypercall.log"."""
        return self._point.name

    @property
    def kind(self) -> str:
        """Of the trace point: "port-io", "hypercall"."""
        return self._point.kind

    @property
    def time_ns(self) -> int:
        """CLOCK_MONOTONIC of the daemon's host at entry into the hypervisor; 0 for a gap."""
        return self.record.time_ns

    @property
    def wall_time(self) -> datetime:
        """Time of day, UTC, at entry into the hypervisor."""
        return datetime.fromtimestamp(min((self.epoch_ns + self.record.time_ns) / 1e9, _LAST_SECOND), UTC)

    @property
    def duration_ns(self) -> int | None:
        """From entry to exit; None when this reason is not timed."""
        return None if self.record.flags & record.FLAG_UNTIMED else self.record.duration_ns

    @property
    def rip(self) -> int:
        """Guest-virtual address of the instruction."""
        return self.record.rip

    @property
    def symbol(self) -> str:
        """Of that address: "schedule+0x1f"; empty when it is not known, or symbols were not asked for."""
        return self.symbols.get(self.record.rip, "")

    @property
    def pid(self) -> int | None:
        """Of a container's: the process, as the container numbers it."""
        for position, name, _ in self._point.slots:
            if name == _THREAD and position < 4:
                return self.record[-4:][position] >> 32 or None
        return None

    @property
    def work(self) -> str:
        """Of a device's work, which is no crossing: what did it, "disk 0" or "nic 1". Otherwise empty."""
        if not self._point.name.startswith(_WORK):
            return ""
        return f"{self._point.name.partition('-')[0]} {self.record.a0}"

    @property
    def user(self) -> bool:
        """It came from guest user mode."""
        return bool(self.record.flags & record.FLAG_USER)

    @property
    def lost(self) -> int:
        """Records that are missing here; 0 for an ordinary event."""
        return self.record.a0 if self._point.kind == "lost" else 0

    @property
    def arguments(self) -> tuple[Argument, ...]:
        values = self.record[-4:] + self.more
        return tuple(
            Argument(name, value, self._argument_text(position, form, value))
            for position, name, form in self._point.slots
            if position < len(values)
            for value in (values[position] & _MASK_32 if name == _THREAD else values[position],)
        )

    def _argument_text(self, position: int, form: Callable[[int], str], value: int) -> str:
        text = self.texts.get(position)
        return form(value) if text is None else self._point.texts.get(position, quoted)(text)

    @property
    def result(self) -> Argument | None:
        """What the hypervisor answered, where the point has an answer."""
        if self._point.result is None:
            return None
        position, form = self._point.result
        value = self.record[-4:][position]
        return Argument(RESULT, value, form(value))

    def __str__(self) -> str:
        return self.line(f"{self.time_ns / 1e9:.6f}")

    def line(self, time: str) -> str:
        """As strace would print it, with this for the time."""
        guest = guest_id(self.guest)
        if self.lost:
            return f"{time} {guest} --- {self.lost} records lost: they came faster than they could be sent ---"
        words = [f"{time} {guest} {self.name}({', '.join(f'{a.name}={a.text}' for a in self.arguments)})"]
        if (result := self.result) is not None:
            words.append(f"= {result.text}")
        if self.rip:  # 0: whoever saw it does not know
            words.append(f"rip={self.rip:#x}" + (f" ({self.symbol})" if self.symbol else ""))
        if self.user:
            words.append("user")
        if (duration := self.duration_ns) is not None:
            words.append(f"<{duration_text(duration)}>")
        return " ".join(words)

    @property
    def stack_lines(self) -> list[str]:
        """The call stack, a line for each return address, the innermost first."""
        return [f"{address:#x} {self.symbols.get(address, '')}".rstrip() for address in self.stack]

    def document(self) -> dict[str, Any]:
        """For JSON: values as numbers."""
        document: dict[str, Any] = {
            "time_ns": self.time_ns,
            "wall_time": self.wall_time.isoformat().replace("+00:00", "Z"),
            "guest": self.guest,
            "point": self.name,
            "kind": self.kind,
            "arguments": {argument.name: argument.value for argument in self.arguments},
        }
        if self.texts:
            document["texts"] = {
                name: self._point.texts.get(position, _plain)(self.texts[position])
                for position, name, _ in self._point.slots
                if position in self.texts
            }
        if (result := self.result) is not None:
            document["result"] = result.value
        if self.lost:
            document["lost"] = self.lost
            return document
        if self.symbol:
            document["symbol"] = self.symbol
        if self.stack:
            document["stack"] = [{"address": address, "symbol": self.symbols.get(address, "")} for address in self.stack]
        if (pid := self.pid) is not None:
            document["pid"] = pid
        return document | {
            "duration_ns": self.duration_ns,
            "rip": self.rip,
            "vcpu": self.record.vcpu,
            "user": self.user,
            "sequence": self.record.sequence,
        }


class TraceDecoder:
    """Decodes the messages of StreamTrace in their order; the first one brings the header that names everything."""

    def __init__(self, header: trace_pb2.TraceHeader | None = None) -> None:
        self._guests: list[str] = []
        self._points: dict[int, _Point] = {}
        self._epoch_ns = 0
        self._last_ns: dict[str, int] = {}
        self._symbols: dict[int, dict[int, str]] = {}
        if header is not None:
            self._learn(header)

    def _learn(self, header: trace_pb2.TraceHeader) -> None:
        self._guests = list(header.guests)
        self._points = {point.id: _point(point) for point in header.points}
        self._epoch_ns = header.monotonic_epoch.ToNanoseconds()

    def decode(self, block: trace_pb2.StreamTraceResponse) -> Iterator[TraceEvent]:
        """The block's events; what was lost before them comes first. Raises HvctlError TRACE_BLOCK_INVALID for what
        is no block."""
        if block.HasField("header"):
            self._learn(block.header)
        if block.symbols:
            named = ((address, name) for address, name in block.symbols.items() if name.isprintable())
            self._symbols.setdefault(block.guest, {}).update(named)
        if not (block.records or block.lost):
            return
        try:
            guest = self._guests[block.guest]
        except IndexError:
            raise _invalid(f"guest {block.guest} is not in the header, which names {len(self._guests)}") from None
        if len(block.records) % record.RECORD_BYTES:
            raise _invalid(f"{len(block.records)} bytes are no whole number of records")
        if block.lost:
            time_ns = self._last_ns.get(guest, 0)
            yield TraceEvent(
                guest,
                record.Record(time_ns, 0, 0, 0, 0, 0, record.FLAG_UNTIMED, 0, 0, block.lost, 0, 0, 0),
                self._epoch_ns,
                _LOST,
            )
        points, epoch, symbols = self._points, self._epoch_ns, self._symbols.setdefault(block.guest, {})
        event: TraceEvent | None = None
        for at, item in enumerate(record.decode(block.records)):
            if item.flags & record.FLAG_MORE:
                # Without the record that it belongs to, which was lost, it says nothing.
                event = event and _continued(event, item, block.records[(at + 1) * record.RECORD_BYTES - record.PAYLOAD_BYTES :])
                continue
            if event is not None:
                yield event
            self._last_ns[guest] = item.time_ns
            event = TraceEvent(guest, item, epoch, points.get(item.point) or self._unknown(item.point), symbols=symbols)
        if event is not None:
            yield event

    def decode_all(self, blocks: Iterable[trace_pb2.StreamTraceResponse]) -> Iterator[TraceEvent]:
        """The events of a whole stream (of the synchronous client)."""
        for block in blocks:
            yield from self.decode(block)

    def _unknown(self, number: int) -> _Point:
        point = _Point(f"point-{number}", "unknown", tuple((i, f"a{i}", FORMATS["hex"]) for i in range(4)), None)
        self._points[number] = point
        return point


def _continued(event: TraceEvent, item: record.Record, payload: bytes) -> TraceEvent:
    """item: a record.PIECE of the event."""
    if item.flags & record.FLAG_TEXT:
        text = event.texts.get(item.vcpu, b"") + payload[: min(item.duration_ns, record.PAYLOAD_BYTES)]
        return replace(event, texts={**event.texts, item.vcpu: text})
    if item.flags & record.FLAG_STACK:
        addresses = record.MORE_WORDS.unpack_from(payload)
        return replace(event, stack=event.stack + addresses[: min(item.duration_ns, record.PAYLOAD_BYTES) // 8])
    return replace(event, more=event.more + record.MORE_WORDS.unpack_from(payload))


def _invalid(problem: str) -> HvctlError:
    return HvctlError.local("TRACE_BLOCK_INVALID", problem=problem)
