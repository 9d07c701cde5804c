"""Guest-physical memory: one sealed memfd for all RAM, and the list of regions of the guest-physical address space.

RAM lies from 0 up to 3 GiB, the rest from 4 GiB up, as on a PC, whose last GiB below 4 GiB belongs to devices; a
machine with a firmware has its ROM at the end of those 4 GiB. The ROM lies in the memfd behind the RAM.
0xA0000-0xFFFFF (screen memory and the ROM area) is storage like the rest; only the memory maps handed to guests say
"reserved".
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Final

from hvd.board.libhv import slow_library
from hvd.errors import HvdError

GRANULE: Final = 4096
LEAST: Final = 64 << 10
LOW_RAM_END: Final = 3 << 30
HIGH_RAM_START: Final = 4 << 30
LARGE_PAGE: Final = 2 << 20  # of the host
_PIECE: Final = 64 << 10


class RegionKind(enum.IntEnum):
    """What lies at an address; the values are those of hvd.v1.MemoryRegion.Kind."""

    RAM = 1
    ROM = 2
    MMIO = 3
    HOLE = 4  # floats: reads as all ones, writes are lost


@dataclass(frozen=True, slots=True)
class Region:
    """A range of the guest-physical address space; all in bytes."""

    start: int
    length: int
    kind: RegionKind
    owner: str
    file_offset: int = 0  # of RAM and ROM: where it lies in the memory file
    hot: bool = False  # of MMIO: the C board answers (HotBoard.mmio_read), not the Python bus

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.start + self.length


def check_size(size: int) -> None:
    """Can a guest have that many bytes of RAM on this host now?

    Raises HvdError MEMORY_TOO_SMALL (below 64 KiB), MEMORY_ALIGNMENT (no multiple of 4096), MEMORY_TOO_LARGE (more
    than the host's MemAvailable).
    """
    if size < LEAST:
        raise HvdError("MEMORY_TOO_SMALL", memory=size, least=LEAST)
    if size % GRANULE:
        raise HvdError("MEMORY_ALIGNMENT", memory=size, granule=GRANULE)
    available = host_memory_available()
    if size > available:
        raise HvdError("MEMORY_TOO_LARGE", memory=size, available=available)


def host_memory_available() -> int:
    """Bytes that the host can give without swapping (MemAvailable of proc(5), /proc/meminfo)."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    raise HvdError("INTERNAL", problem="/proc/meminfo has no MemAvailable")


class GuestMemory:
    """The RAM of one guest and the map of its guest-physical address space.

    The memfd is sealed against resizing, so that whoever maps it (a backend, another process) can rely on its size.
    Pages that nobody wrote cost nothing, and reading them here keeps it so: read() goes through the file, since a read
    through the mapping would allocate the page.
    """

    def __init__(self, size: int, rom: bytes = b"") -> None:
        """size: bytes of RAM. rom: what ends at 4 GiB, a multiple of 4096 bytes, which the guest cannot change. Raises
        what check_size raises."""
        check_size(size)
        if len(rom) % GRANULE or len(rom) > HIGH_RAM_START - LOW_RAM_END:
            raise ValueError(f"a ROM of {len(rom)} bytes")
        self.size: Final = size
        low = min(size, LOW_RAM_END)
        self._spans: list[tuple[int, int, int]] = [(0, low, 0)]
        if size > low:
            self._spans.append((HIGH_RAM_START, size - low, low))
        self._rom = [Region(HIGH_RAM_START - len(rom), len(rom), RegionKind.ROM, "firmware", size)] if rom else []
        self._mmio: list[Region] = []
        self.taken: Final[list[tuple[int, int]]] = []  # offset and length in the memory file of what take() was asked for
        whole = size + len(rom)
        self._fd = os.memfd_create("hvd-guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, whole)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._map = mmap.mmap(self._fd, whole, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._map[size:] = rom
        except BaseException:
            os.close(self._fd)
            raise
        # The mapping closes itself when nobody has it any more; so does this.
        self._close_fd = weakref.finalize(self, os.close, self._fd)
        self.whole: Final = memoryview(self._map)  # by offset in the memory file
        anchor = ctypes.c_char.from_buffer(self._map)
        self._host_address = ctypes.addressof(anchor)
        del anchor  # or the mapping could not be closed

    def close(self) -> None:
        """Unmap and close. Nobody may use host_address any more."""
        self.whole.release()
        self._map.close()
        self._close_fd()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The memfd; it stays owned by this object."""
        return self._fd

    @property
    def host_address(self) -> int:
        """Where file offset 0 is mapped in this process, readable and writable."""
        return self._host_address

    @property
    def rom(self) -> bytes:
        """What ends at 4 GiB; empty without a firmware."""
        return b"".join(self._map[rom.file_offset : rom.file_offset + rom.length] for rom in self._rom)

    @property
    def low_ram_end(self) -> int:
        """First address behind the RAM that begins at 0."""
        return self._spans[0][1]

    @property
    def buffer(self) -> mmap.mmap:
        """All RAM, by offset in the memory file: for struct's unpack_from and pack_into at what file_offset() gave."""
        return self._map

    def ram_spans(self) -> list[tuple[int, int, int]]:
        """RAM as (guest-physical address, length, file offset), ascending: one span, or two above 3 GiB."""
        return list(self._spans)

    def file_offset(self, address: int, length: int = 1) -> int:
        """Offset in the memory file of guest-physical RAM. Raises HvdError ADDRESS_OUTSIDE when any of its bytes is
        not RAM."""
        if length >= 0:
            for start, span, offset in self._spans:
                if start <= address and address + length <= start + span:
                    return offset + address - start
        raise HvdError("ADDRESS_OUTSIDE", address=hex(address), length=length)

    def read(self, address: int, length: int) -> bytes:
        """Bytes of RAM or of the ROM. Raises HvdError ADDRESS_OUTSIDE."""
        for rom in self._rom:
            if rom.start <= address and length >= 0 and address + length <= rom.end:
                offset = rom.file_offset + address - rom.start
                break
        else:
            offset = self.file_offset(address, length)
        pieces = bytearray()
        while len(pieces) < length:  # pread gives at most 2 GiB at once
            pieces += os.pread(self._fd, length - len(pieces), offset + len(pieces))
        return bytes(pieces)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write RAM. Raises HvdError ADDRESS_OUTSIDE; then nothing was written. The caller tells the vcpu
        (Vcpu.memory_changed)."""
        length = memoryview(data).nbytes
        offset = self.file_offset(address, length)
        self._map[offset : offset + length] = data

    def store_file(self, address: int, file: int, offset: int, length: int) -> int:
        """write() of what a regular file's descriptor has there: through the memory file, which costs no page fault for each page and does not map
        it here. How much it had: less than length when it is shorter. Raises HvdError ADDRESS_OUTSIDE, NATIVE_MISSING; OSError, when the host has
        no memory left. One thread at a time: nothing else uses the position of the memory file."""
        done = int(slow_library().hv_store_file(self._fd, self.file_offset(address, length), file, offset, length))
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        return done

    def take(self, address: int, length: int) -> None:
        """Let the host give pages for RAM that is zero, and that nobody writes to meanwhile, large ones where whole ones fit in. Raises HvdError
        ADDRESS_OUTSIDE, NATIVE_MISSING; OSError, when the host has no memory left."""
        offset = self.file_offset(address, length)
        zero = memoryview(bytes(min(length, _PIECE)))
        done = 0
        while done < length:
            done += os.pwrite(self._fd, zero[: length - done], offset + done)
        slow_library().hv_make_large(self._fd, offset, length)
        self.taken.append((offset, length))

    def clear(self, address: int, length: int) -> None:
        """Make RAM zero; whole pages are given back to the host. Raises HvdError ADDRESS_OUTSIDE."""
        offset = self.file_offset(address, length)
        end = offset + length
        first, last = -(-offset // GRANULE) * GRANULE, end // GRANULE * GRANULE
        if first >= last:
            self._map[offset:end] = bytes(length)
            return
        self._map[offset:first] = bytes(first - offset)
        self._map.madvise(mmap.MADV_REMOVE, first, last - first)
        self._map[last:end] = bytes(end - last)

    def clear_all(self) -> None:
        """All RAM as it was when the guest was made."""
        self._map.madvise(mmap.MADV_REMOVE, 0, self.size)
        self.taken.clear()

    def view(self, address: int, length: int) -> memoryview:
        """A writable view of RAM, to read a file into. Release it before close(). Raises HvdError ADDRESS_OUTSIDE."""
        offset = self.file_offset(address, length)
        return self.whole[offset : offset + length]

    def allocated_bytes(self) -> int:
        """What the host has spent on it so far."""
        return os.fstat(self._fd).st_blocks * 512

    def add_mmio(self, start: int, length: int, owner: str, *, hot: bool = False) -> None:
        """A device claims a range outside of RAM. Raises ValueError when the range is taken: a bug of the board, not
        of the guest."""
        new = Region(start, length, RegionKind.MMIO, owner, hot=hot)
        taken = [Region(start, length, RegionKind.RAM, "ram", offset) for start, length, offset in self._spans]
        for other in (*taken, *self._rom, *self._mmio):
            if new.start < other.end and other.start < new.end:
                raise ValueError(f"{owner} at {start:#x} overlaps {other.owner} at {other.start:#x}")
        if start < 0 or length <= 0:
            raise ValueError(f"{owner}: {length} bytes at {start:#x} are no range")
        self._mmio.append(new)
        self._mmio.sort(key=lambda region: region.start)

    def regions(self) -> list[Region]:
        """The whole map, ascending and without gaps up to 4 GiB or the end of the last region. Above it everything
        floats."""
        solid = [Region(start, length, RegionKind.RAM, "ram", offset) for start, length, offset in self._spans]
        solid = sorted([*solid, *self._rom, *self._mmio], key=lambda region: region.start)
        result: list[Region] = []
        end = 0
        for region in solid:
            if region.start > end:
                result.append(Region(end, region.start - end, RegionKind.HOLE, "none"))
            result.append(region)
            end = region.end
        if end < HIGH_RAM_START:
            result.append(Region(end, HIGH_RAM_START - end, RegionKind.HOLE, "none"))
        return result
