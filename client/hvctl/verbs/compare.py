"""compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from hvctl.output import is_document, print_document, print_table
from hvctl.settings import Settings, say, verb
from hvctl.values import FILE


def _read(path: str) -> dict[str, Any]:
    """Raises HvctlError."""
    import json

    from hvctl.compare.page import page
    from hvctl.sdk.errors import HvctlError

    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        page(found)  # whatever is told of it is in there
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise HvctlError.local("COMPARISON_INVALID", path=path, problem=problem) from error
    return found


@verb(formats=("table", "json", "jsonl", "yaml"))
@click.option("--quick", is_flag=True, help="Few, short runs: within a minute.")
@click.option("--backend", "backends", metavar="B", multiple=True, help="Only this one; may be repeated.")
@click.option("--image", metavar="I", help="Root file system (32-bit) that CMD is in.")
@click.option("--html", type=FILE, metavar="F", help="Write one page with plots and explanations, for a browser.")
@click.option("--from", "source", type=click.Path(dir_okay=False, exists=True), metavar="F", help="Show what `-o json` printed earlier.")
@click.option("--guests", type=click.Path(file_okay=False), metavar="FOLDER", help="Where `make guests` put the guest programs.")
@click.argument("command", nargs=-1, metavar="[CMD]...")
def compare(
    settings: Settings, quick: bool, backends: tuple[str, ...], image: str | None, html: str | None, source: str | None,
    guests: str | None, command: tuple[str, ...],
) -> None:  # fmt: skip
    """Runs the same work natively, under every kind of virtualisation that is here, and under QEMU's translator, in turns, and shows
    what each costs.

    With --image I -- CMD it is a command of that root file system: as a container, and inside Linux under each backend.
    """
    if bool(image) != bool(command):
        raise click.UsageError("--image I -- CMD go together: which command, of which root file system")
    if source is not None:
        document = _read(source)
    else:
        from hvctl.compare.run import compared

        with tempfile.TemporaryDirectory(prefix="hvctl-compare-", dir="/var/tmp") as scratch:
            document = compared(
                settings.client, Path(scratch), say, quick=quick, backends=backends, image=image, command=command,
                guests=Path(guests) if guests else None,
            )  # fmt: skip
    if html is not None:
        from hvctl.compare.page import write

        write(document, Path(html))
    if is_document(settings.output):
        print_document(settings.output, document)
        return
    from hvctl.compare.text import COLUMNS, cuts, reasons, rows

    print_table(settings, rows(document), COLUMNS)
    for line in (*reasons(document), *(f"left out, since time was up: {cut}" for cut in cuts(document))):
        click.echo(line)
    if html is not None:
        say(f"the page is {html}")
