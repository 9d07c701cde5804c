"""What C answers of PCI without Python: configuration spaces, BARs, the registers of virtio."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from hot_board import read, write
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pci import Card
from virtio_driver import CountingBoard, FakeMachine, bus_of

from hvd.board.hot import HotBoard, MmioResult, PortResult
from hvd.board.pci.bridges import HostBridge
from hvd.board.pci.bus import WINDOW, PciBus
from hvd.board.pci.registers import SPACES
from hvd.board.virtio.console import Console
from hvd.board.virtio.queue import Queue, QueueError
from hvd.board.virtio.rng import Rng

COMMON, ISR, NOTIFY = 0, 0x1000, 0x3000


class Asking(Card):
    """Wants to be asked for one dword and told of another."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__(machine)
        self.config.define(0x48, 4, 0, 0xFFFF_FFFF)
        self.config.ask(range(0x40, 0x44))
        self.config.tell(range(0x48, 0x4C))


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def bus(machine: FakeMachine) -> PciBus:
    functions = [(0, 0, HostBridge()), (2, 0, Asking(machine)), (3, 7, Card(machine)), *((slot, 0, Card(machine)) for slot in range(4, 18))]
    made = PciBus(machine, functions)  # type: ignore[arg-type]
    for ports in made.ports:
        machine.board.claim(ports)
    return made


def address(board: HotBoard, slot: int, number: int, offset: int) -> None:
    write(board, 0xCF8, 0x8000_0000 | slot << 11 | number << 8 | offset, size=4)


def test_every_byte_in_every_size(bus: PciBus, machine: FakeMachine) -> None:
    """But for what a function wants to be asked for."""
    board = machine.board
    for function in bus.functions:
        for at in range(0, 256, 4):
            address(board, function.slot, function.number, at)
            for offset, size in ((0, 4), (0, 2), (2, 2), (1, 2), (0, 1), (3, 1)):
                result, value = board.port_in(0xCFC + offset, size)
                if isinstance(function, Asking) and at == 0x40:
                    assert result is PortResult.LEAVE
                else:
                    assert (result, value) == (PortResult.DONE, function.config.get(at + offset, size)), (function.place, at, offset, size)
    address(board, 2, 3, 0)
    assert read(board, 0xCFC, 4) == 0xFFFF_FFFF, "no such function"


def test_bytes_of_the_address_register_are_nothing(bus: PciBus, machine: FakeMachine) -> None:
    for port in (0xCF8, 0xCFA, 0xCFB):
        write(machine.board, port, 1)
        assert read(machine.board, port) == 0xFF
    assert machine.board.port_out(0xCF9, 1, 6) is PortResult.LEAVE, "the reset control register's"
    assert read(machine.board, 0xCF8, 4) == 0


def test_a_function_is_told_of_what_it_wants(bus: PciBus, machine: FakeMachine) -> None:
    board = machine.board
    for offset, size in ((0, 4), (1, 1), (2, 2)):
        address(board, 2, 0, 0x48)
        assert board.port_out(0xCFC + offset, size, 1) is PortResult.LEAVE
    write(board, 0xCF8, 0x8000_1004, size=4)
    write(board, 0xCFC, 6, size=2)
    # While a message waits, what can let it go is told of.
    card = next(function for function in bus.functions if function.place == "04.0")
    assert isinstance(card, Card)
    address(board, 4, 0, 4)
    assert board.port_out(0xCFC, 2, 2) is PortResult.DONE
    card.msix.fire(0)
    assert board.port_out(0xCFC, 2, 2) is PortResult.LEAVE
    card.msix.reset()
    assert board.port_out(0xCFC, 2, 2) is PortResult.DONE


writes = st.tuples(st.integers(0, 15), st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFF_FFFF))


@settings(max_examples=60, deadline=None)
@given(st.lists(writes, max_size=40))
def test_writes_change_what_a_guest_may_change(accesses: list[tuple[int, int, int, int]]) -> None:
    """Against a model: bit by bit."""
    machine = FakeMachine()
    cards = [Card(machine) for _ in range(16)]
    bus = PciBus(machine, [(slot, 0, card) for slot, card in enumerate(cards)])  # type: ignore[arg-type]
    for ports in bus.ports:
        machine.board.claim(ports)
    for slot, at, size, value in accesses:
        at &= ~(size - 1)
        expected = bytearray(cards[slot].config.data)
        for offset in range(size):
            mask, byte = cards[slot].config.space.writable[at + offset], value >> 8 * offset & 0xFF
            expected[at + offset] = expected[at + offset] & ~mask | byte & mask
        address(machine.board, slot, 0, at & ~3)
        write(machine.board, 0xCFC + at % 4, value & (1 << 8 * size) - 1, size=size)
        assert bytes(cards[slot].config.data) == expected
    machine.board.close()


