"""What the loaders share: the Kernel they recognise, the places they put boot data in, entry states and the guest's
memory map."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

from hvd.board.loaders.image import ImageFile
from hvd.board.memory import GRANULE, GuestMemory
from hvd.board.paravirt import Paravirt
from hvd.board.vcpu import EntryState, Segment
from hvd.errors import HvdError

# Conventional memory of a PC: what is above belongs to the extended BIOS data area, the screen and ROMs, up to 1 MiB.
CONVENTIONAL_END: Final = 0x9FC00
ONE_MIB: Final = 0x100000
# The interrupt vector table of real mode and the BIOS data area: no boot data below.
BOOT_DATA_START: Final = 0x1000

E820_RAM: Final = 1
E820_RESERVED: Final = 2

CR0_PE: Final = 0x1
CR0_ET: Final = 0x10  # hardwired to 1 on every processor that can run a guest
CR0_PG: Final = 0x8000_0000
EFLAGS_FIXED: Final = 0x2  # bit 1 is always 1; interrupts are off

# Selectors of the GDT that loaders provide; those of the Linux boot protocol (__BOOT_CS, __BOOT_DS), and a TSS.
BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18
BOOT_TSS: Final = 0x20
_CODE_32: Final = 0x00CF_9B00_0000_FFFF
_CODE_64: Final = 0x00AF_9B00_0000_FFFF
_DATA: Final = 0x00CF_9300_0000_FFFF
_TSS: Final = 0x0000_8B00_0000_0067


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel in memory, ready to run."""

    entry: EntryState
    format: str  # "bzimage", "pvh", "multiboot", "flat"
    description: str
    paravirt: Paravirt | None = None


