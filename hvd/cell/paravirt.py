"""What a kernel that knows of hvd finds in its hypercall page (gate.c writes the same for the call FILL_PAGE)."""

from __future__ import annotations

import struct
from typing import Final

from hvd.board.memory import GuestMemory
from hvd.board.paravirt import Paravirt, replace_sites

ENTRY_BYTES: Final = 64
ENTRIES: Final = 7
_KIND: Final = 16  # of the first entry
_GATE: Final = 0x2_0000_0000  # HV_CACHE of cell.h


def _entry(kind: int) -> bytes:
    code = bytes.fromhex("6a33 e81a000000 4c8d05f2ffffff 41b9") + struct.pack("<I", kind) + b"\x49\xbb" + struct.pack("<Q", _GATE)
    return (code + bytes.fromhex("41ffe3 cb")).ljust(ENTRY_BYTES, b"\xcc")


PAGE: Final = b"".join(_entry(_KIND + index) for index in range(ENTRIES))


def prepare(memory: GuestMemory, kernel: Paravirt) -> None:
    """The kernel was loaded and has not begun. Raises what replace_sites() does."""
    memory.write(kernel.page_physical, PAGE)
    if kernel.kernel is not None:
        replace_sites(memory, kernel.kernel)
