"""top, stats, events: what goes on, as it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from hvctl.output import Column, document, is_document, print_document, printable, table_lines
from hvctl.sdk.names import guest_id, guest_name
from hvctl.settings import Settings, verb
from hvctl.values import SECONDS, size_text
from hvctl.verbs.listing import state_text

if TYPE_CHECKING:
    from hvapi.v1 import metrics_pb2


def _pair(one: int, other: int) -> str:
    return f"{size_text(one)}/{size_text(other)}" if one or other else "-"


def _pressure(ratios: Mapping[str, float]) -> str:
    return ",".join(f"{ratios[name]:.0%}" for name in ("cpu", "memory", "io")) if ratios else "-"


COLUMNS: list[Column[metrics_pb2.GuestStats]] = [
    Column("NAME", lambda s: guest_id(s.name)),
    Column("BACKEND", lambda s: s.backend),
    Column("STATE", lambda s: s.state),
    Column("CPU%", lambda s: f"{s.cpu_ratio * 100:.1f}", right=True),
    Column("CPU TIME", lambda s: f"{s.cpu_seconds:.1f}s", right=True),
    Column("MEMORY", lambda s: size_text(s.memory_resident_bytes), right=True),
    Column("LIMIT", lambda s: size_text(s.memory_limit_bytes) if s.memory_limit_bytes else "-", right=True),
    Column("EXITS/S", lambda s: f"{s.exits_per_second:.0f}", right=True),
    Column("EXITS", lambda s: str(s.exits), right=True),
    Column("HYPERCALLS", lambda s: str(s.hypercalls), right=True),
    Column("PIDS", lambda s: str(s.pids) if s.pids else "-", right=True),
    Column("DISK R/W", lambda s: _pair(s.disk_read_bytes, s.disk_write_bytes), right=True),
    Column("NET R/W", lambda s: _pair(s.network_receive_bytes, s.network_transmit_bytes), right=True),
    Column("CHARGED", lambda s: size_text(s.memory_charged_bytes) if s.memory_charged_bytes else "-", right=True, wide=True),
    Column("OOM", lambda s: str(s.limit_effects.oom_kills) if s.HasField("limit_effects") else "-", right=True, wide=True),
    Column("THROTTLED", lambda s: f"{s.limit_effects.cpu_throttled_seconds:.1f}s" if s.HasField("limit_effects") else "-",
           right=True, wide=True),
    Column("WAITING CPU,MEM,IO", lambda s: _pressure(s.pressure_ratios), right=True, wide=True),
    Column("BY KIND", lambda s: ",".join(f"{k}={n}" for k, n in sorted(s.exits_by_kind.items())) or "-", wide=True),
]

FORMATS = ("table", "wide", "json", "jsonl", "yaml")
every_option = click.option(
    "--every", type=SECONDS, default=1.0, metavar="S", help="Interval, at least 100ms; default 1s."
)
count_option = click.option("--count", type=click.IntRange(min=1), help="End after so many.")


# Of `top`: crossings a second by kind between two responses are not in either of them.
Rates = dict[str, dict[str, float]]


class _Rates:
    def __init__(self) -> None:
        self._before: dict[str, tuple[float, dict[str, int]]] = {}

    def of(self, response: metrics_pb2.WatchStatsResponse) -> Rates:
        """guest -> kind -> crossings a second since the response before; of the first one nothing."""
        moment = response.time.ToNanoseconds() / 1e9
        rates: Rates = {}
        for stats in response.stats:
            kinds = dict(stats.exits_by_kind)
            began, before = self._before.get(stats.name, (moment, {}))
            if moment > began:
                # Of a guest that was started anew they count from 0 again.
                since = {kind: number - before.get(kind, 0) if number >= before.get(kind, 0) else number for kind, number in kinds.items()}
                rates[stats.name] = {kind: number / (moment - began) for kind, number in since.items()}
            self._before[stats.name] = (moment, kinds)
        return rates


def _rates_text(rates: Mapping[str, float]) -> str:
    """The most frequent first: "port-io 1204, halt 250"."""
    shown = sorted(((rate, kind) for kind, rate in rates.items() if rate >= 0.5), reverse=True)
    return ", ".join(f"{kind} {rate:.0f}" for rate, kind in shown) or "-"


def top_columns(rates: Rates) -> list[Column[metrics_pb2.GuestStats]]:
    wanted = {"NAME", "BACKEND", "STATE", "CPU%", "MEMORY", "EXITS/S"}
    by_kind: Column[metrics_pb2.GuestStats] = Column("BY KIND /S", lambda s: _rates_text(rates.get(s.name, {})))
    columns = [column if column.title in wanted else column._replace(wide=True) for column in COLUMNS if column.title != "BY KIND"]
    return [*[column for column in columns if not column.wide], by_kind, *[column for column in columns if column.wide]]


def _follow(settings: Settings, guests: Sequence[str], every: float, count: int | None, busiest_first: bool) -> None:
    from hvapi.v1 import metrics_pb2

    request = metrics_pb2.WatchStatsRequest(names=[guest_name(guest) for guest in guests])
    request.interval.FromNanoseconds(round(every * 1e9))
    with settings.client.watch_stats(request, timeout=settings.timeout) as stream:
        responses: Iterator[metrics_pb2.WatchStatsResponse] = stream
        if count is not None:
            responses = (response for _, response in zip(range(count), stream, strict=False))
        if is_document(settings.output):
            for response in responses:
                print_document(settings.output, document(response))
            return

        def ordered(response: metrics_pb2.WatchStatsResponse) -> list[metrics_pb2.GuestStats]:
            if busiest_first:
                return sorted(response.stats, key=lambda s: (-s.cpu_ratio, -s.exits_per_second, s.name))
            return sorted(response.stats, key=lambda s: s.name)

        past = _Rates()

        def lines(response: metrics_pb2.WatchStatsResponse) -> str:
            columns = top_columns(past.of(response)) if busiest_first else COLUMNS
            return "\n".join(table_lines(settings, ordered(response), columns))

        if settings.live and count is None:
            from rich.live import Live
            from rich.text import Text

            with Live(auto_refresh=False, screen=busiest_first) as live:
                for response in responses:
                    live.update(Text.from_ansi(lines(response)), refresh=True)
            return
        for response in responses:
            click.echo(lines(response))


@verb(formats=FORMATS)
@click.argument("guest", nargs=-1)
@every_option
@count_option
def top(settings: Settings, guest: tuple[str, ...], every: float, count: int | None) -> None:
    """Shows guests, the busiest first, again and again: CPU, memory, crossings a second by kind. Ends with Ctrl-C."""
    _follow(settings, guest, every, count, busiest_first=True)


@verb(formats=FORMATS)
@click.argument("guest", nargs=-1)
@every_option
@count_option
def stats(settings: Settings, guest: tuple[str, ...], every: float, count: int | None) -> None:
    """Shows figures of all guests, or of these, again and again; once with --count 1."""
    _follow(settings, guest, every, count, busiest_first=False)


@verb(formats=("table", "json", "jsonl", "yaml"))
@click.argument("guest", nargs=-1)
@click.option("--present", is_flag=True, help="First the guests there are.")
@count_option
def events(settings: Settings, guest: tuple[str, ...], present: bool, count: int | None) -> None:
    """Shows what happens to all guests, or to these: creation, every change of state, deletion."""
    shown = 0
    for event in settings.client.watch([guest_name(name) for name in guest], changes_only=not present):
        if is_document(settings.output):
            print_document(settings.output, document(event))
        elif event.type == event.BOOKMARK:
            continue
        else:
            moment = datetime.fromtimestamp(event.time.ToNanoseconds() / 1e9, UTC).isoformat(timespec="milliseconds")
            words = [moment.replace("+00:00", "Z"), guest_id(event.guest.name), event.Type.Name(event.type)]
            words += [state_text(event.guest), event.guest.reason, event.message]
            click.echo(printable(" ".join(word for word in words if word)))
        shown += 1
        if shown == count:
            return
