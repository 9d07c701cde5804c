"""screen and type: a guest's VGA text screen and its keyboard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hvctl.output import document, is_document, print_document
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, VerbCommand, say, verb

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2

# Alternate screen and clear; back.
_TAKE_TERMINAL, _GIVE_BACK = "\x1b[?1049h\x1b[2J", "\x1b[?25h\x1b[?1049l"


@verb(formats=("text", "json", "jsonl", "yaml"))
@click.argument("guest")
@click.option("--watch", is_flag=True, help="Show it again at each change, until Ctrl-C or the guest's end.")
@click.option("--png", "png_file", metavar="F", help="Save a picture of it (- = stdout).")
def screen(settings: Settings, guest: str, watch: bool, png_file: str | None) -> None:
    """Shows what stands on a guest's VGA text screen."""
    if png_file is not None and (watch or is_document(settings.output)):
        raise click.UsageError("--png goes with neither --watch nor -o")
    stream = settings.client.get_screen(name=guest_name(guest), watch=watch, timeout=settings.timeout)
    with stream:
        if png_file is not None:
            for response in stream:
                _save_picture(response.screen, png_file)
        elif is_document(settings.output):
            for response in stream:
                print_document(settings.output, document(response))
        elif watch and sys.stdout.isatty():
            with _terminal():
                for response in stream:
                    _redraw(settings, response.screen)
        else:
            for number, response in enumerate(stream):
                if number:
                    click.echo("---")
                _show(settings, response.screen)


def _lines(settings: Settings, shown: guest_pb2.Screen) -> list[str]:
    from hvctl.textscreen import colored_lines, plain_lines

    return colored_lines(shown) if settings.color else plain_lines(shown)


def _show(settings: Settings, shown: guest_pb2.Screen) -> None:
    if shown.rows:
        click.echo("\n".join(_lines(settings, shown)))
    if shown.note:
        say(shown.note)


@contextmanager
def _terminal() -> Iterator[None]:
    sys.stdout.write(_TAKE_TERMINAL)
    try:
        yield
    finally:
        sys.stdout.write(_GIVE_BACK)
        sys.stdout.flush()


def _redraw(settings: Settings, shown: guest_pb2.Screen) -> None:
    lines = _lines(settings, shown)
    if shown.note:
        lines.append(f"({shown.note})")
    text = "\x1b[?25l\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[J"
    if shown.HasField("cursor_row"):
        text += f"\x1b[{shown.cursor_row + 1};{shown.cursor_column + 1}H\x1b[?25h"
    sys.stdout.write(text)
    sys.stdout.flush()


def _save_picture(shown: guest_pb2.Screen, path: str) -> None:
    from hvctl.picture import png

    if not shown.rows:
        raise HvctlError.local("NO_PICTURE", problem=shown.note)
    picture = png(shown)
    if path == "-":
        sys.stdout.buffer.write(picture)
        return
    try:
        with open(path, "wb") as file:
            file.write(picture)
    except OSError as error:
        raise HvctlError.local("FILE_UNWRITABLE", path=path, problem=error.strerror or error) from error
    say(f"{len(picture)} bytes saved to {path}")


# What stands before a key among the texts: no argument of a command line can have it.
_KEY = "\0"


class TypeCommand(VerbCommand):
    """Texts and keys in the order in which they were given, which click does not keep."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ordered: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                ordered += [word, *words]
            elif word == "--key" and (name := next(words, None)) is not None:
                ordered.append(_KEY + name)
            elif word.startswith("--key="):
                ordered.append(_KEY + word.removeprefix("--key="))
            else:
                ordered.append(word)
        return super().parse_args(ctx, ordered)


@click.command(cls=TypeCommand, formats=("text", "json", "jsonl", "yaml"))
@click.argument("guest")
@click.argument("text", nargs=-1)
@click.option(
    "--key", multiple=True, metavar="KEY", help="A key or several at once: enter, f1, up, ctrl-c, ctrl-alt-delete."
)
@click.pass_obj
def type_(settings: Settings, guest: str, text: tuple[str, ...], key: tuple[str, ...]) -> None:
    """Types TEXT and keys on a guest's keyboard, in the order given.

    A keyboard with the US layout. Ends when the keyboard has taken all of it; what the guest does not read within ten
    seconds is not typed.

    \b
        hvctl type GUEST "echo hello" --key enter
        hvctl type GUEST --key ctrl-alt-f2
    """
    from hvapi.v1 import guest_pb2

    words = [guest, *text]
    # The guest is the first that is no key, which may stand before it.
    place = next((at for at, word in enumerate(words) if not word.startswith(_KEY)), None)
    if place is None:
        raise click.UsageError("which guest? write it as: type GUEST [TEXT] [--key KEY]...")
    name = guest_name(words.pop(place))
    inputs = [
        guest_pb2.KeyInput(key=word.removeprefix(_KEY)) if word.startswith(_KEY) else guest_pb2.KeyInput(text=word)
        for word in words
    ]
    if not inputs:
        raise click.UsageError("there is nothing to type: give TEXT or --key")
    response = settings.client.type_keys(name=name, inputs=inputs, timeout=settings.timeout)
    if is_document(settings.output):
        print_document(settings.output, document(response))
