"""The PCI bus: configuration mechanism 1, headers, BARs, interrupts."""

from __future__ import annotations

import pytest
from virtio_driver import FakeMachine, Function

from hvd.board.pci.bridges import HostBridge, IsaBridge
from hvd.board.pci.bus import WINDOW, PciBus, intx_gsi
from hvd.board.pci.function import Bar, Identity, PciFunction
from hvd.board.pci.msix import Msix


class Card(PciFunction):
    """Remembers what was written to its BARs; reads give the offset."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__("card", Identity(0x1234, 0x5678, 0x020000, 3, 0x1AF4, 7), bars=(Bar(0, 0x1000), Bar(2, 0x10000, wide=True)), interrupt_pin=1)
        self.written: list[tuple[int, int, int, int]] = []
        self.msix = Msix(self, Bar(0, 0x1000), 3, machine.msi)

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        return self.msix.read(offset, size) if bar == 0 else offset

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == 0:
            self.msix.write(offset, size, value)
        self.written.append((bar, offset, size, value))

    def write_config(self, offset: int, size: int, value: int) -> None:
        super().write_config(offset, size, value)
        self.msix.deliver()


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def cards(machine: FakeMachine) -> list[Card]:
    return [Card(machine), Card(machine), Card(machine)]


@pytest.fixture
def bus(machine: FakeMachine, cards: list[Card]) -> PciBus:
    places = [(2 + n, 0, card) for n, card in enumerate(cards)]
    return PciBus(machine, [(0, 0, HostBridge()), (1, 0, IsaBridge((11, 10, 11, 10))), *places])  # type: ignore[arg-type, list-item]


def test_mechanism_1(bus: PciBus) -> None:
    """As Linux looks for it (pci_check_type1)."""
    assert bus.read_port(0xCF8, 4) == 0
    bus.write_port(0xCFB, 1, 1)
    bus.write_port(0xCF8, 4, 0x8000_0000)
    assert bus.read_port(0xCF8, 4) == 0x8000_0000
    assert bus.read_port(0xCFC, 4) == 0x1237_8086
    assert bus.read_port(0xCFC, 2) == 0x8086 and bus.read_port(0xCFE, 2) == 0x1237 and bus.read_port(0xCFF, 1) == 0x12
    bus.write_port(0xCF8, 4, 0x0000_0000)
    assert bus.read_port(0xCFC, 4) == 0xFFFF_FFFF, "not enabled"
    for absent in (0x8000_0100, 0x8000_F800, 0x8001_0000):
        bus.write_port(0xCF8, 4, absent)
        assert bus.read_port(0xCFC, 4) == 0xFFFF_FFFF
        bus.write_port(0xCFC, 4, 0)
    assert bus.read_port(0xCF8, 2) == 0xFFFF and bus.read_port(0xCFA, 1) == 0xFF


def test_the_header(bus: PciBus) -> None:
    card = Function(bus, 2)
    assert (card.read(0x00), card.read(0x08), card.read(0x2C)) == (0x5678_1234, 0x0200_0003, 0x0007_1AF4)
    card.write(0x00, 0xFFFF_FFFF)
    card.write(0x08, 0)
    assert (card.read(0x00), card.read(0x08)) == (0x5678_1234, 0x0200_0003)
    card.write(0x3C, 0xFFFF_FFFF)
    assert card.read(0x3C, 1) == 10 and card.read(0x3D, 1) == 1
    assert Function(bus, 3).read(0x3C, 1) == 11
    isa = Function(bus, 1)
    isa.write(0x60, 0x0505_0505)
    assert isa.read(0x60) == 0x0A0B_0A0B and isa.read(0x0E, 1) == 0x80


def test_bars_are_there_sized_moved_and_switched(bus: PciBus, cards: list[Card]) -> None:
    card = Function(bus, 3)
    low, wide = card.bar(0), card.bar(2)
    assert low in WINDOW and wide in WINDOW and low % 0x1000 == wide % 0x10000 == 0
    assert bus.read_mmio(wide + 0x1234, 4) == 0x1234, "decoded without a firmware"
    card.write(0x18, 0xFFFF_FFFF)
    card.write(0x1C, 0xFFFF_FFFF)
    assert (card.read(0x18), card.read(0x1C)) == (0xFFFF_000C, 0xFFFF_FFFF)
    card.write(0x10, 0xFFFF_FFFF)
    assert card.read(0x10) == 0xFFFF_F000 and card.read(0x14) == 0
    card.write(0x18, 0xFE00_0000)
    card.write(0x1C, 0)
    assert bus.read_mmio(0xFE00_0042, 2) == 0x42
    assert bus.read_mmio(wide, 4) == 0xFFFF_FFFF
    assert bus.read_mmio(0xFE00_FFFE, 4) == 0xFFFF_FFFF, "over its end"
    bus.write_mmio(0xFE00_0008, 8, 5)
    assert cards[1].written == [(2, 8, 8, 5)]
    card.write(0x04, 0, 2)
    assert bus.read_mmio(0xFE00_0042, 2) == 0xFFFF
    bus.reset()
    assert card.bar(2) == wide and bus.read_mmio(wide + 2, 1) == 2


def test_intx_is_shared_and_can_be_disabled(bus: PciBus, cards: list[Card], machine: FakeMachine) -> None:
    assert [intx_gsi(slot, 0) for slot in (2, 3, 4)] == [10, 11, 10]
    cards[0].set_intx(True)
    cards[2].set_intx(True)
    assert machine.lines == {10: True, 11: False}
    assert Function(bus, 2).read(0x06, 2) & 8
    cards[0].set_intx(False)
    assert machine.lines[10]
    Function(bus, 4).write(0x04, 0x402, 2)
    assert not machine.lines[10] and Function(bus, 4).read(0x06, 2) & 8, "pending, but not driven"
    Function(bus, 4).write(0x04, 0x002, 2)
    assert machine.lines[10]
    bus.reset()
    assert not machine.lines[10] and not Function(bus, 4).read(0x06, 2) & 8


def test_msix(bus: PciBus, cards: list[Card], machine: FakeMachine) -> None:
    card, one = Function(bus, 2), cards[0]
    ((identifier, at),) = card.capabilities()
    assert identifier == 0x11 and card.read(at + 2, 2) == 2
    table = card.bar(0)
    card.write(0x04, 6, 2)
    card.write(at + 2, 0x8000, 2)
    one.msix.fire(1)
    assert machine.messages == [] and bus.read_mmio(table + 0x800, 4) == 2, "masked after reset"
    for offset, value in ((0, 0xFEE0_1000), (4, 0), (8, 0x41), (12, 0)):
        bus.write_mmio(table + 16 + offset, 4, value)
    assert machine.messages == [(0xFEE0_1000, 0x41)] and bus.read_mmio(table + 0x800, 8) == 0
    card.write(at + 2, 0xC000, 2)
    one.msix.fire(1)
    one.msix.fire(9)
    assert len(machine.messages) == 1
    card.write(at + 2, 0x8000, 2)
    assert len(machine.messages) == 2
    card.write(0x04, 2, 2)
    one.msix.fire(1)
    assert len(machine.messages) == 2, "not without bus mastering"
    card.write(0x04, 6, 2)
    assert len(machine.messages) == 3


def test_two_functions_at_one_place(machine: FakeMachine) -> None:
    with pytest.raises(ValueError, match=r"00\.0"):
        PciBus(machine, [(0, 0, HostBridge()), (0, 0, HostBridge())])  # type: ignore[arg-type]


def test_saved_and_restored(machine: FakeMachine, bus: PciBus, cards: list[Card]) -> None:
    Function(bus, 2).write(0x10, 0xFE10_0000)
    Function(bus, 2).write(0x04, 0x6, 2)
    cards[1].set_intx(True)
    state = bus.save()
    fresh = FakeMachine()
    other = PciBus(fresh, [(0, 0, HostBridge()), (1, 0, IsaBridge((11, 10, 11, 10))), *((2 + n, 0, Card(fresh)) for n in range(3))])  # type: ignore[arg-type, list-item]
    other.restore(state)
    assert other.save() == state and fresh.lines == {10: False, 11: True}
    assert Function(other, 2).bar(0) == 0xFE10_0000
    state["functions"]["00.0"]["config"] = "ff" * 256
    with pytest.raises(ValueError, match="another function"):
        other.restore(state)
