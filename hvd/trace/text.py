"""A crossing in words, by the table of trace points: what a debugger shows. (hvctl has its own, made from what the API tells.)"""

from __future__ import annotations

import errno
from collections.abc import Callable

from hvapi.record import FLAG_USER, Record

from hvd.trace.points import BY_ID, Argument, Kind, Point

_RESULT = "result"


def _errno(value: int) -> str:
    for modulus in (1 << 64, 1 << 32):
        if 0 < modulus - value < 4096:
            return f"-{errno.errorcode.get(modulus - value, modulus - value)}"
    return str(value)


# Argument.format -> how its 64 bits are printed.
_FORMATS: dict[str, Callable[[int], str]] = {
    "hex": lambda value: f"{value:#x}",
    "dec": str,
    "vector": lambda value: f"{value:#04x}",
    "bool": lambda value: "true" if value else "false",
    "ns": lambda value: f"{value} ns",
    "errno": _errno,
}


def crossing_text(record: Record) -> str:
    """`hypercall.log(address=0x10, length=4) = 0 rip=0x100020`."""
    point = BY_ID.get(record.point) or Point(record.point, f"point-{record.point}", Kind.MACHINE)
    values = list(zip(point.arguments, record[-4:], strict=False))
    words = [
        f"{argument.name}={_text(argument, value)}" for argument, value in values if argument.name not in ("-", _RESULT)
    ]
    results = [_text(argument, value) for argument, value in values if argument.name == _RESULT]
    text = f"{point.name}({', '.join(words)})"
    if results:
        text += f" = {results[0]}"
    return f"{text} rip={record.rip:#x}{' user' if record.flags & FLAG_USER else ''}"


def _text(argument: Argument, value: int) -> str:
    return _FORMATS.get(argument.format, _FORMATS["hex"])(value)
