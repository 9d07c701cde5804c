"""PVH: an ELF file with the Xen note PHYS32_ENTRY (xen/include/public/arch-x86/hvm/start_info.h; Xen
docs/misc/pvh.pandoc).

Linux's uncompressed vmlinux is one (CONFIG_PVH), 32- and 64-bit. It is entered in 32-bit protected mode with EBX =
hvm_start_info.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from hvd.board.loaders import elf
from hvd.board.loaders.image import ImageFile
from hvd.board.loaders.kernel import Kernel, Placement, encode_command_line, memory_map, protected_mode
from hvd.board.memory import GuestMemory
from hvd.board.paravirt import Paravirt, note_of
from hvd.board.vcpu import EntryState
from hvd.errors import HvdError

START_INFO_MAGIC: Final = 0x336EC578
_VERSION: Final = 1  # the first with a memory map
_PHYS32_ENTRY: Final = 18  # XEN_ELFNOTE_PHYS32_ENTRY
_COMMAND_LINE_BYTES: Final = 4095


@dataclass(frozen=True, slots=True)
class Pvh(Kernel):
    """A PVH kernel with sound program headers."""

    format: ClassVar[str] = "pvh"
    image: ImageFile
    elf: elf.Elf
    entry: int
    description: str
    bits: int
    end: int
    paravirt: Paravirt | None = None

    @property
    def code_bits(self) -> int:
        return self.elf.bits

    def load(self, memory: GuestMemory, initrd: ImageFile | None, command_line: str, rsdp: int = 0) -> EntryState:
        self.check_fits(memory.low_ram_end)
        text = encode_command_line(command_line, _COMMAND_LINE_BYTES)
        placement = Placement(memory)
        for segment in self.elf.segments:
            placement.reserve(segment.physical, segment.physical + segment.memory_size)
        self.elf.load(memory, self.image)
        modules = 0
        if initrd is not None and initrd.size:
            address = placement.put_file(initrd)
            modules = placement.put("the module list", struct.pack("<QQQQ", address, initrd.size, 0, 0))
        entries = memory_map(memory)
        table = placement.put("the memory map", b"".join(struct.pack("<QQII", *entry, 0) for entry in entries))
        line = placement.put("the command line", text)
        info = struct.pack(
            "<IIIIQQQQII", START_INFO_MAGIC, _VERSION, 0, int(modules != 0), modules, line, rsdp, table, len(entries), 0
        )
        return protected_mode(placement, self.entry, ebx=placement.put("hvm_start_info", info))


def parse(image: ImageFile) -> Pvh | None:
    """None when it is no ELF file with that note. Raises HvdError IMAGE_LAYOUT when the entry lies in no segment, and
    what elf.parse raises."""
    file = elf.parse(image)
    if file is None:
        return None
    for owner, kind, value in file.notes(image):
        if owner == b"Xen" and kind == _PHYS32_ENTRY and len(value) in (4, 8):
            entry = int.from_bytes(value, "little")
            if not file.holds(entry):
                raise HvdError("IMAGE_LAYOUT", what=image.what, problem=f"its PVH entry {entry:#x} lies in no segment")
            return Pvh(image, file, entry, f"PVH kernel, ELF{file.bits}", 32, file.end, note_of(file, image))
    return None