places = st.integers(WINDOW.start >> 12, (WINDOW.start >> 12) + 40).map(lambda page: page << 12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(places, places, st.booleans()), min_size=1, max_size=6), st.lists(st.integers(0, 48 << 12), max_size=20))
def test_the_bar_that_begins_last_answers(moves: list[tuple[int, int, bool]], looks: list[int]) -> None:
    """Against a model: all BARs by their starts."""
    machine = FakeMachine()
    cards = [Card(machine) for _ in moves]
    bus = PciBus(machine, [(slot, 0, card) for slot, card in enumerate(cards)])  # type: ignore[arg-type]
    mapped = []
    for slot, (first, second, decodes) in enumerate(moves):
        second &= ~0xFFFF
        bus.registers.address = 0x8000_0000 | slot << 11
        for offset, value in ((0x10, first), (0x18, second), (0x1C, 0), (0x04, 2 if decodes else 0)):
            bus.registers.address = 0x8000_0000 | slot << 11 | offset
            bus.write_port(0xCFC, 4, value)
        mapped += [(first, 0x1000, slot, 0), (second, 0x10000, slot, 2)] if decodes else []
    mapped.sort(key=lambda entry: entry[0])
    for look in looks:
        at = WINDOW.start + look
        below = [entry for entry in mapped if entry[0] <= at]
        start, size, slot, bar = below[-1] if below else (0, 0, 0, 0)
        expected = (slot << 3, bar, at - start) if at + 4 <= start + size else None
        assert bus.registers.find(at, 4) == expected
    machine.board.close()


@pytest.fixture
def device(machine: FakeMachine) -> Iterator[int]:
    """The first address of a random number generator's registers."""
    bus_of(machine, Rng())
    yield WINDOW.start + 0x4000
    machine.board.close()


def test_a_driver_looks_at_a_device_without_python(device: int, machine: FakeMachine) -> None:
    board = machine.board
    for offset, size, value in ((0x14, 1, 1), (0x14, 1, 3), (0x00, 4, 1), (0x08, 4, 1), (0x0C, 4, 1), (0x10, 2, 0), (0x16, 2, 0), (0x18, 2, 8),
                                (0x1A, 2, 1), (0x20, 4, 0x1000), (0x24, 4, 0), (0x28, 8, 0x2000), (0x30, 4, 0x3000)):  # fmt: skip
        assert board.mmio_write(device + offset, size, value), hex(offset)
    expected = {
        (0x00, 4): 1, (0x04, 4): 1, (0x0C, 4): 1, (0x10, 2): 0, (0x12, 2): 1, (0x14, 1): 3, (0x16, 2): 0, (0x18, 2): 8, (0x1A, 2): 1,
        (0x1C, 2): 0, (0x1E, 2): 0, (0x20, 8): 0x1000, (0x28, 4): 0x2000, (0x30, 8): 0x3000, (0x3C, 4): 0, (0xFFE, 4): 0, (ISR, 1): 0,
    }  # fmt: skip
    assert {at: board.mmio_read(device + at[0], at[1]) for at in expected} == expected
    assert board.mmio_read(device + 0x5000, 4) == 0xFFFF_FFFF, "nothing is there"


def begin(board: CountingBoard, device: int, features: int = 1) -> int:
    """Up to FEATURES_OK; the status afterwards."""
    for offset, size, value in ((0x14, 1, 0), (0x14, 1, 1), (0x14, 1, 3), (0x08, 4, 1), (0x0C, 4, features), (0x14, 1, 11)):
        assert board.mmio_write(device + offset, size, value) is MmioResult.DONE, hex(offset)
    return board.mmio_read(device + 0x14, 1) or 0


def add_queue(board: CountingBoard, device: int, rings: Sequence[int] = (0x1000, 0x2000, 0x3000), size: int = 8) -> MmioResult:
    for offset, value in zip((0x20, 0x28, 0x30), rings, strict=True):
        board.mmio_write(device + offset, 8, value)
    board.mmio_write(device + 0x18, 2, size)
    return board.mmio_write(device + 0x1C, 2, 1)


