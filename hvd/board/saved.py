"""Reading a device's state back from a snapshot: each value checked, since a file may be torn or forged.

Every function takes the state that save() gave, the field's name and its limits. A field that is missing (an older
snapshot) has the given default, its value after a reset. All raise ValueError or TypeError for what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(state: Mapping[str, Any], name: str, most: int, default: int = 0, least: int = 0) -> int:
    """A whole number of least..most, both included."""
    value = state.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is no number")
    if not least <= value <= most:
        raise ValueError(f"{name} = {value} is not within {least} and {most}")
    return value


def flag(state: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """True or false."""
    value = state.get(name, default)
    if not isinstance(value, bool):
        raise TypeError(f"{name} is neither true nor false")
    return value


def optional(state: Mapping[str, Any], name: str, most: int, least: int = 0) -> int | None:
    """A whole number, or None, which is the default."""
    return None if state.get(name) is None else number(state, name, most, least=least)


def data(state: Mapping[str, Any], name: str, default: bytes, most: int = 0) -> bytes:
    """Bytes, in hex: as many as the default has, or with most, up to so many."""
    text = state.get(name)
    if text is None:
        return default
    if not isinstance(text, str):
        raise TypeError(f"{name} is no hex text")
    value = bytes.fromhex(text)
    if len(value) > most if most else len(value) != len(default):
        raise ValueError(f"{name} has {len(value)} bytes instead of {most or len(default)}")
    return value


def numbers(state: Mapping[str, Any], name: str, count: int, most: int, default: int = 0) -> list[int]:
    """So many whole numbers of 0..most."""
    values = state.get(name, [default] * count)
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} is no list of {count} numbers")
    return [number({name: value}, name, most) for value in values]


def part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The state of a part of the device; an empty one is the default."""
    value = state.get(name, {})
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    return value


def only(state: Mapping[str, Any], names: frozenset[str], device: str) -> None:
    """Nothing but these fields: one that is not known belongs to a newer board, and leaving it out would lose state."""
    if unknown := sorted(set(state) - names):
        raise ValueError(f"{device} has no {', '.join(unknown)[:200]}")