class Kernel(ABC):
    """A kernel whose header was read and found good. Nothing is in memory yet."""

    format: ClassVar[str]
    description: str  # for people: "Linux 6.1.0-13-amd64, 64-bit boot protocol"
    bits: int  # of the mode it is entered in: 32 or 64
    end: int  # first guest-physical address behind what it needs; RAM from 0 must reach there
    paravirt: Paravirt | None = None  # it is made for the backend of that name, too

    @property
    def code_bits(self) -> int:
        """Of the code that it consists of: one that is entered in 32-bit mode may go over to 64 bits."""
        return self.bits

    @abstractmethod
    def load(self, memory: GuestMemory, initrd: ImageFile | None, command_line: str, rsdp: int = 0) -> EntryState:
        """Put everything into memory, which is expected to be zero but for the tables. rsdp: where the ACPI
        tables begin, 0 = there are none. Raises HvdError IMAGE_TRUNCATED, IMAGE_TOO_LARGE,
        FIELD_INVALID."""

    def check_fits(self, low_ram_end: int, initrd_bytes: int = 0) -> None:
        """Raises HvdError IMAGE_TOO_LARGE unless RAM from 0 holds kernel and initrd. low_ram_end: bytes."""
        needed = self.end + -(-initrd_bytes // GRANULE) * GRANULE
        if needed > low_ram_end:
            what = f"the {self.format} kernel" + (" with its initrd" if initrd_bytes else "")
            raise HvdError("IMAGE_TOO_LARGE", what=what, needed=needed, available=low_ram_end)


class Placement:
    """Finds places for boot data (command line, initrd, tables) in RAM below 4 GiB, clear of the kernel and of each
    other."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._taken: list[tuple[int, int]] = [(0, BOOT_DATA_START), (CONVENTIONAL_END, ONE_MIB)]

    def reserve(self, start: int, end: int) -> None:
        """Nothing will be placed there. end is exclusive."""
        self._taken.append((start, end))

    def take(self, what: str, length: int, *, alignment: int = 16, limit: int | None = None, high: bool = False) -> int:
        """The lowest free place, or the highest one, that ends at limit or below. Raises HvdError IMAGE_TOO_LARGE."""
        top = min(self._memory.low_ram_end, limit if limit is not None else self._memory.low_ram_end)
        gaps: list[tuple[int, int]] = []
        position = 0
        for start, end in sorted(self._taken):
            gaps.append((position, min(start, top)))
            position = max(position, end)
        gaps.append((position, top))
        for start, end in reversed(gaps) if high else gaps:
            address = (end - length) // alignment * alignment if high else -(-start // alignment) * alignment
            if start <= address and address + length <= end:
                self._taken.append((address, address + max(length, 1)))
                return address
        largest = max(end - start for start, end in gaps)
        raise HvdError("IMAGE_TOO_LARGE", what=what, needed=length, available=max(largest, 0))

    def put(self, what: str, data: bytes, *, alignment: int = 16) -> int:
        """Place bytes low and write them; their address. Raises HvdError IMAGE_TOO_LARGE."""
        address = self.take(what, len(data), alignment=alignment)
        self._memory.write(address, data)
        return address

    def put_file(self, file: ImageFile, *, limit: int | None = None) -> int:
        """Place a file as high as possible, page-aligned; its address. Raises HvdError IMAGE_TOO_LARGE,
        IMAGE_TRUNCATED."""
        address = self.take(file.what, file.size, alignment=GRANULE, limit=limit, high=True)
        file.copy(0, file.size, self._memory, address)
        return address


def encode_command_line(command_line: str, longest: int) -> bytes:
    """As a C string. longest: bytes without the terminating NUL. Raises HvdError FIELD_INVALID."""
    data = command_line.encode("utf-8", "surrogateescape")
    problem = remedy = ""
    if b"\0" in data:
        problem, remedy = "it has a NUL in it", "leave it out"
    elif len(data) > longest:
        problem, remedy = f"it has {len(data)} bytes, this kernel takes {longest}", "shorten it"
    if problem:
        shown = ascii(command_line if len(command_line) < 40 else command_line[:40] + "...")
        raise HvdError("FIELD_INVALID", field="command_line", value=shown, problem=problem, remedy=remedy)
    return data + b"\0"


def memory_map(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """What the guest is told: (start, length, E820_*), ascending."""
    result: list[tuple[int, int, int]] = []
    for start, length, _ in memory.ram_spans():
        end = start + length
        for low, high, kind in (
            (0, CONVENTIONAL_END, E820_RAM),
            (CONVENTIONAL_END, ONE_MIB, E820_RESERVED),
            (ONE_MIB, end, E820_RAM),
        ):
            low, high = max(low, start), min(high, end)
            if low < high:
                result.append((low, high - low, kind))
    return result


def _segment(selector: int, descriptor: int) -> Segment:
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    if descriptor >> 55 & 1:
        limit = limit << 12 | 0xFFF
    # Of the second word's bits 8-23, the four of the limit are left out.
    return Segment(selector, 0, limit, descriptor >> 32 & 0xF0FF00)


def _entry(
    code: int, gdt: int, registers: dict[str, int], cr0: int, cr3: int, cr4: int, efer: int, selector: int = BOOT_CS
) -> EntryState:
    data = _segment(selector + 8, _DATA)
    segments = {"cs": _segment(selector, code)} | dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data)
    segments |= {"tr": _segment(BOOT_TSS, _TSS), "ldtr": Segment(0, 0, 0, 0)}
    return EntryState(registers, cr0, cr3, cr4, efer, segments, (gdt, 8 * 6 - 1))


def _gdt(code: int, selector: int = BOOT_CS) -> bytes:
    # The TSS takes two slots, as it must in long mode.
    slots = [0, 0, 0, 0, _TSS, 0]
    slots[selector // 8 : selector // 8 + 2] = [code, _DATA]
    return struct.pack("<6Q", *slots)


def protected_mode(placement: Placement, entry: int, *, selector: int = BOOT_CS, **registers: int) -> EntryState:
    """32-bit protected mode, flat segments of 4 GiB, paging and interrupts off: how Multiboot, PVH and Linux's 32-bit
    entry begin. selector: of the code segment; the data segment's is the next."""
    gdt = placement.put("the boot GDT", _gdt(_CODE_32, selector))
    state = registers | {"eip": entry, "eflags": EFLAGS_FIXED}
    return _entry(_CODE_32, gdt, state, CR0_PE | CR0_ET, 0, 0, 0, selector)


def long_mode(memory: GuestMemory, placement: Placement, entry: int, **registers: int) -> EntryState:
    """64-bit mode with the first 4 GiB mapped one to one in 2 MiB pages, interrupts off: Linux's 64-bit entry."""
    gdt = placement.put("the boot GDT", _gdt(_CODE_64))
    tables = placement.take("the boot page tables", 6 * 4096, alignment=4096)
    present_writable, large = 0x3, 0x80
    pml4 = struct.pack("<Q", tables + 0x1000 | present_writable).ljust(4096, b"\0")
    pdpt = struct.pack("<4Q", *(tables + 0x2000 + 0x1000 * n | present_writable for n in range(4))).ljust(4096, b"\0")
    pds = struct.pack("<2048Q", *(n << 21 | large | present_writable for n in range(2048)))
    memory.write(tables, pml4 + pdpt + pds)
    cr4_pae, efer_lme_lma = 0x20, 0x500
    state = registers | {"rip": entry, "rflags": EFLAGS_FIXED}
    return _entry(_CODE_64, gdt, state, CR0_PG | CR0_PE | CR0_ET, tables, cr4_pae, efer_lme_lma)
