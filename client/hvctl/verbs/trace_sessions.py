"""trace start, list, show, stop, delete, follow, read: sessions that the daemon writes to files, and trace files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from hvctl import failures
from hvctl.completing import complete_traces
from hvctl.output import Column, document, is_document, print_document, print_items
from hvctl.settings import DOCUMENTS, Settings, say, verb
from hvctl.trace_options import guests_argument, selecting, selection
from hvctl.trace_output import FORMATS, Show, sink_for
from hvctl.values import SIZE, size_text
from hvctl.verbs.trace import file_option

if TYPE_CHECKING:
    from hvapi.v1 import trace_pb2

trace_argument = click.argument("trace", shell_complete=complete_traces)
traces_argument = click.argument("trace", nargs=-1, required=True, shell_complete=complete_traces)


def trace_name(name: str) -> str:
    return name if name.startswith("traces/") else f"traces/{name}"


def trace_id(name: str) -> str:
    return name.removeprefix("traces/")


@verb(formats=DOCUMENTS)
@guests_argument
@click.option("--name", default="", metavar="NAME", help="Of the session; chosen when left out.")
@selecting
@click.option("--max-bytes", type=SIZE, metavar="SIZE", help="Its files together are no larger; default 64M.")
@click.option("--files", type=click.IntRange(2, 100), metavar="N", help="So many files, of which the oldest goes; default 4.")
def start(settings: Settings, guest: tuple[str, ...], name: str, max_bytes: int | None, files: int | None, **rest: Any) -> None:
    """Starts a session: the daemon writes the crossings of these guests (or of all that run) to files, until `trace stop`.

    Any number of sessions go on at once, each with its own choice and its own count of lost records.
    """
    session = settings.client.start_trace(trace_id=name, what=selection(rest).request(guest), max_bytes=max_bytes or 0, files=files or 0)
    if is_document(settings.output):
        print_document(settings.output, document(session))
    else:
        click.echo(session.name if settings.output == "name" else trace_id(session.name))


@verb(formats=DOCUMENTS)
def list_traces(settings: Settings) -> None:
    """Lists the sessions, running and stopped."""
    response = settings.client.list_traces()
    print_items(settings, response, response.traces, COLUMNS, lambda trace: trace.name)


@verb(formats=("table", "json", "jsonl", "yaml"))
@trace_argument
def show(settings: Settings, trace: str) -> None:
    """Shows a session: what it traces, what it has written and lost of each guest, and why it ended."""
    session = settings.client.get_trace(name=trace_name(trace))
    if is_document(settings.output):
        print_document(settings.output, document(session))
        return
    for title, value in _facts(session):
        click.echo(f"{title:<12}{value}")


@verb(formats=DOCUMENTS)
@traces_argument
def stop(settings: Settings, trace: tuple[str, ...]) -> None:
    """Stops sessions; their files stay."""
    _each(settings, trace, lambda name: settings.client.stop_trace(name=name))


@verb(formats=DOCUMENTS)
@traces_argument
@click.option("--allow-missing", is_flag=True, help="One that does not exist is no error.")
def delete(settings: Settings, trace: tuple[str, ...], allow_missing: bool) -> None:
    """Stops sessions and deletes their files."""
    for name in trace:
        settings.client.delete_trace(name=trace_name(name), allow_missing=allow_missing)
        say(f"{trace_id(name)} deleted")


@verb(formats=FORMATS)
@trace_argument
@click.option("--no-follow", is_flag=True, help="Only what its files hold now.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@file_option
def follow(settings: Settings, trace: str, no_follow: bool, count: int | None, path: str | None) -> int:
    """Shows what a session has written, and goes on with what it writes until it is stopped or Ctrl-C."""
    from hvapi.v1 import trace_pb2

    # Of one that is over, nothing is held back for what may come: all of it is ordered.
    running = settings.client.get_trace(name=trace_name(trace)).state == trace_pb2.TraceSession.RUNNING
    shown = Show(sink_for(settings, path), follow=running and not no_follow, count=count)
    with settings.client.read_trace(name=trace_name(trace), follow=not no_follow, timeout=settings.timeout) as responses:
        return shown_all((block for response in responses for block in response.blocks), shown)


@verb(formats=FORMATS)
@click.argument("file", type=click.File("rb"))
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@file_option
def read(settings: Settings, file: IO[bytes], count: int | None, path: str | None) -> int:
    """Shows a trace file, which -o records has written, or the daemon (- = stdin)."""
    from hvctl.sdk.trace_files import read_trace_file

    return shown_all(read_trace_file(file, file.name), Show(sink_for(settings, path), follow=False, count=count))


def shown_all(blocks: Iterator[trace_pb2.StreamTraceResponse], shown: Show) -> int:
    """Even of a stream that ends wrongly, what came before is shown."""
    try:
        for block in blocks:
            shown.take(block)
            if shown.done:
                break
    except KeyboardInterrupt:
        return failures.INTERRUPTED
    finally:
        shown.end()
    return failures.OK


def _each(settings: Settings, names: tuple[str, ...], work: Callable[[str], trace_pb2.TraceSession]) -> None:
    from hvapi.v1 import trace_pb2

    sessions = [work(trace_name(name)) for name in names]
    print_items(settings, trace_pb2.ListTracesResponse(traces=sessions), sessions, COLUMNS, lambda session: session.name)


def _choice(what: trace_pb2.StreamTraceRequest) -> str:
    words = [*what.kinds, *what.reasons]
    words += [f"{each.first:#x}-{each.last:#x}" for each in what.addresses]
    words += [f"pid {pid}" for pid in what.pids]
    if what.HasField("min_duration"):
        words.append(f">={what.min_duration.ToNanoseconds()}ns")
    return ",".join(words) or "all"


def _state(session: trace_pb2.TraceSession) -> str:
    return str(session.State.Name(session.state))


def _guests(session: trace_pb2.TraceSession) -> str:
    return ",".join(guest.name.removeprefix("guests/") for guest in session.guests)


COLUMNS: list[Column[trace_pb2.TraceSession]] = [
    Column("NAME", lambda s: trace_id(s.name)),
    Column("STATE", _state),
    Column("GUESTS", _guests),
    Column("WHAT", lambda s: _choice(s.what) + (" with stacks" if s.what.stacks else "")),
    Column("RECORDS", lambda s: str(s.records), right=True),
    Column("LOST", lambda s: str(s.lost), right=True),
    Column("SIZE", lambda s: size_text(s.bytes), right=True),
    Column("SINCE", lambda s: s.create_time.ToJsonString(), wide=True),
    Column("MESSAGE", lambda s: s.status_message or "-"),
]


def _facts(session: trace_pb2.TraceSession) -> Iterator[tuple[str, str]]:
    yield "name", trace_id(session.name)
    yield "state", _state(session) + (f": {session.status_message}" if session.status_message else "")
    yield "what", _choice(session.what) + (" with stacks" if session.what.stacks else "")
    yield "began", session.create_time.ToJsonString()
    if session.HasField("end_time"):
        yield "ended", session.end_time.ToJsonString()
    yield "files", f"{size_text(session.bytes)} of {size_text(session.max_bytes)} in {session.files} files"
    for guest in session.guests:
        yield guest.name.removeprefix("guests/"), f"{guest.records} records, {guest.lost} lost"
