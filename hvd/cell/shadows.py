"""What a cell has mapped of its guest's memory, as the host's kernel tells it (proc(5), /proc/PID/maps): the cell itself is not asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hvd.board.vcpu import Shadow
from hvd.cell.area import Mode

PAGE: Final = 4096
WINDOW: Final = 0x3_0000_0000  # HV_WINDOW of cell.h
_NATIVE: Final = (("native", 0),)
VIEWS: Final = {
    Mode.TRAP: _NATIVE, Mode.PARAVIRT: _NATIVE, Mode.BREAKPOINT: _NATIVE, Mode.REWRITING: (*_NATIVE, ("kernel window", WINDOW)),
}  # fmt: skip


def shadows(mappings: str, mode: Mode, linear: int) -> Sequence[Shadow]:
    """One for each view."""
    found = {view: Shadow(view, base + linear) for view, base in VIEWS[mode]}
    for line in mappings.splitlines():
        where, rights, offset, _, inode, *_ = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in where.split("-"))
        if rights.startswith("---"):  # the room of a view that stays reserved, or a kernel's page while a program runs
            continue
        for view, shadow in found.items():
            if start <= shadow.host_address < end and inode != "0":
                place = int(offset, 16) + shadow.host_address - start
                found[view] = Shadow(view, shadow.host_address, True, "r" in rights, "w" in rights, "x" in rights, place)
    return tuple(found.values())
