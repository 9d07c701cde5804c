"""What the rewriting engines replaced, as the cell's table says it (hvd/cell/census.c), and packed for files and sockets.

A guest can take its cell over, so that nothing here is trusted: rows that make no sense are left out.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# struct hv_cell_site: executions, address, replacement, length, code.
SITE: Final = struct.Struct("<QIBB15s3x")
MOST_SITES: Final = 1 << 17  # HV_AREA_SITES
_MOST_BYTES: Final = MOST_SITES * SITE.size
_FAST: Final = 1  # of zlib's levels


class Replacement(enum.IntEnum):
    """enum hv_replacement."""

    IN_LINE = 1  # by code that does its work on the virtual processor
    CALLOUT = 2  # by a call of the monitor
    CHAINED = 3  # a jump, by one to the translated target
    LOOKUP = 4  # an indirect jump or a return, by a look at the table of targets
    BREAKPOINT = 5  # executed by the monitor when a breakpoint register reaches it


@dataclass(frozen=True, slots=True)
class Site:
    """An instruction that was replaced. address: linear. executions: while they were counted."""

    address: int
    code: bytes
    replacement: Replacement
    executions: int


def sites(table: bytes) -> Iterator[Site]:
    """Those of a cell's table, in its order."""
    known = frozenset(Replacement)
    for executions, address, replacement, length, code in SITE.iter_unpack(table[: len(table) // SITE.size * SITE.size]):
        if replacement in known and 1 <= length <= len(code):
            yield Site(address, code[:length], Replacement(replacement), min(executions, 2**63 - 1))


def without(table: bytes, before: bytes) -> bytes:
    """The table with the executions of an earlier one taken away."""
    had = {site.address: site.executions for site in sites(before)}
    return b"".join(
        SITE.pack(max(0, site.executions - had.get(site.address, 0)), site.address, site.replacement, len(site.code), site.code)
        for site in sites(table)
    )


def pack(table: bytes, most_bytes: int) -> tuple[bytes, bool]:
    """(Fewer bytes than most_bytes, is it all of the table)."""
    complete = True
    while len(packed := zlib.compress(table, _FAST)) > most_bytes:
        complete = False
        table = table[: len(table) // SITE.size // 2 * SITE.size]
    return packed, complete


def unpack(packed: bytes) -> bytes:
    """The table. Raises ValueError for what is none."""
    try:
        return zlib.decompressobj().decompress(packed, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
