"""census."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hvctl.output import Column, document, is_document, print_document, print_table
from hvctl.sdk.names import guest_name
from hvctl.settings import Settings, say, verb

if TYPE_CHECKING:
    from hvapi.v1 import inspect_pb2

_SHOWN_BYTES = 8


def _columns(counted: bool) -> list[Column[inspect_pb2.SensitiveInstruction]]:
    columns: list[Column[inspect_pb2.SensitiveInstruction]] = [
        Column("ADDRESS", lambda i: f"{i.address:#010x}"),
        Column("SYMBOL", lambda i: i.symbol or "-"),
        Column("BYTES", lambda i: i.code[:_SHOWN_BYTES].hex(" ")),
        Column("INSTRUCTION", lambda i: i.text or i.name),
    ]
    if counted:
        columns.append(Column("HITS", lambda i: str(i.hits) if i.HasField("hits") else "-", right=True))
    columns.append(Column("WHAT IT DOES WRONGLY", lambda i: i.effect))
    return columns


_REPLACEMENTS = {
    1: "in-line work", 2: "callout", 3: "chained jump", 4: "lookup", 5: "breakpoint",
}  # fmt: skip


def _replaced_by(site: inspect_pb2.RewrittenInstruction | inspect_pb2.RewrittenSummary) -> str:
    return _REPLACEMENTS.get(site.replacement, "-")


def _hits(site: inspect_pb2.RewrittenInstruction | inspect_pb2.RewrittenSummary) -> str:
    return str(site.hits) if site.HasField("hits") else "-"


def _print_rewritten(settings: Settings, found: inspect_pb2.Census) -> None:
    counted = any(row.HasField("hits") for row in found.summary)
    sites: list[Column[inspect_pb2.RewrittenInstruction]] = [
        Column("ADDRESS", lambda i: f"{i.address:#010x}"),
        Column("SYMBOL", lambda i: i.symbol or "-"),
        Column("BYTES", lambda i: i.code[:_SHOWN_BYTES].hex(" ")),
        Column("INSTRUCTION", lambda i: i.text),
        Column("REPLACED BY", _replaced_by),
    ]
    summary: list[Column[inspect_pb2.RewrittenSummary]] = [
        Column("INSTRUCTION", lambda s: s.name),
        Column("REPLACED BY", _replaced_by),
        Column("SITES", lambda s: str(s.sites), right=True),
    ]
    if counted:
        sites.append(Column("HITS", _hits, right=True))
        summary.append(Column("HITS", _hits, right=True))
    if found.rewritten:
        print_table(settings, found.rewritten, sites)
        click.echo()
    print_table(settings, found.summary, summary)


def _told(found: inspect_pb2.Census) -> str:
    looked_at = f"{found.decoded_instructions} looked at in {found.code_pages} pages"
    return f"{len(found.instructions)} sensitive instructions that cannot trap, of {looked_at}"


def _told_rewritten(found: inspect_pb2.Census) -> str:
    count = sum(row.sites for row in found.summary)
    text = f"{count} instructions were rewritten"
    if found.blocks:
        text += f"; translated now: {found.decoded_instructions} in {found.blocks} blocks of {found.code_pages} pages"
    return text


@verb()
@click.argument("guest")
@click.option("--step", "seconds", type=click.FloatRange(0, 60, min_open=True), metavar="SECONDS",
              help="Count for so long how often each is executed; the guest is slower meanwhile.")  # fmt: skip
@click.option("--jumps", is_flag=True, help="List rewritten jumps, calls and returns, too.")
def census(settings: Settings, guest: str, seconds: float | None, jumps: bool) -> None:
    """Lists the instructions of a guest's kernel that should trap and cannot.

    Where the kernel itself runs unprivileged (backend trap), such an instruction shows it the host's state or does nothing,
    and nobody notices. They are looked for from where the kernel was seen to execute; of a guest that has ended, this is
    how it was then.

    Where kernels are rewritten (backend rewriting), it lists what was replaced, and by what: work in line, a call of the
    monitor, a jump to translated code.
    """
    from google.protobuf import duration_pb2
    from hvapi.v1 import inspect_pb2

    request = inspect_pb2.GetCensusRequest(name=guest_name(guest), jumps=jumps)
    if seconds:
        request.count.CopyFrom(duration_pb2.Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9)))
    found = settings.client.get_census(request, timeout=settings.timeout)
    if is_document(settings.output):
        print_document(settings.output, document(found))
        return
    if found.summary or found.blocks:
        _print_rewritten(settings, found)
        told = _told_rewritten(found)
    else:
        told = _told(found)
    if found.instructions:
        print_table(settings, found.instructions, _columns(bool(seconds) and not found.ended))
    say(
        told
        + (", as the guest was when it ended" if found.ended else "")
        + ("; not all could be looked at" if found.incomplete else "")
    )
