"""fw_cfg: how a firmware learns what machine it runs on (QEMU docs/specs/fw_cfg.rst), ports 0x510 (selector), 0x511
(data) and 0x514 (DMA, big-endian). Machines that boot without a firmware have none.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import firmware
from hvd.board.bus import floating
from hvd.board.ide.controller import place
from hvd.board.loaders.kernel import E820_RAM
from hvd.board.pci.bus import PciBus
from hvd.board.saved import number
from hvd.board.tables import acpi_pieces
from hvd.board.virtio.block import Block
from hvd.board.virtio.pci import VirtioPci
from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.board.machine import Machine

SELECTOR, DATA, DMA = 0x510, 0x511, 0x514

SIGNATURE, ID, UUID, RAM_SIZE, NO_GRAPHIC, CPUS, NUMA, BOOT_MENU, MOST_CPUS, DIRECTORY, ACPI, SMBIOS, IRQ0_OVERRIDE, E820 = (
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x0D, 0x0E, 0x0F, 0x19, 0x8000, 0x8001, 0x8002, 0x8003,
)  # fmt: skip
FIRST_FILE: Final = 0x20
HAS_DMA: Final = 0b11  # ID: the traditional interface, and DMA
DMA_SIGNATURE: Final = int.from_bytes(b"QEMU CFG", "big")
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16

COM1: Final = 0x3F8
# Milliseconds until a machine that found nothing to boot is reset: as an int, -1 is never.
NEVER: Final = 0xFFFFFFFF


class FwCfg:
    """Items by number, read as byte streams; files are items with names."""

    name: ClassVar[str] = "fw-cfg"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._present = machine.spec.boot != "kernel"
        self._video_bios = firmware.read_video_bios() if self._present else b""
        self._selected = self._offset = self._dma_high = 0

    @cached_property
    def _items(self) -> dict[int, bytes]:
        """Made when they are asked for first: all other devices are there then."""
        return _items(self._machine, files(self._machine, self._video_bios))

    @property
    def ports(self) -> Sequence[range]:
        return (range(SELECTOR, DATA + 1), range(DMA, DMA + 8)) if self._present else ()

    def reset(self) -> None:
        self._selected = self._offset = self._dma_high = 0

    def read_port(self, port: int, size: int) -> int:
        if port >= DMA:
            whole = DMA_SIGNATURE.to_bytes(8, "big")[port - DMA :][:size]
            return int.from_bytes(whole, "little")
        return int.from_bytes(self._take(size), "little") if port == DATA else floating(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        if (port, size) == (SELECTOR, 2):
            self._select(value)
        elif size == 4 and port >= DMA:
            part = int.from_bytes(value.to_bytes(4, "little"), "big")
            if port == DMA:
                self._dma_high = part
            else:
                address = self._dma_high << 32 | part
                self._dma_high = 0
                self._transfer(address)

    def _select(self, item: int) -> None:
        self._selected, self._offset = item, 0

    def _take(self, length: int) -> bytes:
        """The next bytes of the item; zeroes behind its end."""
        data = self._items.get(self._selected, b"")[self._offset : self._offset + length]
        self._offset += length
        return data.ljust(length, b"\0")

    # ---- DMA

    def _transfer(self, address: int) -> None:
        """What lies there: control, length, address (big-endian). Control becomes 0 or DMA_ERROR."""
        try:
            control, length, target = struct.unpack(">IIQ", self._machine.memory.read(address, 16))
        except HvdError:
            return  # nobody to tell
        if control & DMA_SELECT:
            self._select(control >> 16)
        failed = bool(control & DMA_WRITE)  # no item can be written
        if control & DMA_READ and not failed:
            failed = not self._read_into(target, length)
        elif control & DMA_SKIP:
            self._offset += length
        self._store(address, struct.pack(">I", DMA_ERROR if failed else 0))

    def _read_into(self, target: int, length: int) -> bool:
        memory = self._machine.memory
        data = self._items.get(self._selected, b"")[self._offset : self._offset + length]
        try:
            memory.file_offset(target, length)
            self._offset += length
            self._store(target, data)
            if length > len(data):  # may be gigabytes
                memory.clear(target + len(data), length - len(data))
                self._machine.vcpu.memory_changed(target + len(data), length - len(data))
        except HvdError:
            return False
        return True

    def _store(self, address: int, data: bytes) -> None:
        if data:
            self._machine.memory.write(address, data)
            self._machine.vcpu.memory_changed(address, len(data))

    # ---- state

    def save(self) -> dict[str, Any]:
        """Items are made anew from the machine's configuration."""
        return {"selected": self._selected, "offset": self._offset, "dma_high": self._dma_high}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError."""
        selected, dma_high = number(state, "selected", 0xFFFF), number(state, "dma_high", 0xFFFFFFFF)
        offset = number(state, "offset", (1 << 64) - 1)
        self._selected, self._offset, self._dma_high = selected, offset, dma_high


def files(machine: Machine, video_bios: bytes) -> dict[str, bytes]:
    """By the names that SeaBIOS looks for (its docs/Runtime_config.md)."""
    ram = b"".join(struct.pack("<QQI", start, length, E820_RAM) for start, length, _ in machine.memory.ram_spans())
    tables = acpi_pieces()
    return {
        **{name: blob.data for name, blob in tables.blobs.items()},
        "etc/table-loader": tables.loader_script(),
        "etc/e820": ram,
        "etc/sercon-port": struct.pack("<H", COM1),
        "etc/boot-fail-wait": struct.pack("<I", NEVER),
        "bootorder": boot_order(machine),
        "vgaroms/vgabios.bin": video_bios,
    }


def boot_order(machine: Machine) -> bytes:
    """Open Firmware paths of the disks of the wanted kind, in the machine's order; nothing else is tried."""
    drives = {id(disk): index for index, disk in place(machine.disks).items()}
    slots = iter(
        function.slot
        for function in machine.device(PciBus).functions
        if isinstance(function, VirtioPci) and isinstance(function.device, Block)
    )
    lines = []
    for disk in machine.disks:
        if disk.spec.bus == "virtio":
            path = f"/pci@i0cf8/scsi@{next(slots):x}/disk@0,0"
        elif id(disk) in drives:
            channel, side = divmod(drives[id(disk)], 2)
            path = f"/pci@i0cf8/ide@1,1/drive@{channel:x}/disk@{side:x}"
        else:
            continue
        if disk.spec.cdrom == (machine.spec.boot == "cdrom"):
            lines.append(path)
    return "\n".join([*lines, "HALT"]).encode() + b"\0"


def _items(machine: Machine, named: Mapping[str, bytes]) -> dict[int, bytes]:
    items = {
        SIGNATURE: b"QEMU",
        ID: struct.pack("<I", HAS_DMA),
        UUID: uuid.UUID(machine.spec.uid).bytes if machine.spec.uid else bytes(16),
        RAM_SIZE: struct.pack("<Q", machine.memory_bytes),
        NO_GRAPHIC: struct.pack("<H", 0),
        CPUS: struct.pack("<H", 1),
        NUMA: struct.pack("<Q", 0),
        BOOT_MENU: struct.pack("<H", 0),
        MOST_CPUS: struct.pack("<H", 1),
        ACPI: struct.pack("<H", 0),
        SMBIOS: struct.pack("<H", 0),
        IRQ0_OVERRIDE: b"\1",
        E820: struct.pack("<I", 0),
    }
    directory = struct.pack(">I", len(named))
    for item, (name, content) in enumerate(sorted(named.items()), FIRST_FILE):
        items[item] = content
        directory += struct.pack(">IHH56s", len(content), item, 0, name.encode())
    items[DIRECTORY] = directory
    return items
