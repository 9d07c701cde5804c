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


@verb()
@click.argument("guest")
@click.option("--step", "seconds", type=click.FloatRange(0, 60, min_open=True), metavar="SECONDS",
              help="Count for so long how often each is executed, by breakpoints; the guest is slower meanwhile.")  # fmt: skip
def census(settings: Settings, guest: str, seconds: float | None) -> None:
    """Lists the instructions of a guest's kernel that should trap and cannot.

    Where the kernel itself runs unprivileged (backend trap), such an instruction shows it the host's state or does nothing,
    and nobody notices. They are looked for from where the kernel was seen to execute; of a guest that has ended, this is
    how it was then.
    """
    from google.protobuf import duration_pb2
    from hvapi.v1 import inspect_pb2

    request = inspect_pb2.GetCensusRequest(name=guest_name(guest))
    if seconds:
        request.count.CopyFrom(duration_pb2.Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9)))
    found = settings.client.get_census(request, timeout=settings.timeout)
    if is_document(settings.output):
        print_document(settings.output, document(found))
        return
    if found.instructions:
        print_table(settings, found.instructions, _columns(bool(seconds) and not found.ended))
    say(
        f"{len(found.instructions)} sensitive instructions that cannot trap, of {found.decoded_instructions} looked at in {found.code_pages} pages"
        + (", as the guest was when it ended" if found.ended else "")
        + ("; not all could be looked at" if found.incomplete else "")
    )
