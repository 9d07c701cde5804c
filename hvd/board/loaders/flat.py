"""Flat binaries: any bytes, loaded where the owner says and entered at their first byte. Only on request, since
anything is one.

Entered in 32-bit protected mode with flat segments, paging and interrupts off; ESP = the load address (the stack grows
down from it), ESI = the command line as a C string, EBX and ECX = address and length of the initrd (0 without one),
all else 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from hvd.board.loaders.image import ImageFile
from hvd.board.loaders.kernel import BOOT_DATA_START, Kernel, Placement, encode_command_line, protected_mode
from hvd.board.memory import LOW_RAM_END, GuestMemory
from hvd.board.vcpu import EntryState
from hvd.errors import HvdError

# Where clients load a flat binary when its owner names no address.
DEFAULT_LOAD_ADDRESS: Final = 0x100000
_COMMAND_LINE_BYTES: Final = 4095


@dataclass(frozen=True, slots=True)
class Flat(Kernel):
    """Bytes and an address."""

    format: ClassVar[str] = "flat"
    image: ImageFile
    address: int
    description: str
    bits: int
    end: int

    def load(self, memory: GuestMemory, initrd: ImageFile | None, command_line: str, rsdp: int = 0) -> EntryState:
        self.check_fits(memory.low_ram_end)
        text = encode_command_line(command_line, _COMMAND_LINE_BYTES)
        placement = Placement(memory)
        # Some room for the stack.
        placement.reserve(max(self.address - 0x1000, 0), self.end)
        self.image.copy(0, self.image.size, memory, self.address)
        start = length = 0
        if initrd is not None and initrd.size:
            start, length = placement.put_file(initrd), initrd.size
        line = placement.put("the command line", text)
        return protected_mode(placement, self.address, esp=self.address, esi=line, ebx=start, ecx=length)


def parse(image: ImageFile, address: int) -> Flat:
    """address: guest-physical. Raises HvdError FIELD_INVALID when it is below 0x1000 or not below 3 GiB."""
    if not BOOT_DATA_START <= address < LOW_RAM_END:
        raise HvdError(
            "FIELD_INVALID", field="flat_load_address", value=hex(address),
            problem="a flat binary is loaded from 0x1000 up and below 3 GiB",
            remedy=f"{DEFAULT_LOAD_ADDRESS:#x} is a good place",
        )  # fmt: skip
    return Flat(image, address, f"flat binary at {address:#x}", 32, address + max(image.size, 1))
