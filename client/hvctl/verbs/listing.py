"""list and show."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from hvctl.output import Column, document, is_document, print_document, print_items, print_table, printable, table_lines
from hvctl.sdk.names import guest_id, guest_name
from hvctl.settings import Settings, verb
from hvctl.values import LABEL, age_text, size_text

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from hvapi.v1 import guest_pb2


def state_text(guest: guest_pb2.Guest) -> str:
    from hvapi.v1 import guest_pb2

    return guest_pb2.Guest.State.Name(guest.state)


def _age(moment: Timestamp) -> str:
    return age_text(time.time() - moment.seconds) if moment.seconds else "-"


COLUMNS: list[Column[guest_pb2.Guest]] = [
    Column("NAME", lambda g: guest_id(g.name)),
    Column("BACKEND", lambda g: g.backend),
    Column("ENGINE", lambda g: g.engine or "-", wide=True),
    Column("STATE", state_text),
    Column("REASON", lambda g: g.reason or "-"),
    Column("EXIT", lambda g: str(g.exit_code) if g.HasField("exit_code") else "-", right=True),
    Column("PID", lambda g: str(g.host_pid or "-"), right=True),
    Column(
        "MEMORY", lambda g: size_text(g.machine.memory_bytes) if g.machine.memory_bytes else "-", wide=True, right=True
    ),
    Column("CPUS", lambda g: str(g.machine.cpus or "-"), wide=True, right=True),
    Column("IMAGE", lambda g: g.image.removeprefix("images/") or "-", wide=True),
    Column("UID", lambda g: g.uid, wide=True),
    Column("LABELS", lambda g: ",".join(f"{k}={v}" for k, v in sorted(g.labels.items())) or "-", wide=True),
    Column("AGE", lambda g: _age(g.create_time), right=True),
    Column("MESSAGE", lambda g: g.status_message, wide=True),
]


@verb()
@click.option("--watch", "-w", is_flag=True, help="Go on and show every change.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="Only guests with this label; may be repeated.")
def list_guests(settings: Settings, watch: bool, labels: tuple[tuple[str, str], ...]) -> None:
    """Lists guests."""
    from hvapi.v1 import guest_pb2

    if watch:
        _watch(settings, dict(labels))
        return
    response = guest_pb2.ListGuestsResponse(guests=settings.client.guests(dict(labels)))
    print_items(settings, response, response.guests, COLUMNS, lambda guest: guest.name)


def _watch(settings: Settings, labels: dict[str, str]) -> None:
    """Live on a terminal; elsewhere the present, then one row per change; as a document, each event."""

    def fits(guest: guest_pb2.Guest) -> bool:
        return all(guest.labels.get(key) == value for key, value in labels.items())

    events = (event for event in settings.client.watch() if fits(event.guest) or event.type == event.BOOKMARK)
    if is_document(settings.output):
        for event in events:
            print_document(settings.output, document(event))
        return
    if not settings.live:
        titled = False
        for event in events:
            if event.type == event.BOOKMARK:
                continue
            if settings.output == "name":
                click.echo(event.guest.name)
                continue
            lines = table_lines(settings, [event.guest], COLUMNS)
            click.echo("\n".join(lines[titled:]))
            titled = True
        return

    from rich.live import Live
    from rich.text import Text

    present: dict[str, guest_pb2.Guest] = {}
    renewed: set[str] = set()  # what a new present has named so far
    with Live(auto_refresh=False) as live:
        for event in events:
            name = event.guest.name
            if event.type == event.BOOKMARK:
                present = {key: guest for key, guest in present.items() if key in renewed}
                renewed = set()
            elif event.type == event.DELETED:
                present.pop(name, None)
            else:
                present[name] = event.guest
                if event.type == event.PRESENT:
                    renewed.add(name)
                    continue  # drawn once, with the bookmark
            lines = table_lines(settings, [present[key] for key in sorted(present)], COLUMNS)
            live.update(Text.from_ansi("\n".join(lines)), refresh=True)


class _Row:
    """One line of `show`."""

    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value


ROWS: list[Column[_Row]] = [Column("FIELD", lambda row: row.key), Column("VALUE", lambda row: row.value)]


@verb()
@click.argument("guest")
def show(settings: Settings, guest: str) -> None:
    """Shows everything about a guest."""
    found = settings.client.get_guest(name=guest_name(guest))
    if is_document(settings.output):
        print_document(settings.output, document(found))
    elif settings.output == "name":
        click.echo(found.name)
    else:
        print_table(settings, rows_of(found), ROWS)


def rows_of(message: Message) -> list[_Row]:
    """The fields that are set, nested ones as a.b."""
    rows: list[_Row] = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, inner in enumerate(value):
                walk(f"{prefix}[{index}]", inner)
        elif isinstance(value, list):
            if value:
                rows.append(_Row(prefix, " ".join(str(inner) for inner in value)))
        elif (value not in ("", "0", 0, False, None) and not str(value).endswith("_UNSPECIFIED")) or prefix == "exit_code":
            rows.append(_Row(prefix, printable(str(value))))

    walk("", document(message))
    return rows
