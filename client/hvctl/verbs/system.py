"""backends, doctor, version, metrics."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import click

from hvctl import failures
from hvctl.output import Column, document, is_document, print_document, print_items, print_table
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, verb

if TYPE_CHECKING:
    from hvapi.v1 import system_pb2

BACKEND_COLUMNS: list[Column[system_pb2.Backend]] = [
    Column("NAME", lambda b: b.name.removeprefix("backends/")),
    Column("KIND", lambda b: b.kind),
    Column("RUNS HERE", lambda b: "yes" if b.available else "no"),
    Column("ENGINES", lambda b: ",".join(e.name for e in b.engines if e.available) or "-", wide=True),
    Column("CAPABILITIES", lambda b: ",".join(b.capabilities) or "-", wide=True),
    Column("WHY NOT", lambda b: "" if b.available else f"{b.reason}; {b.remedy}" if b.remedy else b.reason),
]


@verb()
def backends(settings: Settings) -> None:
    """Lists the kinds of virtualisation: which run here, and what would make the others run."""
    response = settings.client.list_backends()
    print_items(settings, response, response.backends, BACKEND_COLUMNS, lambda backend: backend.name)


FINDING_COLUMNS: list[Column[tuple[str, str, str, str]]] = [
    Column("", lambda row: row[0]),
    Column("SUBJECT", lambda row: row[1]),
    Column("FINDING", lambda row: row[2]),
    Column("NEXT STEP", lambda row: row[3]),
]


@verb(formats=("table", "json", "jsonl", "yaml"))
def doctor(settings: Settings) -> int:
    """Says whether the daemon can be reached, what is off on its machine and what would help.

    Ends with 1 when there is a problem, with 5 when the daemon is out of reach.
    """
    from hvapi.v1 import system_pb2

    info = settings.client.get_info()
    level = system_pb2.Finding.Level
    if is_document(settings.output):
        print_document(settings.output, document(info))
    else:
        where = f"version {info.version}, process {info.pid}, {info.guests} guests"
        rows = [("OK", "daemon", f"{settings.client.endpoint.address}: {where}", "")]
        rows += [(level.Name(f.level), f.subject, f.message, f.remedy) for f in info.findings]
        known = {f.subject for f in info.findings}
        for backend in settings.client.list_backends().backends:
            subject = f"backend {backend.name.removeprefix('backends/')}"
            if subject not in known:
                rows.append(
                    ("OK", subject, "runs here", "")
                    if backend.available
                    else ("NOTE", subject, backend.reason, backend.remedy)
                )
        print_table(settings, rows, FINDING_COLUMNS)
    problem = any(finding.level == level.PROBLEM for finding in info.findings)
    return failures.FAILED if problem else failures.OK


@verb(formats=("table", "json", "jsonl", "yaml"))
@click.option("--daemon", is_flag=True, help="Ask the daemon for its version too.")
def version(settings: Settings, daemon: bool) -> None:
    """Prints the version of hvctl; with --daemon also that of the daemon."""
    own = metadata.version("hvd")
    if not daemon:
        if is_document(settings.output):
            print_document(settings.output, {"client_version": own})
        else:
            click.echo(f"hvctl {own}")
        return
    info = settings.client.get_info()
    if is_document(settings.output):
        print_document(settings.output, {"client_version": own, "daemon": document(info)})
    else:
        click.echo(f"hvctl {own}\nhvd {info.version} (Python {info.python_version}, Linux {info.host_kernel})")


@verb(formats=("text", "json", "jsonl", "yaml"))
@click.argument("guest", nargs=-1)
def metrics(settings: Settings, guest: tuple[str, ...]) -> None:
    """Prints the metrics of all guests, or of these, in Prometheus' text format."""
    text = not is_document(settings.output)
    response = settings.client.get_metrics(names=[guest_name(name) for name in guest], as_text=text)
    if text:
        click.echo(response.text, nl=not response.text.endswith("\n"))
    else:
        print_document(settings.output, document(response))
