"""An ATA disk (ATA/ATAPI-6, clause 8): the commands of the general feature set without DMA, with 48-bit addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board.data_window import WINDOW_BYTES, DataWindow
from hvd.board.ide import identify
from hvd.board.ide.drive import (
    ABORTED,
    COUNT,
    DEVICE,
    DEVICE_HEAD,
    DEVICE_LBA,
    HIGH,
    LOW,
    MID,
    NOT_FOUND,
    READY,
    SEEK_DONE,
    UNCORRECTABLE,
    WRITE_PROTECTED,
    Drive,
)  # fmt: skip
from hvd.board.ide.identify import LBA28_SECTORS, MOST_MULTIPLE, SECTOR, Geometry
from hvd.board.saved import data, flag, number

if TYPE_CHECKING:
    from hvd.board.block import BlockImage

# SET FEATURES (clause 8.46): what is accepted and changes nothing that a guest could see.
_ENABLE_CACHE, _DISABLE_CACHE, _TRANSFER_MODE = 0x02, 0x82, 0x03
_NO_EFFECT: Final = frozenset({0x55, 0xAA, 0x66, 0xCC})  # read look-ahead off, on; power-on defaults kept, not kept
_PIO_MODES: Final = range(0x10)


class Disk(Drive):
    """A hard disk on an image."""

    kind: ClassVar[str] = "disk"
    signature: ClassVar[bytes] = bytes((1, 1, 0, 0))
    reset_status: ClassVar[int] = READY | SEEK_DONE
    idle_status: ClassVar[int] = READY | SEEK_DONE

    def __init__(self, image: BlockImage, serial: str, window: DataWindow, data_port: int) -> None:
        """serial: at most 20 characters."""
        self._image = image
        self._serial = serial
        self.sectors: Final = image.size_bytes // SECTOR
        self._default = Geometry.of(self.sectors)
        super().__init__(window, data_port)

    def reset_settings(self) -> None:
        self._geometry = self._default
        self._multiple = MOST_MULTIPLE  # as PC firmware leaves it: Linux takes over what is set and sets nothing
        self._write_cache = True
        # The transfer under way: its next sector, how many are left, sectors of a block, registers of 48 bits.
        self._sector = self._left = 0
        self._step = 1
        self._wide = False

    def command(self, code: int) -> None:
        self._left = 0
        COMMANDS.get(code, Drive.abort)(self)

    # ---- addresses

    def _address(self, wide: bool) -> int | None:
        """The first sector that the registers name; None: there is none such."""
        registers = self.registers
        if wide:
            high = int.from_bytes(self.previous[LOW : HIGH + 1], "little")
            return high << 24 | int.from_bytes(registers[LOW : HIGH + 1], "little")
        head = registers[DEVICE] & DEVICE_HEAD
        if registers[DEVICE] & DEVICE_LBA:
            return head << 24 | int.from_bytes(registers[LOW : HIGH + 1], "little")
        cylinder, sector = registers[MID] | registers[HIGH] << 8, registers[LOW]
        if not 1 <= sector <= self._geometry.track or head >= self._geometry.heads:
            return None
        return (cylinder * self._geometry.heads + head) * self._geometry.track + sector - 1

    def _count(self, wide: bool) -> int:
        """Sectors; 0 stands for the most."""
        if wide:
            return self.previous[COUNT] << 8 | self.registers[COUNT] or 0x10000
        return self.registers[COUNT] or 0x100

    def _show(self, sector: int, count: int) -> None:
        """Where the command stands, in the registers that told where it begins."""
        registers = self.registers
        registers[COUNT] = count & 0xFF
        if self._wide:
            self.previous[COUNT] = count >> 8 & 0xFF
            registers[LOW : HIGH + 1] = (sector & 0xFFFFFF).to_bytes(3, "little")
            self.previous[LOW : HIGH + 1] = (sector >> 24 & 0xFFFFFF).to_bytes(3, "little")
        elif registers[DEVICE] & DEVICE_LBA:
            registers[LOW : HIGH + 1] = (sector & 0xFFFFFF).to_bytes(3, "little")
            registers[DEVICE] = registers[DEVICE] & ~DEVICE_HEAD | sector >> 24 & DEVICE_HEAD
        else:
            track, sector_of_track = divmod(sector, self._geometry.track)
            cylinder, head = divmod(track, self._geometry.heads)
            registers[LOW : HIGH + 1] = bytes((sector_of_track + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF))
            registers[DEVICE] = registers[DEVICE] & ~DEVICE_HEAD | head

    def _locate(self, wide: bool) -> bool:
        """Take the transfer's place from the registers; False: it is not on the disk, and the command has failed."""
        address, count = self._address(wide), self._count(wide)
        self._wide = wide
        if address is None or address + count > self.sectors:
            self.fail(NOT_FOUND)
            return False
        self._sector, self._left = address, count
        return True

    # ---- reading and writing

    def read(self, wide: bool, step: int) -> None:
        """step: sectors of a block."""
        self._step = step
        if self._locate(wide):
            self._read_block()

    def _read_block(self) -> None:
        count = min(self._step, self._left)
        try:
            self._image.read(self._sector * SECTOR, [self.data[: count * SECTOR]])
        except OSError:
            self._show(self._sector, self._left)
            self._left = 0
            self.fail(UNCORRECTABLE)
            return
        self._advance(count)
        self.begin_block(count * SECTOR, out=False)
        self.raise_interrupt()

    def _advance(self, count: int) -> None:
        self._sector += count
        self._left -= count
        self._show(self._sector - 1, self._left)

    def block_read(self) -> None:
        if self._left:
            self._read_block()
        # Nothing more is said after the last block: its interrupt was the one before it.

    def write(self, wide: bool, step: int) -> None:
        self._step = step
        if self._image.read_only:
            self.fail(WRITE_PROTECTED | ABORTED)
        elif self._locate(wide):
            self.begin_block(min(self._step, self._left) * SECTOR, out=True)

    def block_written(self, length: int) -> None:
        try:
            self._image.write(self._sector * SECTOR, [self.data[:length]])
            self._advance(length // SECTOR)
            if not self._left and not self._write_cache:
                self._image.flush()
        except OSError:
            self._left = 0
            self.abort()
            return
        if self._left:
            self.begin_block(min(self._step, self._left) * SECTOR, out=True)
            self.raise_interrupt()
        else:
            self.done()

    def transfer_multiple(self, wide: bool, writes: bool) -> None:
        """READ MULTIPLE and WRITE MULTIPLE."""
        if not self._multiple:
            self.abort()
        elif writes:
            self.write(wide, self._multiple)
        else:
            self.read(wide, self._multiple)

    def verify(self, wide: bool) -> None:
        """READ VERIFY SECTORS: read, without handing over."""
        if not self._locate(wide):
            return
        while self._left:
            count = min(MOST_MULTIPLE, self._left)
            try:
                self._image.read(self._sector * SECTOR, [self.data[: count * SECTOR]])
            except OSError:
                self._show(self._sector, self._left)
                self._left = 0
                self.fail(UNCORRECTABLE)
                return
            self._advance(count)
        self.done()

    def flush(self) -> None:
        """FLUSH CACHE."""
        try:
            self._image.flush()
        except OSError:
            self.abort()
        else:
            self.done()

    # ---- about the disk

    def identify(self) -> None:
        """IDENTIFY DEVICE."""
        answer = identify.identify_disk(
            self.sectors, self._serial, self._default, self._geometry, self._multiple, self._write_cache
        )
        self.data[:SECTOR] = answer
        self.begin_block(SECTOR, out=False)
        self.raise_interrupt()

    def set_multiple(self) -> None:
        """SET MULTIPLE MODE: 0 turns it off."""
        count = self.registers[COUNT]
        if count > MOST_MULTIPLE or count & (count - 1):
            self.abort()
            return
        self._multiple = count
        self.done()

    def set_features(self) -> None:
        """SET FEATURES."""
        if self.feature in (_ENABLE_CACHE, _DISABLE_CACHE):
            self._write_cache = self.feature == _ENABLE_CACHE
            self.flush()
        elif self.feature in _NO_EFFECT or (self.feature == _TRANSFER_MODE and self.registers[COUNT] in _PIO_MODES):
            self.done()
        else:
            self.abort()

    def initialize_parameters(self) -> None:
        """INITIALIZE DEVICE PARAMETERS: another translation."""
        heads, track = (self.registers[DEVICE] & DEVICE_HEAD) + 1, self.registers[COUNT]
        if not track:
            self.abort()
            return
        self._geometry = Geometry(min(self.sectors // (heads * track), 0xFFFF), heads, track)
        self.done()

    def nothing(self) -> None:
        """SEEK, RECALIBRATE, STANDBY, IDLE: nothing moves, nothing sleeps."""
        self.done()

    def read_native_max(self, wide: bool) -> None:
        """READ NATIVE MAX ADDRESS: the last sector."""
        last = self.sectors - 1
        self._wide = wide
        if not wide:
            self.registers[DEVICE] |= DEVICE_LBA
            last = min(last, LBA28_SECTORS)
        self._show(last, self.registers[COUNT])
        self.done()

    def check_power(self) -> None:
        """CHECK POWER MODE: active."""
        self.registers[COUNT] = 0xFF
        self.done()

    # ---- state

    def save(self) -> dict[str, Any]:
        return super().save() | {
            "heads": self._geometry.heads,
            "track": self._geometry.track,
            "cylinders": self._geometry.cylinders,
            "multiple": self._multiple,
            "write_cache": self._write_cache,
            "sector": self._sector,
            "left": self._left,
            "step": self._step,
            "wide": self._wide,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        geometry = Geometry(
            number(state, "cylinders", 0xFFFF), number(state, "heads", 16, least=1), number(state, "track", 255, least=1)
        )
        multiple, step = number(state, "multiple", MOST_MULTIPLE), number(state, "step", MOST_MULTIPLE, least=1)
        sector, left = number(state, "sector", self.sectors), number(state, "left", 0x10000)
        write_cache, wide = flag(state, "write_cache"), flag(state, "wide")
        if sector + left > self.sectors:
            raise ValueError(f"{left} sectors at {sector} of {self.sectors}")
        block = len(data(state, "block", b"", WINDOW_BYTES))
        if flag(state, "out") and (block > left * SECTOR or block % SECTOR):
            raise ValueError(f"{block} bytes from the guest, but {left} sectors are to be written")
        super().restore(state)
        self._geometry, self._multiple, self._write_cache = geometry, multiple, write_cache
        self._sector, self._left, self._step, self._wide = sector, left, step, wide


Handler = Callable[[Disk], None]
# Command codes of table C.2 of the standard.
COMMANDS: Final[dict[int, Handler]] = {
    **dict.fromkeys(range(0x10, 0x20), Disk.nothing),  # RECALIBRATE
    0x20: lambda disk: disk.read(False, 1),
    0x21: lambda disk: disk.read(False, 1),
    0x24: lambda disk: disk.read(True, 1),
    0x27: lambda disk: disk.read_native_max(True),
    0x29: lambda disk: disk.transfer_multiple(True, writes=False),
    0x30: lambda disk: disk.write(False, 1),
    0x31: lambda disk: disk.write(False, 1),
    0x34: lambda disk: disk.write(True, 1),
    0x39: lambda disk: disk.transfer_multiple(True, writes=True),
    0x40: lambda disk: disk.verify(False),
    0x41: lambda disk: disk.verify(False),
    0x42: lambda disk: disk.verify(True),
    **dict.fromkeys(range(0x70, 0x80), Disk.nothing),
    0x91: Disk.initialize_parameters,
    0xC4: lambda disk: disk.transfer_multiple(False, writes=False),
    0xC5: lambda disk: disk.transfer_multiple(False, writes=True),
    0xC6: Disk.set_multiple,
    **dict.fromkeys((0xE0, 0xE1, 0xE2, 0xE3), Disk.nothing),  # STANDBY IMMEDIATE, IDLE IMMEDIATE, STANDBY, IDLE
    0xE5: Disk.check_power,
    0xE7: Disk.flush,
    0xEA: Disk.flush,
    0xEC: Disk.identify,
    0xEF: Disk.set_features,
    0xF8: lambda disk: disk.read_native_max(False),
}
