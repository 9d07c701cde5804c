"""One function of a PCI device: header type 0 (PCI 3.0, 6.1 and 6.2), BARs in memory, the interrupt pin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hvd.board import saved
from hvd.board.bus import floating
from hvd.board.pci.config_space import ConfigSpace

if TYPE_CHECKING:
    from hvd.board.pci.bus import PciBus
    from hvd.board.pci.registers import PciRegisters

COMMAND: Final = 0x04
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 10
# Beside those above, bits that have no effect here but that software switches: parity, SERR.
COMMAND_WRITABLE: Final = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE | 1 << 6 | 1 << 8
BAR0: Final = 0x10
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
BAR_64_BIT: Final = 0x4
BAR_PREFETCHABLE: Final = 0x8
LEAST_BAR: Final = 4096  # so that no two BARs share a page


@dataclass(frozen=True, slots=True)
class Identity:
    """The first registers of the header. class_code: base class, sub-class, programming interface as 24 bits."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """A memory BAR. size: a power of two, at least LEAST_BAR."""

    index: int
    size: int
    wide: bool = False  # 64 bit: takes the next BAR's register, too

    @property
    def offset(self) -> int:
        return BAR0 + 4 * self.index


class PciFunction:
    """Base of all functions: what it has is said in __init__, the rest is overriding read_bar and write_bar."""

    def __init__(self, name: str, identity: Identity, *, bars: tuple[Bar, ...] = (), interrupt_pin: int = 0) -> None:
        """interrupt_pin: 1-4 = INTA-INTD, 0 = none."""
        self.name = name
        self.bars = bars
        self.bus: PciBus | None = None  # set by attach(); slot and number by the bus before
        self.slot = self.number = 0
        self.config = config = ConfigSpace()
        for bar in bars:
            config.space.bar_bytes[bar.index] = bar.size
            config.space.wide |= bar.wide << bar.index
        config.define(0x00, 2, identity.vendor)
        config.define(0x02, 2, identity.device)
        # No firmware need ever have run: memory is decoded from the start, at the addresses that the bus presets.
        decoding = COMMAND_MEMORY if bars else 0
        config.define(COMMAND, 2, decoding, COMMAND_WRITABLE)
        config.define(0x08, 4, identity.class_code << 8 | identity.revision)
        config.define(0x0C, 1, 0, 0xFF)  # cache line size
        config.define(0x0D, 1, 0, 0xF8)  # latency timer
        config.define(0x2C, 2, identity.subsystem_vendor)
        config.define(0x2E, 2, identity.subsystem)
        config.define(INTERRUPT_PIN, 1, interrupt_pin)

    @property
    def place(self) -> str:
        """Slot and function as lspci writes them."""
        return f"{self.slot:02x}.{self.number}"

    # ---- what the bus does

    def preset_bar(self, bar: Bar, address: int) -> None:
        """Where it lies after reset."""
        kind = BAR_64_BIT | BAR_PREFETCHABLE if bar.wide else 0
        self.config.define(bar.offset, 4, address | kind, ~(bar.size - 1) & 0xFFFF_FFFF)
        if bar.wide:
            self.config.define(bar.offset + 4, 4, address >> 32, 0xFFFF_FFFF)

    def preset_interrupt_line(self, line: int) -> None:
        """Read-only: the board's wiring is fixed, and a firmware that believes in another one would write its number."""
        self.config.define(INTERRUPT_LINE, 1, line)
        self.config.space.gsi = line

    def attach(self, bus: PciBus) -> None:
        """It is on the bus now: its slot and number are known, and config.space is where C looks."""
        self.bus = bus

    def read_config(self, offset: int, size: int) -> int:
        """Called for what config.ask() names; the rest is read without it."""
        return self.config.get(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Called for what config.tell() names; the rest is written without it."""
        self._registers.write_space(self.config.space, offset, size, value)

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        """offset + size is within the BAR; size 1, 2, 4, 8; aligned or not. Anything but an answer is a bug."""
        return floating(size)

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        return None

    # ---- what the function does

    @property
    def command(self) -> int:
        return self.config.get(COMMAND, 2)

    @property
    def may_master(self) -> bool:
        """Is it allowed to access memory by itself: DMA and message-signalled interrupts?"""
        return bool(self.config.data[COMMAND] & COMMAND_MASTER)

    @property
    def _registers(self) -> PciRegisters:
        if self.bus is None:
            raise AssertionError(f"{self.name} is on no bus")
        return self.bus.registers

    def set_intx(self, level: bool) -> None:
        """Drive its interrupt pin."""
        if level != self.config.space.intx:
            self._registers.set_intx(self.config.space, level)

    def reset(self) -> None:
        self.config.reset()
        self.config.space.intx = False

    def close(self) -> None:
        """The machine has ended."""

    def save(self) -> dict[str, Any]:
        return {"config": self.config.save(), "intx": bool(self.config.space.intx)}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, TypeError."""
        self.config.restore(saved.data(state, "config", bytes(self.config.data)))
        self.config.space.intx = False
        self.set_intx(saved.flag(state, "intx"))
