"""What is traced: the options that `trace`, `trace start` and `trace summary` share, and the request they become."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from hvctl.completing import complete_guests, complete_kinds, complete_reasons
from hvctl.sdk.names import guest_name
from hvctl.values import ADDRESS, NANOSECONDS

if TYPE_CHECKING:
    from hvapi.v1 import trace_pb2

F = TypeVar("F", bound=Callable[..., Any])


class AddressRange(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """FIRST-LAST, both included, or one address."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = re.split(r"-|\.\.", str(value).strip(), maxsplit=1)
        first, last = (ADDRESS.convert(part, param, ctx) for part in (parts[0], parts[-1]))
        if first > last:
            self.fail(f"'{value}' ends before it begins; the lower address comes first", param, ctx)
        return first, last


class Selection(NamedTuple):
    """The options of a command line."""

    kinds: tuple[str, ...]
    reasons: tuple[str, ...]
    addresses: tuple[tuple[int, int], ...]
    pids: tuple[int, ...]
    least_ns: int
    symbols: bool
    stacks: bool

    def request(self, guests: tuple[str, ...]) -> trace_pb2.StreamTraceRequest:
        from hvapi.v1 import trace_pb2

        request = trace_pb2.StreamTraceRequest(
            names=[guest_name(name) for name in guests],
            kinds=self.kinds,
            reasons=self.reasons,
            addresses=[trace_pb2.AddressRange(first=first, last=last) for first, last in self.addresses],
            pids=self.pids,
            symbols=self.symbols or self.stacks,
            stacks=self.stacks,
        )
        if self.least_ns:
            request.min_duration.FromNanoseconds(self.least_ns)
        return request


def selecting(function: F) -> F:
    """Adds the options; selection(values) takes them out of the verb's arguments again."""
    for option in reversed((
        click.option("--kind", "kinds", multiple=True, metavar="K", shell_complete=complete_kinds,
                     help="Only this kind (port-io, hypercall, ...); may be repeated."),
        click.option("--reason", "reasons", multiple=True, metavar="R", shell_complete=complete_reasons,
                     help="Only this trace point (port-out, ...); may be repeated."),
        click.option("--address", "addresses", multiple=True, type=AddressRange(), metavar="A-B",
                     help="Only crossings by instructions from A to B; may be repeated."),
        click.option("--pid", "pids", multiple=True, type=click.IntRange(1, (1 << 32) - 1), metavar="PID",
                     help="Of containers only this process, as the container numbers it; may be repeated."),
        click.option("--longer-than", "least_ns", type=NANOSECONDS, default="0", metavar="T",
                     help="Only crossings that took at least so long: 10us, 1ms."),
        click.option("--symbols", is_flag=True, help="Name the addresses, where the guest's symbols are known."),
        click.option("--stack", "stacks", is_flag=True, help="The guest's call stack at each crossing, by frame pointers."),
    )):  # fmt: skip
        function = option(function)
    return function


def selection(values: dict[str, Any]) -> Selection:
    """Of a verb's arguments by name; they are taken out."""
    return Selection(**{name: values.pop(name) for name in Selection._fields})


guests_argument = click.argument("guest", nargs=-1, shell_complete=complete_guests)
