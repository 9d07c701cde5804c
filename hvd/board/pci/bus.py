"""PCI bus 0: configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), the window of memory that BARs lie in, the four interrupt pins. What of it
needs no function is in C (hvd/board/native/pci.c); the rest comes here.

Port 0xCF8 takes accesses of four bytes only; a byte at 0xCF9 is the reset control register
(hvd.board.devices.reset_control), and everything else there floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.board.bus import floating
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

    def __init__(self, machine: Machine, functions: Iterable[tuple[int, int, PciFunction]]) -> None:
        """functions: with slot and number. Raises ValueError when a place is taken."""
        self.registers = machine.board.pci()
        self.registers.clear()
        self._functions: dict[tuple[int, int], PciFunction] = {}
        self._next_bar = WINDOW.start
        for slot, number, function in functions:
            self._add(slot, number, function)

    def _add(self, slot: int, number: int, function: PciFunction) -> None:
        if not (0 <= slot < SLOTS and 0 <= number < FUNCTIONS) or (slot, number) in self._functions:
            raise ValueError(f"{function.name} cannot be function {slot:02x}.{number}")
        self._functions[slot, number] = function
        function.slot, function.number = slot, number
        for bar in function.bars:
            self._next_bar = (self._next_bar + bar.size - 1) & ~(bar.size - 1)
            function.preset_bar(bar, self._next_bar)
            self._next_bar += bar.size
        if pin := function.config.get(0x3D, 1):
            function.preset_interrupt_line(intx_gsi(slot, pin - 1))
        function.config.move(self.registers.add(slot, number, function.config.space))
        function.attach(self)

    @property
    def functions(self) -> Iterable[PciFunction]:
        return self._functions.values()

    # ---- configuration

    @property
    def ports(self) -> Sequence[range]:
        return (range(ADDRESS, DATA + 4),)

    def read_port(self, port: int, size: int) -> int:
        value = self.registers.read_port(port, size)
        if value is None and (addressed := self._addressed(port)) is not None:
            function, offset = addressed
            value = function.read_config(offset, size)
        return floating(size) if value is None else value

    def write_port(self, port: int, size: int, value: int) -> None:
        if not self.registers.write_port(port, size, value) and (addressed := self._addressed(port)) is not None:
            function, offset = addressed
            function.write_config(offset, size, value)

    def _addressed(self, port: int) -> tuple[PciFunction, int] | None:
        if port < DATA:
            return None
        address = self.registers.address
        return self._functions[address >> 11 & 31, address >> 8 & 7], (address & 0xFC) + port - DATA

    # ---- memory

    @property
    def mmio(self) -> Sequence[range]:
        return (WINDOW,)

    def _answers(self, address: int, size: int) -> tuple[PciFunction, int, int] | None:
        """The function, its BAR and the offset in it."""
        found = self.registers.find(address, size)
        if found is None:
            return None
        place, bar, offset = found
        return self._functions[place >> 3, place & 7], bar, offset

    def read_mmio(self, address: int, size: int) -> int:
        if (found := self._answers(address, size)) is None:
            return floating(size)
        function, bar, offset = found
        return function.read_bar(bar, offset, size)

    def write_mmio(self, address: int, size: int, value: int) -> None:
        if (found := self._answers(address, size)) is not None:
            function, bar, offset = found
            function.write_bar(bar, offset, size, value)

    # ---- life

    def reset(self) -> None:
        self.registers.address = 0
        for function in self._functions.values():
            function.reset()
        self.registers.drive()

    def close(self) -> None:
        for function in self._functions.values():
            function.close()

    def save(self) -> dict[str, Any]:
        return {
            "address": self.registers.address & ADDRESS_BITS,
            "functions": {function.place: function.save() for function in self._functions.values()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, TypeError; the board is safe even then, but for a reset only."""
        saved.only(state, frozenset(("address", "functions")), self.name)
        functions = saved.part(state, "functions")
        if set(functions) != {function.place for function in self.functions}:
            raise ValueError("the snapshot has other PCI functions than this machine")
        self.registers.address = saved.number(state, "address", ENABLE | 0x00FF_FFFF) & ADDRESS_BITS
        try:
            for function in self._functions.values():
                function.restore(saved.part(functions, function.place))
        finally:
            self.registers.drive()
