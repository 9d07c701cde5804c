"""System calls as trace points."""

from __future__ import annotations

from dataclasses import dataclass

from hvd.backends.container.trace.syscalls import CALLS, NO_RETURN, SystemCall
from hvd.trace.points import SYSTEM_CALL_BASE, Argument, Kind, Point

# Before the call's own arguments.
_COMMON = (Argument("result", "errno"), Argument("pid", "dec"))

COMPATIBILITY = Point(
    128, "system-call.32-bit", Kind.SYSTEM_CALL, (*_COMMON, Argument("number", "dec")), "a call of a 32-bit program, not decoded"
)
UNKNOWN = Point(
    129, "system-call.unknown", Kind.SYSTEM_CALL, (*_COMMON, Argument("number", "dec"), Argument("argument0")),
    "a call of a number that this table does not have",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decoded:
    """What of a call the recorder needs."""

    point: int
    arguments: int  # how many of its own
    paths: tuple[int, ...]  # positions among the point's arguments
    endless: bool


def _point(call: SystemCall) -> Point:
    arguments = (Argument("result", call.result), _COMMON[1], *(Argument(*argument) for argument in call.arguments))
    return Point(SYSTEM_CALL_BASE + call.number, call.name, Kind.SYSTEM_CALL, arguments, f"system call {call.number}: {call.name}(2)")


POINTS = (COMPATIBILITY, UNKNOWN, *(_point(call) for call in CALLS.values()))
BY_NUMBER = {
    call.number: Decoded(
        SYSTEM_CALL_BASE + call.number, len(call.arguments), tuple(len(_COMMON) + path for path in call.paths), call.name in NO_RETURN
    )
    for call in CALLS.values()
}
