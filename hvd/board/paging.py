"""The processor's page-table walk, done by hand: for `mem translate`, for guest-virtual reads and for strings of
hypercalls.

Intel SDM volume 3A, chapter 4. The walk has no side effects: accessed and dirty bits stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hvd.board.memory import GuestMemory
from hvd.errors import HvdError

CR0_PE: Final = 1 << 0
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
CR4_SMEP: Final = 1 << 20
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11

_PRESENT: Final = 1 << 0
_WRITABLE: Final = 1 << 1
_USER: Final = 1 << 2
_LARGE: Final = 1 << 7
_NO_EXECUTE: Final = 1 << 63
# Bits 12-51 of an entry, with the processor's physical address width at its architectural limit of 52.
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000


@dataclass(frozen=True, slots=True)
class Entry:
    """One page-table entry on the way. level: PML5E, PML4E, PDPTE, PDE, PTE."""

    level: str
    address: int  # guest-physical
    value: int


@dataclass(frozen=True, slots=True)
class Translation:
    """Where a linear address leads. The rights are what all entries together grant; allows() adds CR0.WP and
    CR4.SMEP."""

    virtual_address: int
    mode: str  # "none", "32-bit", "PAE", "4-level", "5-level"
    entries: tuple[Entry, ...] = ()
    physical_address: int | None = None
    page_bytes: int = 0  # 0 without paging, and when nothing is mapped
    writable: bool = False
    user: bool = False
    executable: bool = False
    write_protect: bool = False  # CR0.WP: read-only pages bind the supervisor too
    smep: bool = False
    fault: str = ""  # why nothing is mapped

    def allows(self, *, write: bool = False, execute: bool = False, user: bool = False) -> bool:
        """May an access of this sort, by CPL 3 when user, go through? (SMAP, protection keys and shadow stacks are not
        looked at.)"""
        if self.physical_address is None or (user and not self.user):
            return False
        if write and not self.writable and (user or self.write_protect):
            return False
        return not execute or (self.executable and not (self.smep and self.user and not user))


@dataclass(frozen=True, slots=True)
class _Level:
    name: str
    shift: int  # of the index within the linear address
    bits: int  # of the index
    large: bool = False  # PS = 1 ends the walk here
    rights: bool = True  # the entry has R/W and U/S


_PTE: Final = _Level("PTE", 12, 9)
_PDE: Final = _Level("PDE", 21, 9, large=True)
_PDPTE: Final = _Level("PDPTE", 30, 9, large=True)
_PML4E: Final = _Level("PML4E", 39, 9)
_PML5E: Final = _Level("PML5E", 48, 9)

# mode -> levels from the root, bytes of an entry, bits of a linear address
_MODES: Final[dict[str, tuple[tuple[_Level, ...], int, int]]] = {
    "32-bit": ((_Level("PDE", 22, 10, large=True), _Level("PTE", 12, 10)), 4, 32),
    "PAE": ((_Level("PDPTE", 30, 2, rights=False), _PDE, _PTE), 8, 32),
    "4-level": ((_PML4E, _PDPTE, _PDE, _PTE), 8, 48),
    "5-level": ((_PML5E, _PML4E, _PDPTE, _PDE, _PTE), 8, 57),
}


def paging_mode(cr0: int, cr4: int, efer: int) -> str:
    """The mode in force (SDM 4.1.1)."""
    if not (cr0 & CR0_PG and cr0 & CR0_PE):
        return "none"
    if efer & EFER_LMA:
        return "5-level" if cr4 & CR4_LA57 else "4-level"
    return "PAE" if cr4 & CR4_PAE else "32-bit"


def walk(memory: GuestMemory, cr0: int, cr3: int, cr4: int, efer: int, address: int) -> Translation:
    """Translate a linear address. Never raises for what a guest put into its tables: Translation.fault says what is
    wrong."""
    mode = paging_mode(cr0, cr4, efer)
    if mode == "none":
        address &= 0xFFFF_FFFF
        return Translation(address, mode, physical_address=address, writable=True, user=True, executable=True)
    levels, size, width = _MODES[mode]
    protect, smep = bool(cr0 & CR0_WP), bool(cr4 & CR4_SMEP)
    if width == 32:
        address &= 0xFFFF_FFFF
    elif not _canonical(address, width):
        return Translation(address, mode, fault=f"the address is not canonical for {width} bits")
    entries: list[Entry] = []

    def missing(fault: str) -> Translation:
        return Translation(address, mode, tuple(entries), write_protect=protect, smep=smep, fault=fault)

    # PAE's four PDPTEs are 32-byte aligned, all other tables page-aligned.
    table = cr3 & (0xFFFF_FFE0 if mode == "PAE" else 0xFFFF_F000 if mode == "32-bit" else _ADDRESS)
    writable = user = executable = True
    for level in levels:
        where = table + (address >> level.shift & (1 << level.bits) - 1) * size
        try:
            value = int.from_bytes(memory.read(where, size), "little")
        except HvdError:
            return missing(f"the {level.name} at {where:#x} lies outside of RAM")
        entries.append(Entry(level.name, where, value))
        if not value & _PRESENT:
            return missing(f"the {level.name} at {where:#x} is not present")
        large = _is_large(level, mode, cr4, value)
        if problem := _reserved(level, mode, efer, value, large):
            return missing(f"the {level.name} at {where:#x} has {problem}")
        if level.rights:
            writable &= bool(value & _WRITABLE)
            user &= bool(value & _USER)
        if size == 8:
            executable &= not value & _NO_EXECUTE
        table = value & (_ADDRESS if size == 8 else 0xFFFF_F000)
        if large or level is levels[-1]:
            page = 1 << level.shift
            if large and mode == "32-bit":  # PSE-36: bits 13-20 are address bits 32-39
                table = value & 0xFFC0_0000 | (value >> 13 & 0xFF) << 32
            physical = (table & ~(page - 1)) | (address & page - 1)
            return Translation(address, mode, tuple(entries), physical, page, writable, user, executable, protect, smep)
    raise AssertionError("the last level ends the walk")


def _canonical(address: int, width: int) -> bool:
    return address >> width - 1 in (0, (1 << 65 - width) - 1)


def _is_large(level: _Level, mode: str, cr4: int, value: int) -> bool:
    return level.large and bool(value & _LARGE) and (mode != "32-bit" or bool(cr4 & CR4_PSE))


def _reserved(level: _Level, mode: str, efer: int, value: int, large: bool) -> str:
    """Which reserved bit is set; empty when none is."""
    if mode == "32-bit":
        return "bit 21 set, which is reserved" if large and value & 1 << 21 else ""
    if level.name == "PDPTE" and mode == "PAE":
        return "reserved bits set" if value & (0x1E6 | 0xFFF0_0000_0000_0000) else ""
    if value & _NO_EXECUTE and not efer & EFER_NXE:
        return "bit 63 set, which is reserved without EFER.NXE"
    if level.name in ("PML4E", "PML5E") and value & _LARGE:
        return "bit 7 set, which is reserved"
    if mode == "PAE" and value & 0x7FF0_0000_0000_0000:
        return "bits 52-62 set, which are reserved"
    if large and value & ((1 << level.shift) - 1) & ~0x1FFF:
        return f"bits below {level.shift} set, which are reserved"
    return ""


class AddressSpace:
    """Guest-virtual memory as the vcpu sees it at this moment, with supervisor rights."""

    def __init__(self, memory: GuestMemory, registers: Mapping[str, int]) -> None:
        """registers: cr0, cr3, cr4, efer of Vcpu.registers()."""
        self._memory = memory
        self._cr0, self._cr3, self._cr4, self._efer = (registers[name] for name in ("cr0", "cr3", "cr4", "efer"))

    def translate(self, address: int) -> Translation:
        return walk(self._memory, self._cr0, self._cr3, self._cr4, self._efer, address)

    def read(self, address: int, length: int) -> bytes:
        """Raises HvdError ADDRESS_UNMAPPED where a page is missing, ADDRESS_OUTSIDE where it is not RAM."""
        return b"".join(self._memory.read(physical, size) for physical, size in self._pieces(address, length))

    def write(self, address: int, data: bytes) -> list[tuple[int, int]]:
        """Write as a debugger does: read-only pages too. Returns the (guest-physical address, length) that changed, for
        Vcpu.memory_changed. Raises as read(); then nothing was written."""
        pieces = list(self._pieces(address, len(data)))
        for physical, size in pieces:
            self._memory.file_offset(physical, size)
        done = 0
        for physical, size in pieces:
            self._memory.write(physical, data[done : done + size])
            done += size
        return pieces

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """The guest-physical (address, length) behind a range, a piece per 4 KiB page at most."""
        while length > 0:
            step = min(length, 4096 - address % 4096)
            where = self.translate(address)
            if where.physical_address is None:
                raise HvdError("ADDRESS_UNMAPPED", address=hex(address), problem=where.fault)
            yield where.physical_address, step
            address, length = address + step, length - step
