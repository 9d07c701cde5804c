"""trace: the crossings as they happen, and what can be traced."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import click

from hvctl import failures
from hvctl.output import Column, print_items
from hvctl.settings import Settings, verb
from hvctl.trace_options import Selection, guests_argument, selecting, selection
from hvctl.trace_output import FORMATS, Show, Sink, sink_for
from hvctl.values import SECONDS

if TYPE_CHECKING:
    from hvapi.v1 import trace_pb2

# Without -f, --for and --count: a look at what goes on.
GLIMPSE_SECONDS = 1.0

file_option = click.option("--output-file", "-O", "path", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE",
                           help="Write it there, in the form of -o.")  # fmt: skip


@verb(formats=FORMATS)
@guests_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the guests end or Ctrl-C.")
@selecting
@click.option("--for", "seconds", type=SECONDS, metavar="S", help="End after so long: 5s, 500ms.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@file_option
def trace(settings: Settings, guest: tuple[str, ...], follow: bool, seconds: float | None, count: int | None, path: str | None, **rest: Any) -> int:
    """Shows every crossing between guests and the hypervisor, one line each, as strace does for system calls:

    \b
        seconds-since-the-first GUEST point(arguments) = result rip=address <duration>

    Without -f, --for or --count it looks for one second. The lines of several guests are in the order of time; with -f,
    a crossing of more than 0.2 s comes when it ends. Records that were lost are a line too. -o jsonl gives one JSON object
    per line, -o perfetto a file for https://ui.perfetto.dev, -o records one for `trace read` and `trace summary --file`.
    """
    if not guest:
        raise click.UsageError("which guests? `hvctl list` shows them; or `trace start`, `trace points`, ...")
    if not follow and seconds is None and count is None:
        seconds = GLIMPSE_SECONDS
    show = stream(settings, sink_for(settings, path), selection(rest), guest, follow, seconds, count)
    return failures.INTERRUPTED if show is None else failures.OK


def stream(
    settings: Settings, sink: Sink, what: Selection, guests: tuple[str, ...], follow: bool, seconds: float | None, count: int | None
) -> Show | None:
    """Until the guests have ended or one of the limits is reached; None = interrupted."""
    show = Show(sink, follow=follow, count=count)
    interrupted = False
    end: threading.Timer | None = None
    try:
        with settings.client.stream_trace(what.request(guests), timeout=settings.timeout) as blocks:
            for block in blocks:
                if end is None and seconds is not None:  # the first says that the trace has begun, which may take a while
                    end = threading.Timer(seconds, blocks.cancel)
                    end.daemon = True
                    end.start()
                show.take(block)
                if show.done:
                    break
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if end is not None:
            end.cancel()
        show.end()
    return None if interrupted else show


@verb(formats=("table", "wide", "json", "jsonl", "yaml", "name"))
@click.option("--backend", metavar="B", help="Only those of this backend.")
def points(settings: Settings, backend: str | None) -> None:
    """Lists what can be traced: the names and arguments of every trace point."""
    response = settings.client.list_trace_points(backend=backend or "")
    print_items(settings, response, response.points, POINT_COLUMNS, lambda point: point.name)


POINT_COLUMNS: list[Column[trace_pb2.TracePoint]] = [
    Column("POINT", lambda p: p.name),
    Column("KIND", lambda p: p.kind),
    Column("ARGUMENTS", lambda p: ", ".join(a.name for a in p.arguments if a.name not in ("-", "")) or "-"),
    Column("BACKENDS", lambda p: ",".join(p.backends) or "all", wide=True),
    Column("DESCRIPTION", lambda p: p.description),
]
