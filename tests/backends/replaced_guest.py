"""stream_guest's guest under paravirt: its kernel was assembled by hvpvcc's filter, and sites are replaced as hvd's loader does it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from replaced_programs import AREA, replacements, sites, switched
from stream_guest import Program, Side
from stream_kernel import CODE, KERNEL, RAM, STREAM_MEMORY, STREAMS, TABLE, kernel_image

from hvd.backends.paravirt.vcpu import create
from hvd.board import cpuid
from hvd.board.hot import MMIO, HotBoard
from hvd.board.memory import GuestMemory
from hvd.cell.paravirt import PAGE
from hvd.hvpvcc.elf import Elf
from hvd.hvpvcc.main import DIRECTORY
from hvd.hvpvcc.sites import Site, read_table
from hvd.hvpvcc.thunks import FIRST_THUNK
from hvd.trace.points import BackendId


class ReplacedSide(Side):
    def __init__(self, directory: Path) -> None:
        super().__init__("paravirt", directory)
        real, linker = shutil.which("as"), shutil.which("ld")
        assert real and linker
        os.environ.setdefault("HVPVCC_AS", real)
        self.image, self.handlers, self.gates = kernel_image(directory, self.paging, DIRECTORY + "as")
        link = (linker, "-m", "elf_i386", f"-Ttext={KERNEL + CODE:#x}", "-e", "0", "-o", "streams.elf", "streams.o")
        subprocess.run(link, cwd=directory, check=True, timeout=30)
        table = read_table(Elf((directory / "streams.elf").read_bytes()))
        assert table
        self._kernel_sites = table.sites

    def _open(self) -> None:
        self.memory = GuestMemory(RAM)
        self.memory.add_mmio(0xC000_0000, 0x1000, "device")
        for name, where in MMIO.items():
            self.memory.add_mmio(where.start, len(where), name, hot=True)
        self.board = HotBoard(BackendId.PARAVIRT)
        self._claim()
        self.vcpu = create(self.board, self.memory, cpuid.leaves, "")

    def limit(self, address: int) -> None:
        """Programs have no pages from there on; 0 = none is set. For guests that are started afterwards."""
        assert self.vcpu
        self.vcpu._user_limit = address  # type: ignore[attr-defined]

    def _load(self, programs: Sequence[Program], timer: int) -> int:
        placed = super()._load(programs, timer)
        memory, found = self.memory, list[Site]()
        for number, program in enumerate(programs[:placed]):
            if program.ring:
                continue
            (address,) = struct.unpack("<I", memory.read(TABLE + 64 * number, 4))
            code, _ = program.code()
            memory.write(address - STREAMS + STREAM_MEMORY, switched(code))
            for chunk in program.chunks:
                for atom in chunk:
                    found += sites(atom, address)
                    address += len(atom)
        written, thunks = replacements([*found, *self._kernel_sites])
        for address, code in written:
            memory.write(address - STREAMS + STREAM_MEMORY if address < KERNEL else address - KERNEL, code)
        memory.write(AREA, PAGE)
        memory.write(AREA + FIRST_THUNK, thunks)
        return placed
