"""The firmware of machines that boot from a disk as a PC does: SeaBIOS of Debian's package `seabios`.

bios.bin (128 KiB) is mapped so that it ends at 4 GiB, where the processor begins, and copied to what ends at 1 MiB,
where it runs in real mode. The 256 KiB build would need a chipset that can switch the ROM area. The video BIOS is
handed over through fw_cfg (hvd.board.devices.fw_cfg).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hvd.board.memory import GRANULE, GuestMemory
from hvd.board.vcpu import EntryState, Segment
from hvd.errors import HvdError

# Where Debian and Ubuntu, Fedora, and others that ship QEMU put them. The environment names another place.
DIRECTORIES: Final = ("/usr/share/seabios", "/usr/share/qemu")
ENVIRONMENT: Final = "HVD_FIRMWARE_DIR"
BIOS, VIDEO_BIOS = "bios.bin", "vgabios-stdvga.bin"

SHADOW_BYTES: Final = 128 << 10
SHADOW_END: Final = 1 << 20
RESET_VECTOR: Final = 16  # bytes before the end (SDM vol. 3A, 9.1.4)
_JUMPS: Final = frozenset({0xEA, 0xE9, 0xEB})
_OPTION_ROM: Final = b"\x55\xaa"
_OPTION_ROM_UNIT: Final = 512
# Firmware that is packed, or that finds no room for its tables, is of no use in less.
LEAST_MEMORY: Final = 4 << 20


def directories() -> Sequence[Path]:
    """Where ROM files are looked for."""
    chosen = os.environ.get(ENVIRONMENT)
    return [Path(chosen)] if chosen else [Path(directory) for directory in DIRECTORIES]


def _read(name: str) -> tuple[Path, bytes]:
    """Raises HvdError FIRMWARE_MISSING."""
    problem = "it is not there"
    for directory in directories():
        path = directory / name
        try:
            return path, path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = str(error)
    where = " or ".join(map(str, directories()))
    raise HvdError("FIRMWARE_MISSING", file=name, directories=where, problem=problem)


def read_bios() -> bytes:
    """Raises HvdError FIRMWARE_MISSING, FIRMWARE_DAMAGED."""
    path, rom = _read(BIOS)
    problem = ""
    if len(rom) < SHADOW_BYTES or len(rom) % GRANULE or len(rom) > 16 << 20:
        problem = f"it has {len(rom)} bytes"
    elif rom[-RESET_VECTOR] not in _JUMPS:
        problem = f"the processor would begin at {rom[-RESET_VECTOR:].hex(' ')}, which is no jump"
    if problem:
        raise HvdError("FIRMWARE_DAMAGED", path=path, problem=problem)
    return rom


def read_video_bios() -> bytes:
    """Raises HvdError FIRMWARE_MISSING, FIRMWARE_DAMAGED."""
    path, rom = _read(VIDEO_BIOS)
    problem = ""
    if rom[:2] != _OPTION_ROM or len(rom) < 3:
        problem = "it has no option ROM's signature"
    else:
        length = rom[2] * _OPTION_ROM_UNIT
        if not 0 < length <= len(rom):
            problem = f"it has {len(rom)} of {length} bytes"
        elif sum(rom[:length]) & 0xFF:
            problem = "its checksum is wrong"
    if problem:
        raise HvdError("FIRMWARE_DAMAGED", path=path, problem=problem)
    return rom


def check(memory_bytes: int) -> None:
    """Can a machine with so much RAM boot by it here? Raises HvdError FIRMWARE_MISSING, FIRMWARE_DAMAGED,
    MEMORY_TOO_SMALL."""
    read_bios()
    read_video_bios()
    if memory_bytes < LEAST_MEMORY:
        raise HvdError("MEMORY_TOO_SMALL", memory=memory_bytes, least=LEAST_MEMORY)


def load(memory: GuestMemory) -> EntryState:
    """Copy the ROM's end to where real mode expects it, in memory that is zero; the state after a reset."""
    memory.write(SHADOW_END - SHADOW_BYTES, memory.rom[-SHADOW_BYTES:])
    return reset_state()


def reset_state() -> EntryState:
    """The processor after RESET (SDM vol. 3A, table 9-1): real mode, at F000:FFF0 with the base of CS at 4 GiB - 64 KiB."""
    data, code, ldt, tss = 0x9300, 0x9B00, 0x8200, 0x8B00  # present; access rights
    segments = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), Segment(0, 0, 0xFFFF, data))
    segments |= {
        "cs": Segment(0xF000, 0xFFFF_0000, 0xFFFF, code),
        "ldtr": Segment(0, 0, 0xFFFF, ldt),
        "tr": Segment(0, 0, 0xFFFF, tss),
    }
    # Caches off, no x87 state; EDX: family 6.
    return EntryState(
        {"eip": 0xFFF0, "eflags": 2, "edx": 0x600},
        cr0=0x6000_0010,
        segments=segments,
        gdt=(0, 0xFFFF),
        idt=(0, 0xFFFF),
    )