def test_a_driver_that_keeps_to_the_rules_negotiates_without_python(device: int, machine: FakeMachine) -> None:
    board = machine.board
    assert begin(board, device, features=0) == 3, "a legacy driver is refused"
    assert begin(board, device) == 11
    assert add_queue(board, device) is MmioResult.DONE and board.mmio_read(device + 0x1C, 2) == 1
    assert board.mmio_write(device + 0x14, 1, 15) is MmioResult.DONE and board.mmio_read(device + 0x14, 1) == 15


def test_what_is_more_is_done_by_python(device: int, machine: FakeMachine) -> None:
    board = machine.board
    assert begin(board, device) == 11
    for offset, size, value in ((0x14, 1, 0), (NOTIFY, 2, 0)):
        assert not board.mmio_write(device + offset, size, value), hex(offset)
    assert not add_queue(board, device, size=3), "a queue that cannot be, of which Python says why"
    assert board.mmio_read(device + 0x2000, 4) is None, "the device's own configuration"
    assert board.mmio_write(device + 0x1C, 2, 0) and board.mmio_write(device + 0x04, 4, 5), "lost"


ring_places = st.integers(0, (1 << 20) + 64).map(lambda at: at & ~1) | st.integers(0xFF00, 0x10100) | st.integers((1 << 64) - 256, (1 << 64) - 1)


@settings(max_examples=300, deadline=None)
@given(st.tuples(ring_places, ring_places, ring_places), st.sampled_from([0, 1, 2, 3, 8, 63, 64, 128, 32768]))
def test_c_enables_what_python_would(rings: tuple[int, int, int], size: int) -> None:
    """All of this machine's memory begins at 0: they agree wholly."""
    machine = FakeMachine()
    bus_of(machine, Rng())
    device = WINDOW.start + 0x4000
    begin(machine.board, device)
    queue = Queue(machine.memory, lambda ranges: None, 64)
    queue.registers.size = size
    queue.registers.descriptors, queue.registers.driver, queue.registers.device = rings
    with contextlib.suppress(QueueError):
        queue.enable([])
    assert add_queue(machine.board, device, rings, size) is (MmioResult.DONE if queue.enabled else MmioResult.LEAVE)
    machine.board.close()


def test_queues_that_overlap_are_not_enabled_in_c(machine: FakeMachine) -> None:
    bus_of(machine, Console(machine))  # type: ignore[arg-type]
    board, device = machine.board, WINDOW.start + 0x4000
    begin(board, device)
    assert add_queue(board, device) is MmioResult.DONE
    board.mmio_write(device + 0x16, 2, 1)
    assert add_queue(board, device, (0x4000, 0x5000, 0x2000)) is MmioResult.LEAVE
    assert add_queue(board, device, (0x4000, 0x5000, 0x6000)) is MmioResult.DONE


def test_buffers_for_what_nobody_has_typed_need_no_python(machine: FakeMachine) -> None:
    console = Console(machine)  # type: ignore[arg-type]
    bus_of(machine, Rng(), console)
    board, device = machine.board, WINDOW.start + 0xC000
    begin(board, device)
    add_queue(board, device)
    board.mmio_write(device + 0x14, 1, 15)
    assert board.mmio_write(device + NOTIFY, 2, 0) is MmioResult.NOTIFIED
    assert board.pci().notification(device + NOTIFY) == (3, console.device_id, 0, 0)
    assert board.mmio_write(device + NOTIFY + 4, 2, 1) is MmioResult.LEAVE, "what is written is the device's"
    board.typed_to_virtio = True
    assert board.mmio_write(device + NOTIFY, 2, 0) is MmioResult.NOTIFIED
    board.console_put(b"x")
    assert board.mmio_write(device + NOTIFY, 2, 0) is MmioResult.LEAVE, "something waits for buffers"
    machine.board.close()


def test_there_are_no_more_than_there_is_room_for(machine: FakeMachine) -> None:
    bridges = [(slot, number, HostBridge()) for slot in range(17) for number in range(2)]
    with pytest.raises(ValueError, match=f"more than {SPACES}"):
        PciBus(machine, bridges)  # type: ignore[arg-type]
