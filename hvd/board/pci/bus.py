"""PCI bus 0: configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), the window of memory that BARs lie in, the four interrupt pins.

Port 0xCF8 takes accesses of four bytes only; a byte at 0xCF9 is the reset control register
(hvd.board.devices.reset_control), and everything else there floats.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.board.bus import floating
from hvd.board.hot import PciAddress
from hvd.board.pci.function import PciFunction

if TYPE_CHECKING:
    from hvd.board.machine import Machine

ADDRESS, DATA = 0xCF8, 0xCFC
ENABLE: Final = 1 << 31
ADDRESS_BITS: Final = ENABLE | 0x00FF_FFFC
# Up to the IOAPIC: SeaBIOS places BARs from the upper end downwards.
WINDOW: Final = range(0xE000_0000, 0xFEC0_0000)
INTX_GSIS: Final = (10, 11)
SLOTS, FUNCTIONS = 32, 8


def intx_gsi(slot: int, pin: int) -> int:
    """The GSI, and IRQ of the 8259 pair, that a pin (0 = INTA .. 3 = INTD) is wired to; level-triggered."""
    return INTX_GSIS[(slot + pin) & 1]


class PciBus:
    """The board's device: ports and the window in front, functions behind."""

    name: ClassVar[str] = "pci"
    widest: ClassVar[int] = 4

    def __init__(
        self, machine: Machine, functions: Iterable[tuple[int, int, PciFunction]], address: PciAddress | None = None
    ) -> None:
        """functions: with slot and number. address: the board's, in C. Raises ValueError when a place is taken."""
        self._machine = machine
        self._hot = address or PciAddress()
        self._functions: dict[tuple[int, int], PciFunction] = {}
        self._lines: dict[int, set[PciFunction]] = {gsi: set() for gsi in INTX_GSIS}
        self._starts: list[int] = []
        self._mapped: list[tuple[int, int, PciFunction, int]] = []  # start, end, function, BAR
        self._next_bar = WINDOW.start
        for slot, number, function in functions:
            self._add(slot, number, function)
        self.remap()

    def _add(self, slot: int, number: int, function: PciFunction) -> None:
        if not (0 <= slot < SLOTS and 0 <= number < FUNCTIONS) or (slot, number) in self._functions:
            raise ValueError(f"{function.name} cannot be function {slot:02x}.{number}")
        self._functions[slot, number] = function
        self._hot.add(slot, number)
        function.slot, function.number = slot, number
        for bar in function.bars:
            self._next_bar = (self._next_bar + bar.size - 1) & ~(bar.size - 1)
            function.preset_bar(bar, self._next_bar)
            self._next_bar += bar.size
        if pin := function.config.get(0x3D, 1):
            function.preset_interrupt_line(intx_gsi(slot, pin - 1))
        memory = self._hot.space(slot, number, function.config_asks)
        if memory is not None:
            function.config.move(memory)
        function.bus = self

    @property
    def functions(self) -> Iterable[PciFunction]:
        return self._functions.values()

    # ---- configuration

    @property
    def ports(self) -> Sequence[range]:
        return (range(ADDRESS, DATA + 4),)

    def read_port(self, port: int, size: int) -> int:
        if port >= DATA:
            function, offset = self._addressed(port)
            return floating(size) if function is None else function.read_config(offset, size)
        return self._hot.address if (port, size) == (ADDRESS, 4) else floating(size)

    def write_port(self, port: int, size: int, value: int) -> None:
        if port >= DATA:
            function, offset = self._addressed(port)
            if function is not None:
                function.write_config(offset, size, value)
        elif (port, size) == (ADDRESS, 4):
            self._hot.address = value & ADDRESS_BITS

    def _addressed(self, port: int) -> tuple[PciFunction | None, int]:
        address = self._hot.address & ADDRESS_BITS
        if not address & ENABLE or address >> 16 & 0xFF:
            return None, 0
        return self._functions.get((address >> 11 & 31, address >> 8 & 7)), (address & 0xFC) + port - DATA

    # ---- memory

    @property
    def mmio(self) -> Sequence[range]:
        return (WINDOW,)

    def remap(self) -> None:
        """A BAR was moved, or the decoding of a function's memory switched. Where BARs overlap, the one that begins
        last answers."""
        self._mapped = sorted(
            (
                (start, start + bar.size, function, bar.index)
                for function in self._functions.values()
                for start, bar in function.mapped()
            ),
            key=lambda entry: entry[0],
        )
        self._starts = [entry[0] for entry in self._mapped]

    def read_mmio(self, address: int, size: int) -> int:
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            start, end, function, bar = self._mapped[index]
            if address + size <= end:
                return function.read_bar(bar, address - start, size)
        return floating(size)

    def write_mmio(self, address: int, size: int, value: int) -> None:
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            start, end, function, bar = self._mapped[index]
            if address + size <= end:
                function.write_bar(bar, address - start, size, value)

    # ---- interrupts

    def drive_intx(self, function: PciFunction) -> None:
        """Its pin, or whether it may drive it, changed. Several functions share a line."""
        gsi = intx_gsi(function.slot, function.config.get(0x3D, 1) - 1)
        line = self._lines[gsi]
        before = bool(line)
        if function.asserts_intx:
            line.add(function)
        else:
            line.discard(function)
        if bool(line) != before:
            self._machine.set_irq(gsi, bool(line))

    # ---- life

    def reset(self) -> None:
        self._hot.address = 0
        for function in self._functions.values():
            function.reset()
        self.remap()

    def close(self) -> None:
        for function in self._functions.values():
            function.close()

    def save(self) -> dict[str, Any]:
        return {
            "address": self._hot.address & ADDRESS_BITS,
            "functions": {function.place: function.save() for function in self._functions.values()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, TypeError; the board is safe even then, but for a reset only."""
        saved.only(state, frozenset(("address", "functions")), self.name)
        functions = saved.part(state, "functions")
        if set(functions) != {function.place for function in self.functions}:
            raise ValueError("the snapshot has other PCI functions than this machine")
        self._hot.address = saved.number(state, "address", ENABLE | 0x00FF_FFFF) & ADDRESS_BITS
        try:
            for function in self._functions.values():
                function.restore(saved.part(functions, function.place))
        finally:
            self.remap()
