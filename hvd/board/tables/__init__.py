"""What firmware leaves in memory for kernels: ACPI and MultiProcessor tables, the BIOS data area.

Kernels that are loaded directly get it here; a firmware gets acpi_pieces() and does it itself.
"""

from __future__ import annotations

import struct
from typing import Final

from hvd.board.memory import GuestMemory
from hvd.board.tables import mp
from hvd.board.tables.acpi import RSDP, TABLES, acpi_pieces
from hvd.board.tables.pieces import Pieces

__all__ = ["RSDP_ADDRESS", "Pieces", "acpi_pieces", "put_tables"]

# In the area that kernels search for both.
RSDP_ADDRESS: Final = 0xF0000
_MP_FLOATING: Final = 0xF0040
_MP_CONFIGURATION: Final = 0xF0050
_ACPI_TABLES: Final = 0xF1000
_END: Final = 0x100000
# BIOS data area (IBM PC AT Technical Reference): COM1's port, equipment, segment of the extended area, KiB of memory.
_COM1, _EQUIPMENT, _EXTENDED_SEGMENT, _BASE_MEMORY = 0x400, 0x410, 0x40E, 0x413
_ONE_SERIAL_PORT_AND_FPU: Final = 1 << 9 | 1 << 1
_EXTENDED_DATA_AREA: Final = 0x9FC00


def _contents() -> tuple[tuple[int, bytes], ...]:
    placed = acpi_pieces().placed({RSDP: RSDP_ADDRESS, TABLES: _ACPI_TABLES})
    return (
        (RSDP_ADDRESS, placed[RSDP]),
        (_ACPI_TABLES, placed[TABLES]),
        (_MP_FLOATING, mp.floating_pointer(_MP_CONFIGURATION)),
        (_MP_CONFIGURATION, mp.configuration()),
        *(
            (address, struct.pack("<H", value))
            for address, value in (
                (_COM1, 0x3F8),
                (_EQUIPMENT, _ONE_SERIAL_PORT_AND_FPU),
                (_EXTENDED_SEGMENT, _EXTENDED_DATA_AREA >> 4),
                (_BASE_MEMORY, _EXTENDED_DATA_AREA // 1024),
                (_EXTENDED_DATA_AREA, 1),  # its size in KiB
            )
        ),
    )


# The same for every machine, and made with the import: runners are forked from a process that has it.
_CONTENTS: Final = _contents()


def put_tables(memory: GuestMemory) -> int:
    """Write them. Returns the RSDP's address; 0 when the guest has no memory there."""
    if memory.low_ram_end < _END:
        return 0
    for address, data in _CONTENTS:
        memory.write(address, data)
    return RSDP_ADDRESS
