"""trace: the crossings as they happen, their sums, and what can be traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hvctl import failures
from hvctl.output import Column, is_document, print_document, print_items
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_name
from hvctl.settings import EVERY_FORMAT, Settings, say, verb
from hvctl.values import SECONDS

if TYPE_CHECKING:
    from hvapi.v1 import trace_pb2

# Without -f, --for and --count: a look at what goes on.
GLIMPSE_SECONDS = 1.0


@verb(formats=EVERY_FORMAT)
@click.argument("guest", nargs=-1, required=True, metavar="GUEST... | summary GUEST | points")
@click.option("--follow", "-f", is_flag=True, help="Go on until the guests end or Ctrl-C.")
@click.option(
    "--kind", "kinds", multiple=True, metavar="K", help="Only this kind (port-io, hypercall, ...); may be repeated."
)
@click.option(
    "--reason", "reasons", multiple=True, metavar="R", help="Only this trace point (port-out, ...); may be repeated."
)
@click.option("--for", "seconds", type=SECONDS, metavar="S", help="End after so long: 5s, 500ms.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@click.option("--backend", metavar="B", help="With points: only those of this backend.")
def trace(
    settings: Settings,
    guest: tuple[str, ...],
    follow: bool,
    kinds: tuple[str, ...],
    reasons: tuple[str, ...],
    seconds: float | None,
    count: int | None,
    backend: str | None,
) -> int:
    """Shows every crossing between guests and the hypervisor, one line each, as strace does for system calls:

    \b
        seconds-since-the-first GUEST point(arguments) = result rip=address <duration>

    Without -f, --for or --count it looks for one second. Records that were lost are a line too. -o jsonl gives one
    JSON object per line. `trace summary GUEST` prints counts and times since the guest's start, `trace points` what
    can be traced.
    """
    if guest[0] == "points":
        _only(guest, 1, "trace points")
        response = settings.client.list_trace_points(backend=backend or "")
        print_items(settings, response, response.points, POINT_COLUMNS, lambda point: point.name)
        return failures.OK
    if backend is not None:
        raise click.UsageError("--backend goes with `trace points`")
    if guest[0] == "summary":
        _only(guest, 2, "trace summary GUEST")
        summary = settings.client.summarize_trace(name=guest_name(guest[1]))
        rows = sorted(summary.rows, key=lambda row: (-row.total_ns, -row.count))
        print_items(settings, summary, rows, SUMMARY_COLUMNS, lambda row: row.reason)
        return failures.OK
    if not follow and seconds is None and count is None:
        seconds = GLIMPSE_SECONDS
    return _stream(settings, [guest_name(name) for name in guest], kinds, reasons, seconds, count)


def _only(words: tuple[str, ...], count: int, form: str) -> None:
    if len(words) != count:
        raise click.UsageError(f"write it as: {form}")


def _stream(
    settings: Settings,
    names: list[str],
    kinds: tuple[str, ...],
    reasons: tuple[str, ...],
    seconds: float | None,
    count: int | None,
) -> int:
    from hvctl.sdk.trace import TraceDecoder

    limits = [limit for limit in (seconds, settings.timeout) if limit is not None]
    # Which of the two ends it decides whether that is what was asked for.
    on_time = seconds is not None and min(limits) == seconds
    decoder = TraceDecoder()
    first_ns: int | None = None
    shown = lost = 0
    form = "jsonl" if settings.output == "json" else settings.output
    code = failures.OK
    stream = settings.client.stream_trace(names=names, kinds=kinds, reasons=reasons, timeout=min(limits, default=None))
    try:
        with stream:
            for block in stream:
                if block.HasField("header"):
                    # Records from here on; whoever waits to start something can do it now.
                    say(f"tracing {', '.join(name.removeprefix('guests/') for name in block.header.guests)}")
                lines: list[str] = []
                for event in decoder.decode(block):
                    lost += event.lost
                    if event.lost == 0:
                        shown += 1
                    if is_document(form):
                        print_document(form, event.document())
                    else:
                        if first_ns is None:
                            first_ns = event.time_ns
                        lines.append(event.line(f"{(event.time_ns - first_ns) / 1e9:.6f}"))
                    if shown == count:
                        break
                if lines:
                    click.echo("\n".join(lines))
                if shown == count:
                    break
    except HvctlError as error:
        if not (error.reason == "TIMED_OUT" and on_time):
            raise
    except KeyboardInterrupt:
        code = failures.INTERRUPTED
    say(f"{shown} records" + (f", {lost} lost" if lost else ""))
    return code


def _nanoseconds(value: int) -> str:
    from hvctl.sdk.trace_formats import duration_text

    return duration_text(value) if value else "-"


SUMMARY_COLUMNS: list[Column[trace_pb2.TraceSummaryRow]] = [
    Column("KIND", lambda r: r.kind),
    Column("POINT", lambda r: r.reason),
    Column("COUNT", lambda r: str(r.count), right=True),
    Column("TIME", lambda r: _nanoseconds(r.total_ns), right=True),
    Column("MEAN", lambda r: _nanoseconds(r.total_ns // r.count if r.count else 0), right=True),
    Column("LONGEST", lambda r: _nanoseconds(r.max_ns), right=True),
]

POINT_COLUMNS: list[Column[trace_pb2.TracePoint]] = [
    Column("POINT", lambda p: p.name),
    Column("KIND", lambda p: p.kind),
    Column("ARGUMENTS", lambda p: ", ".join(a.name for a in p.arguments if a.name not in ("-", "")) or "-"),
    Column("BACKENDS", lambda p: ",".join(p.backends) or "all", wide=True),
    Column("DESCRIPTION", lambda p: p.description),
]
