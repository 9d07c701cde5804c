"""Where the events of a trace go: lines as strace prints them, JSON lines, a file for Perfetto, the records as they came, or a summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Protocol

import click

from hvctl.output import print_document
from hvctl.sdk.errors import HvctlError
from hvctl.settings import Settings, say

if TYPE_CHECKING:
    from hvapi.v1 import trace_pb2

    from hvctl.sdk.trace import TraceEvent
    from hvctl.sdk.trace_perfetto import PerfettoWriter
    from hvctl.sdk.trace_summary import TraceSummary

FORMATS = ("table", "text", "json", "jsonl", "yaml", "perfetto", "records")
BINARY = ("perfetto", "records")


class Sink(Protocol):
    def block(self, block: trace_pb2.StreamTraceResponse) -> None:
        """As it came."""

    def events(self, events: Iterable[TraceEvent]) -> None:
        """In the order in which they are shown."""

    def close(self) -> None: ...


class Lines:
    """Text or documents, on stdout or in a file."""

    def __init__(self, form: str, file: IO[bytes] | None) -> None:
        self._form = "jsonl" if form == "json" else form
        self._file = file
        self._first_ns: int | None = None

    def block(self, block: trace_pb2.StreamTraceResponse) -> None:
        pass

    def events(self, events: Iterable[TraceEvent]) -> None:
        lines: list[str] = []
        for event in events:
            if self._form == "yaml":
                print_document(self._form, event.document())
                continue
            if self._form == "jsonl":
                lines.append(_json(event))
                continue
            if self._first_ns is None:
                self._first_ns = event.time_ns
            lines.append(event.line(f"{(event.time_ns - self._first_ns) / 1e9:.6f}"))
            lines += [f"    {line}" for line in event.stack_lines]
        if not lines:
            return
        text = "\n".join(lines)
        if self._file is not None:
            self._file.write(text.encode("utf-8", "replace") + b"\n")
        else:
            click.echo(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()


def _json(event: TraceEvent) -> str:
    import json

    return json.dumps(event.document(), ensure_ascii=False, separators=(",", ":"))


class Perfetto:
    def __init__(self, file: IO[bytes]) -> None:
        from hvctl.sdk.trace_perfetto import PerfettoWriter

        self._file = file
        self._writer: PerfettoWriter = PerfettoWriter(file.write)

    def block(self, block: trace_pb2.StreamTraceResponse) -> None:
        pass

    def events(self, events: Iterable[TraceEvent]) -> None:
        for event in events:
            self._writer.add(event)

    def close(self) -> None:
        self._writer.close()
        self._file.flush()


class Records:
    """A trace file (hvctl.sdk.trace_files)."""

    def __init__(self, file: IO[bytes]) -> None:
        from hvapi.trace_file import MAGIC, framed

        self._file, self._framed = file, framed
        file.write(MAGIC)

    def block(self, block: trace_pb2.StreamTraceResponse) -> None:
        self._file.write(self._framed(block))

    def events(self, events: Iterable[TraceEvent]) -> None:
        for _ in events:
            pass

    def close(self) -> None:
        self._file.flush()


class Summing:
    """Shows nothing."""

    def __init__(self, summary: TraceSummary) -> None:
        self._summary = summary

    def block(self, block: trace_pb2.StreamTraceResponse) -> None:
        pass

    def events(self, events: Iterable[TraceEvent]) -> None:
        for event in events:
            self._summary.add(event)

    def close(self) -> None:
        pass


def sink_for(settings: Settings, path: str | None) -> Sink:
    """By -o and --output-file ("-" = stdout). Raises HvctlError FILE_UNWRITABLE, click.UsageError."""
    form = settings.output
    if path is None or path == "-":
        if form not in BINARY:
            return Lines(form, None)
        if sys.stdout.isatty():
            raise click.UsageError(f"-o {form} is not for a terminal: give --output-file FILE, or redirect it")
        file: IO[bytes] = sys.stdout.buffer
    else:
        try:
            file = open(path, "wb")  # noqa: SIM115  until the end
        except OSError as error:
            raise HvctlError.local("FILE_UNWRITABLE", path=path, problem=error.strerror or error) from error
    if form == "perfetto":
        return Perfetto(file)
    return Records(file) if form == "records" else Lines(form, file)


class Show:
    """Takes a stream's blocks, decodes and orders their events, and hands them to a sink."""

    def __init__(self, sink: Sink, *, follow: bool, count: int | None = None) -> None:
        """follow: show events as they come; otherwise as many as possible are ordered first. count: of events, the first in the order of time;
        then done is True."""
        from hvctl.sdk.trace import TraceDecoder
        from hvctl.sdk.trace_merge import HOLD_NS, TraceMerger

        self._sink = sink
        self._decoder = TraceDecoder()
        self._count = count
        self._merger = TraceMerger(HOLD_NS if follow or count else None)
        self._guests = 0
        self.on_header: Callable[[], None] = lambda: None
        self.shown = self.lost = 0

    @property
    def done(self) -> bool:
        return self.shown == self._count

    def take(self, block: trace_pb2.StreamTraceResponse) -> None:
        """Raises HvctlError TRACE_BLOCK_INVALID."""
        if block.HasField("header"):
            self._guests = len(block.header.guests)
            for warning in block.header.warnings:
                say(warning)
            # Records from here on; whoever waits to start something can do it now.
            say(f"tracing {', '.join(name.removeprefix('guests/') for name in block.header.guests)}")
        self._sink.block(block)
        events = self._decoder.decode(block)
        if self._guests > 1:
            self._merger.add(events)
            events = self._merger.ready(block.settled_ns)
        self._sink.events(self._counted(events))

    def _counted(self, events: Iterable[TraceEvent]) -> list[TraceEvent]:
        counted: list[TraceEvent] = []
        for event in events:
            if self.done:
                break
            self.lost += event.lost
            self.shown += not event.lost
            counted.append(event)
        return counted

    def end(self) -> None:
        """The rest of it."""
        self._sink.events(self._counted(self._merger.rest()))
        self._sink.close()
        say(f"{self.shown} records" + (f", {self.lost} lost" if self.lost else ""))
