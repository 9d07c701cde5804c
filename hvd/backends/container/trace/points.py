"""System calls as trace points.

The calls of x86-64 are 512 + number. A call of 32-bit programs is the x86-64 call of that name, if their arguments are the same; otherwise
it is 1024 + number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hvd.backends.container.trace.syscalls import CALLS, NO_RETURN, SystemCall
from hvd.backends.container.trace.syscalls_32 import CALLS_32
from hvd.trace.points import SYSTEM_CALL_32_BASE, SYSTEM_CALL_BASE, Argument, Kind, Point

# A call's key: its number, and this bit for one of a 32-bit program. Numbers from UNNAMED on have that key.
COMPATIBLE = 512
UNNAMED = 511
KEYS = 1024
# What x32 programs add to numbers (__X32_SYSCALL_BIT); we know of no kernel in use that takes them.
X32_BIT = 1 << 30
# Before the call's own arguments: the thread is the container's number of it (gettid(2)); the upper 32 bits are its process.
_COMMON = (Argument("result", "errno"), Argument("tid", "dec"))

_UNNAMED_ARGUMENTS = (*_COMMON, Argument("number", "dec"), Argument("argument0"))
UNKNOWN_32 = Point(
    128, "system-call.32-bit", Kind.SYSTEM_CALL, _UNNAMED_ARGUMENTS, "a call of a 32-bit program of a number that the table does not have"
)
UNKNOWN = Point(129, "system-call.unknown", Kind.SYSTEM_CALL, _UNNAMED_ARGUMENTS, "a call of a number that the table does not have")
X32 = Point(130, "system-call.x32", Kind.SYSTEM_CALL, _UNNAMED_ARGUMENTS, "a call as x32 programs make them, not decoded")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What of a call the recorder needs."""

    point: int
    arguments: int  # how many of its own
    paths: tuple[int, ...]  # positions among its own arguments
    address: int | None  # position of a socket's address, likewise
    endless: bool

    @property
    def pieces(self) -> int:
        """Records that its arguments need beyond the first."""
        return int(len(_COMMON) + self.arguments > 4)


FIRST_ARGUMENT = len(_COMMON)


def _point(number: int, name: str, call: SystemCall, description: str) -> Point:
    arguments = (Argument("result", call.result), _COMMON[1], *(Argument(*argument) for argument in call.arguments))
    return Point(number, name, Kind.SYSTEM_CALL, arguments, description, call.name)


def _own_32(number: int, call: SystemCall) -> Point:
    name = f"{call.name}.32-bit" if call.name in _NAMES else call.name
    return _point(SYSTEM_CALL_32_BASE + number, name, call, f"system call {number} of 32-bit programs: {call.name}(2)")


_NAMES = {call.name for call in CALLS.values()}
_POINTS = {
    number: _point(SYSTEM_CALL_BASE + number, call.name, call, f"system call {number}: {call.name}(2)") for number, call in CALLS.items()
}
_POINTS_32 = {number: _own_32(number, call) for number, call in CALLS_32.items() if CALLS.get(call.number) is not call}
POINTS = (UNKNOWN_32, UNKNOWN, X32, *_POINTS.values(), *_POINTS_32.values())


def _decoded(call: SystemCall, point: Point) -> Decoded:
    return Decoded(point.id, len(call.arguments), call.paths, call.address, call.name in NO_RETURN)


BY_KEY = {number: _decoded(call, _POINTS[number]) for number, call in CALLS.items()} | {
    COMPATIBLE | number: _decoded(call, _POINTS_32.get(number) or _POINTS[call.number]) for number, call in CALLS_32.items()
}


def key_of(number: int, compatible: bool) -> int:
    return min(number, UNNAMED) | (COMPATIBLE if compatible else 0)


def unnamed(key: int, number: int) -> Point:
    """The point of a call that BY_KEY does not have."""
    if key & COMPATIBLE:
        return UNKNOWN_32
    return X32 if number & X32_BIT else UNKNOWN


def chosen(points: Collection[int] | None) -> bytes:
    """A bit for each key, which is set when its point is among these; None = all."""
    if points is None:
        return b"\xff" * (KEYS // 8)
    bits = 0
    for key in range(KEYS):
        if (call := BY_KEY.get(key)) is not None:
            wanted = call.point in points
        else:
            wanted = UNKNOWN_32.id in points if key & COMPATIBLE else UNKNOWN.id in points or X32.id in points
        bits |= wanted << key
    return bits.to_bytes(KEYS // 8, "little")
