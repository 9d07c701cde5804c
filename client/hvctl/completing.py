"""Words that only the daemon knows, for completion. A daemon that does not answer at once completes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hvctl.sdk import Client

SECONDS = 2.0
Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def _by(names: Callable[[Client], Iterable[str]]) -> Completion:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from hvctl.sdk import Client, HvctlError

        try:
            with Client(timeout=SECONDS) as client:
                return sorted({name for name in names(client) if name.startswith(incomplete)})
        except HvctlError:
            return []

    return complete


complete_guests = _by(lambda client: (guest.name.removeprefix("guests/") for guest in client.guests()))
complete_traces = _by(lambda client: (trace.name.removeprefix("traces/") for trace in client.list_traces().traces))
complete_kinds = _by(lambda client: (point.kind for point in client.list_trace_points().points if point.kind != "lost"))
complete_reasons = _by(lambda client: (point.name for point in client.list_trace_points().points if point.kind != "lost"))
