"""trace summary: where the crossings come from and what they cost."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import click

from hvctl import failures
from hvctl.completing import complete_traces
from hvctl.output import Column, is_document, print_document, print_items, print_table
from hvctl.sdk.names import guest_id, guest_name
from hvctl.settings import Settings, say, verb
from hvctl.trace_options import guests_argument, selecting, selection
from hvctl.trace_output import Show, Summing
from hvctl.values import SECONDS
from hvctl.verbs.trace import stream
from hvctl.verbs.trace_sessions import shown_all, trace_name

if TYPE_CHECKING:
    from hvapi.v1 import trace_pb2

    from hvctl.sdk.trace_summary import PlaceRow, PointRow, TraceSummary

_FORMATS = ("table", "wide", "json", "jsonl", "yaml", "name")


@verb(formats=_FORMATS)
@guests_argument
@click.option("--for", "seconds", type=SECONDS, metavar="S", help="Of the next so many seconds, with the addresses that cause most.")
@click.option("--session", "session", metavar="NAME", shell_complete=complete_traces, help="Of what a session has written.")
@click.option("--file", "file", type=click.File("rb"), metavar="FILE", help="Of a trace file.")
@selecting
@click.option("--top", "most", type=click.IntRange(1, 1000), default=10, metavar="N", help="So many addresses and call stacks; default 10.")
def summary(
    settings: Settings, guest: tuple[str, ...], seconds: float | None, session: str | None, file: IO[bytes] | None, most: int, **rest: Any
) -> int:
    """Counts and times of crossings by trace point, those that cost most first.

    `summary GUEST` tells of everything since the guest's start, from counters that are always on; percentiles are then
    bounds from a histogram. With --for, --session or --file it is made of records: percentiles are of the durations
    themselves (of a sample, where there are more than 20000), and there are the addresses that cause most, and (--stack)
    the call stacks.
    """
    what = selection(rest)
    sources = sum((bool(guest), session is not None, file is not None))
    if sources != 1:
        raise click.UsageError("of what? write GUEST..., --session NAME or --file FILE, one of them")
    if guest and seconds is None:
        if len(guest) > 1 or what.kinds or what.reasons or what.addresses or what.pids or what.least_ns or what.stacks:
            raise click.UsageError("counters cannot choose: say for how long to look, --for 5s")
        counted = settings.client.summarize_trace(name=guest_name(guest[0]))
        rows = sorted(counted.rows, key=lambda row: (-row.total_ns, -row.count))
        print_items(settings, counted, rows, COUNTER_COLUMNS, lambda row: row.reason)
        if settings.output in ("table", "wide"):
            say("since its start; with --for 5s of what happens now, and from where in the guest")
        return failures.OK
    if seconds is not None and not guest:
        raise click.UsageError("--for goes with guests")

    from hvctl.sdk.trace_summary import TraceSummary

    found = TraceSummary()
    sink = Summing(found)
    code: int = failures.OK
    if guest:
        # What a live summary is for is to say where it comes from.
        stream(settings, sink, what._replace(symbols=True), guest, True, seconds, None)
    elif session is not None:
        with settings.client.read_trace(name=trace_name(session), timeout=settings.timeout) as responses:
            code = shown_all((block for response in responses for block in response.blocks), Show(sink, follow=True))
    elif file is not None:
        from hvctl.sdk.trace_files import read_trace_file

        code = shown_all(read_trace_file(file, file.name), Show(sink, follow=True))
    _print(settings, found, most)
    return code


def _print(settings: Settings, found: TraceSummary, most: int) -> None:
    rows = found.rows()
    if is_document(settings.output):
        print_document(settings.output, found.document(most))
        return
    if settings.output == "name":
        for row in rows:
            click.echo(row.point)
        return
    print_table(settings, rows, point_columns(len({row.guest for row in rows}) > 1))
    if places := found.addresses(most):
        click.echo()
        print_table(settings, places, place_columns(found.records))
    for stack in found.stacks(most):
        click.echo(f"\n{stack.count} times ({stack.count / found.records:.1%}), {_time(stack.total_ns)}: {_points(stack)} of {guest_id(stack.guest)}")
        for address, symbol in ((stack.address, stack.symbol), *stack.stack):
            click.echo(f"    {address:#x} {symbol}".rstrip())
    if any(found.lost.values()):
        say("lost, and not in this: " + ", ".join(f"{count} records of {guest_id(guest)}" for guest, count in found.lost.items()))


def _time(value: int) -> str:
    from hvctl.sdk.trace_formats import duration_text

    return duration_text(value) if value else "-"


def _points(place: PlaceRow) -> str:
    ordered = sorted(place.points.items(), key=lambda item: -item[1])
    return ",".join(name for name, _ in ordered[:3]) + (",..." if len(ordered) > 3 else "")


COUNTER_COLUMNS: list[Column[trace_pb2.TraceSummaryRow]] = [
    Column("KIND", lambda r: r.kind),
    Column("POINT", lambda r: r.reason),
    Column("COUNT", lambda r: str(r.count), right=True),
    Column("TIME", lambda r: _time(r.total_ns), right=True),
    Column("MEAN", lambda r: _time(r.total_ns // r.count if r.count else 0), right=True),
    Column("P50<=", lambda r: _time(r.p50_ns), right=True),
    Column("P90<=", lambda r: _time(r.p90_ns), right=True),
    Column("P99<=", lambda r: _time(r.p99_ns), right=True),
    Column("LONGEST", lambda r: _time(r.max_ns), right=True),
]


def point_columns(several: bool) -> list[Column[PointRow]]:
    guest: list[Column[PointRow]] = [Column("GUEST", lambda r: guest_id(r.guest))] if several else []
    return [
        *guest,
        Column("KIND", lambda r: r.kind),
        Column("POINT", lambda r: r.point),
        Column("COUNT", lambda r: str(r.count), right=True),
        Column("TIME", lambda r: _time(r.total_ns), right=True),
        Column("MEAN", lambda r: _time(r.total_ns // r.timed if r.timed else 0), right=True),
        Column("P50", lambda r: _time(r.percentile(50)), right=True),
        Column("P90", lambda r: _time(r.percentile(90)), right=True),
        Column("P99", lambda r: _time(r.percentile(99)), right=True),
        Column("LONGEST", lambda r: _time(r.max_ns), right=True),
    ]


def place_columns(records: int) -> list[Column[PlaceRow]]:
    return [
        Column("ADDRESS", lambda p: f"{p.address:#x}"),
        Column("SYMBOL", lambda p: p.symbol or "-"),
        Column("GUEST", lambda p: guest_id(p.guest)),
        Column("COUNT", lambda p: str(p.count), right=True),
        Column("SHARE", lambda p: f"{p.count / records:.1%}", right=True),
        Column("TIME", lambda p: _time(p.total_ns), right=True),
        Column("POINTS", _points),
    ]
