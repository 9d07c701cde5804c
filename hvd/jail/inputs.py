"""Files that a runner reads and does not own: opened while it may, read when they are needed, even after a reset of the guest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_held: dict[str, int] = {}


def hold(paths: Iterable[str]) -> None:
    """Open them now. One that is not there is told by whoever opens it."""
    for path in paths:
        with contextlib.suppress(OSError):
            _held[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def open_input(path: Path) -> int:
    """A descriptor at the file's begin; the caller closes it. Of one that is held there must be no two at a time: they share their position.
    Raises OSError."""
    held = _held.get(os.fspath(path))
    if held is None:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.lseek(held, 0, os.SEEK_SET)
    return os.dup(held)
