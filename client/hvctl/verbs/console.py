"""console and logs."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from hvctl import failures
from hvctl.output import document, is_document, print_document
from hvctl.sdk.names import guest_id, guest_name
from hvctl.settings import Settings, say, verb
from hvctl.values import MOMENT, SIZE
from hvctl.verbs.outcome import tell_end


@verb(formats=("text",), timeout_help="Detach after so long (exit code 124).")
@click.argument("guest")
@click.option("--read-only", is_flag=True, help="Look on, type nothing.")
@click.option("--replay", type=SIZE, default=4096, metavar="BYTES", help="Show so much of the log first; default 4096.")
@click.option("--no-replay", is_flag=True, help="Show only what comes from now on.")
def console(settings: Settings, guest: str, read_only: bool, replay: int, no_replay: bool) -> int:
    """Attaches to a guest's console; ^] detaches. Ends with 0 when the guest does."""
    from hvctl.terminal import Detached, follow, has_terminal

    name = guest_name(guest)
    is_terminal = has_terminal(settings.client.get_guest(name=name))
    replay_bytes = 0 if no_replay else min(replay, 1 << 20)
    try:
        ended = follow(settings, name, replay_bytes=replay_bytes, read_only=read_only, is_terminal=is_terminal)
    except Detached:
        say(f"detached; {guest_id(name)} goes on")
        return failures.OK
    tell_end(ended)
    return failures.OK


@verb(formats=("text", "json", "jsonl", "yaml"))
@click.argument("guest")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option("--since", type=MOMENT, metavar="TIME", help="Only later lines: 2026-11-23T12:00:00Z, or 5m ago.")
@click.option("--timestamps", "-t", is_flag=True, help="The time before each line.")
def logs(
    settings: Settings, guest: str, follow: bool, tail: int | None, since: datetime | None, timestamps: bool
) -> None:
    """Prints what a guest wrote to its console."""
    from hvapi.v1 import guest_pb2

    from hvctl.terminal import STDOUT, write_all

    request = guest_pb2.GetLogsRequest(name=guest_name(guest), follow=follow, tail=tail)
    if since is not None:
        request.since.FromDatetime(since)
    whole = True  # the line before was complete
    # Without --follow the stream is finite, but a log may be long: the default deadline of other calls does not fit.
    with settings.client.get_logs(request, timeout=settings.timeout) as responses:
        for response in responses:
            if is_document(settings.output):
                for line in response.lines:
                    print_document("jsonl" if settings.output == "json" else settings.output, document(line))
                continue
            parts = []
            for line in response.lines:
                if timestamps and whole:
                    moment = line.time.ToDatetime(UTC)  # cut, not rounded: --since with it has this line still
                    parts.append(f"{moment.isoformat(timespec='microseconds').replace('+00:00', 'Z')} ".encode())
                parts.append(line.text)
                whole = line.text.endswith(b"\n")
            write_all(STDOUT, b"".join(parts))
