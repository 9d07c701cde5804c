"""Results on stdout: the API's message as JSON or YAML, or a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import click

from hvctl.settings import Settings

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = TypeVar("T")

# How states are coloured; everything else stays plain.
STATE_COLORS = {
    "RUNNING": "green",
    "PAUSED": "yellow",
    "STARTING": "cyan",
    "STOPPING": "cyan",
    "FAILED": "red",
    "LOST": "red",
}


class Column(NamedTuple, Generic[T]):
    """One column of a table of T."""

    title: str
    text: Callable[[T], str]
    wide: bool = False  # shown by -o wide only
    right: bool = False  # numbers


def document(message: Message) -> Any:
    """The message in protobuf's JSON form with the proto's own field names; fields at their default are there."""
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_document(form: str, value: Any) -> None:
    """json, jsonl or yaml."""
    import json

    if form == "jsonl":
        click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    elif form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, explicit_start=True), nl=False)
    else:
        click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def is_document(form: str) -> bool:
    return form in ("json", "jsonl", "yaml")


def print_items(
    settings: Settings, message: Message, items: Iterable[T], columns: Sequence[Column[T]], name: Callable[[T], str]
) -> None:
    """A response that holds a list: the whole message, the items' names, or a table of them."""
    if is_document(settings.output):
        print_document(settings.output, document(message))
    elif settings.output == "name":
        for item in items:
            click.echo(name(item))
    else:
        print_table(settings, list(items), columns)


def print_table(settings: Settings, items: Sequence[T], columns: Sequence[Column[T]]) -> None:
    for line in table_lines(settings, items, columns):
        click.echo(line)


def table_lines(settings: Settings, items: Sequence[T], columns: Sequence[Column[T]]) -> list[str]:
    """Header and one line per item, aligned; colours where wanted."""
    shown = [column for column in columns if settings.output == "wide" or not column.wide]
    rows = [[printable(column.text(item)) for column in shown] for item in items]
    widths = [max(len(text) for text in texts) for texts in zip([c.title for c in shown], *rows, strict=True)]
    lines = [_line([c.title for c in shown], widths, shown, False)]
    lines += [_line(row, widths, shown, settings.color) for row in rows]
    return lines


def _line(texts: Sequence[str], widths: Sequence[int], columns: Sequence[Column[Any]], color: bool) -> str:
    cells = [
        text.rjust(width) if column.right else text.ljust(width)
        for text, width, column in zip(texts, widths, columns, strict=True)
    ]
    cells[-1] = cells[-1].rstrip() if not columns[-1].right else cells[-1]
    if color:
        cells = [colored(cell) for cell in cells]
    return "  ".join(cells).rstrip()


def colored(text: str) -> str:
    """States in their colours."""
    color = STATE_COLORS.get(text.strip())
    return click.style(text, fg=color) if color else text


def printable(text: str) -> str:
    """Without control characters: what a guest or a file named shall not drive the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
