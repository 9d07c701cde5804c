"""Virtio over PCI: the transport and split virtqueues, driven by a driver in Python."""

from __future__ import annotations

import struct
from typing import ClassVar

import pytest
from virtio_driver import BUFFERS, INDIRECT, NEXT, WRITE, Driver, FakeMachine, bus_of

from hvd.board.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, VirtioDevice
from hvd.board.virtio.pci import FAULT_POINT
from hvd.board.virtio.rng import Rng

NEEDS_RESET = 64


class Echo(VirtioDevice):
    """Gives back what it reads, in upper case; its configuration is eight bytes that can be written."""

    name: ClassVar[str] = "virtio-echo"
    device_id: ClassVar[int] = 42
    features = 1 << 5
    queue_sizes = (8, 4)

    def __init__(self) -> None:
        self.store = bytearray(8)
        self.resets = 0

    @property
    def config(self) -> bytes:
        return bytes(self.store)

    def write_config(self, offset: int, data: bytes) -> None:
        self.store[offset : offset + len(data)] = data

    def handle_queue(self, index: int) -> None:
        while (chain := self.queues[index].pop()) is not None:
            self.queues[index].push(chain, chain.write(chain.read().upper()))

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def driver(machine: FakeMachine, echo: Echo) -> Driver:
    return Driver(machine, bus_of(machine, echo))


def text(driver: Driver, at: int, content: bytes) -> tuple[int, int, int]:
    driver.memory.write(at, content)
    return at, len(content), 0


def room(at: int, length: int) -> tuple[int, int, int]:
    return at, length, WRITE


def ask(driver: Driver, content: bytes = b"hello", indirect: int = 0, queue: int = 0) -> bytes:
    one = driver.queues[queue]
    one.add([text(driver, BUFFERS, content), room(BUFFERS + 0x1000, 64)], indirect)
    one.notify()
    ((_, written),) = one.done()
    return driver.memory.read(BUFFERS + 0x1000, written)


def test_what_the_driver_finds(driver: Driver) -> None:
    assert driver.pci.read(0x00) == 0x106A_1AF4 and driver.pci.read(0x08, 1) >= 1
    assert driver.offered() == VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX | 1 << 5
    assert driver.common(0x12, 2) == 2
    sizes = []
    for index in range(3):
        driver.common(0x16, 2, index)
        sizes.append(driver.common(0x18, 2))
    assert sizes == [8, 4, 0]


def test_features_that_are_not_offered_are_refused(driver: Driver) -> None:
    assert not driver.begin(VERSION_1 | 1 << 6)
    assert not driver.begin(1 << 5), "a legacy driver"
    assert driver.begin(VERSION_1 | 1 << 5)


@pytest.mark.parametrize("indirect", [0, BUFFERS + 0x8000])
@pytest.mark.parametrize("events", [False, True])
def test_buffers_go_round(driver: Driver, machine: FakeMachine, indirect: int, events: bool) -> None:
    driver.start(events=events)
    for n in range(100):
        assert ask(driver, b"hello %d" % n, indirect) == b"HELLO %d" % n
    assert (BUFFERS + 0x1000, 64) in machine.changed
    assert machine.records == [(2, 42, 0, 1)] * 100, "slot, device, queue, buffers: for the trace"


def test_nothing_happens_before_driver_ok_or_without_bus_mastering(driver: Driver) -> None:
    driver.begin(VERSION_1)
    driver.queues = [driver.add_queue(0)]
    driver.queues[0].add([text(driver, BUFFERS, b"x"), room(BUFFERS + 64, 1)])
    driver.notify(0)
    driver.common(0x14, 1, 15)
    driver.pci.write(4, 2, 2)
    driver.notify(0)
    assert driver.queues[0].done() == []
    driver.pci.write(4, 6, 2)
    driver.notify(0)
    assert driver.queues[0].done() == [(0, 1)]


def test_interrupts_by_intx(driver: Driver, machine: FakeMachine) -> None:
    driver.start()
    ask(driver)
    assert machine.lines[10] and driver.isr() == 1 and not machine.lines[10] and driver.isr() == 0
    driver.memory.write(driver.queues[0].avail, struct.pack("<H", 1))  # NO_INTERRUPT
    ask(driver)
    assert not machine.lines[10]


def test_interrupts_by_msix(driver: Driver, machine: FakeMachine, echo: Echo) -> None:
    driver.start()
    messages = driver.enable_msix()
    ask(driver)
    ask(driver, queue=1)
    echo.config_changed()
    assert machine.messages == [messages[1], messages[2], messages[0]] and not machine.lines.get(10)
    driver.common(0x16, 2, 0)
    driver.common(0x1A, 2, 77)
    assert driver.common(0x1A, 2) == 0xFFFF, "no such vector"
    ask(driver)
    assert len(machine.messages) == 3


def test_event_index(driver: Driver, machine: FakeMachine) -> None:
    """2.7.10: an interrupt when the used index passes used_event; a hint in avail_event for notifications."""
    driver.start(events=True)
    one = driver.queues[0]
    driver.memory.write(one.avail + 4 + 2 * one.size, struct.pack("<H", 2))
    for expected in (False, False, True, False):
        ask(driver)
        assert (driver.isr() == 1) is expected
    assert driver.memory.read(one.used + 4 + 8 * one.size, 2) == struct.pack("<H", 4)


def test_the_device_configuration(driver: Driver, echo: Echo, machine: FakeMachine) -> None:
    driver.start()
    place = driver.places[4]
    driver.bus.write_mmio(place + 2, 2, 0xABCD)
    assert driver.config(0, 4) == 0xABCD_0000 and driver.config(4, 8) == 0 and driver.config(100, 4) == 0
    driver.bus.write_mmio(place + 7, 2, 0xFFFF)
    generation = driver.common(0x15, 1)
    echo.config_changed()
    assert driver.common(0x15, 1) != generation and driver.isr() == 2


def test_access_through_configuration_space(driver: Driver) -> None:
    """4.1.4.9, as a firmware does it that has not mapped the BAR."""
    driver.start()
    driver.pci.write(driver.access + 4, 4, 1)
    driver.pci.write(driver.access + 8, 0x12)
    driver.pci.write(driver.access + 12, 2)
    assert driver.pci.read(driver.access + 16, 2) == 2
    driver.pci.write(driver.access + 8, 0x16)
    driver.pci.write(driver.access + 16, 1, 2)
    assert driver.common(0x16, 2) == 1
    for bar, offset, length in ((0, 0, 4), (9, 0, 4), (4, 0x3FFF, 4), (4, 0x4000, 1), (4, 1, 2), (4, 0, 3), (4, 0, 0)):
        driver.pci.write(driver.access + 4, bar, 1)
        driver.pci.write(driver.access + 8, offset)
        driver.pci.write(driver.access + 12, length)
        assert driver.pci.read(driver.access + 16, 4) == 0xFFFF_FFFF
        driver.pci.write(driver.access + 16, 0)


def test_reset_by_the_driver(driver: Driver, echo: Echo, machine: FakeMachine) -> None:
    driver.start()
    ask(driver)
    driver.common(0x14, 1, 0)
    assert driver.status == 0 and not machine.lines[10] and echo.negotiated == 0 and not echo.ready
    driver.start()
    assert ask(driver) == b"HELLO"


LAST = (1 << 20) - 16


@pytest.mark.parametrize(
    ("registers", "says"),
    [
        ({0x18: 3}, "its size is 3"),
        ({0x18: 0}, "its size is 0"),
        ({0x18: 32768}, "its size is 32768"),
        ({0x20: 0x10008}, "not aligned to 16"),
        ({0x28: 0x14001}, "not aligned to 2"),
        ({0x30: 0x18002}, "not aligned to 4"),
        ({0x20: LAST}, "descriptor table of 128 bytes at 0xffff0 is not in memory"),
        ({0x28: 1 << 20}, "available ring"),
        ({0x34: 0xFFFF_FFFF}, "used ring"),
        ({0x20: 0xFFFF_FFF0, 0x24: 0xFFFF_FFFF}, "not in memory"),
        ({0x28: 0x10010}, "overlap"),
        ({0x30: 0x14000}, "overlap"),
    ],
)
def test_rings_that_cannot_be(driver: Driver, machine: FakeMachine, registers: dict[int, int], says: str) -> None:
    driver.begin(VERSION_1)
    driver.common(0x16, 2, 0)
    for offset, value in {0x20: 0x10000, 0x28: 0x14000, 0x30: 0x18000}.items():
        driver.common(offset, 8, value)
    for offset, value in registers.items():
        driver.common(offset, 2 if offset == 0x18 else 4, value)
    driver.common(0x1C, 2, 1)
    assert driver.status & NEEDS_RESET and driver.common(0x1C, 2) == 0
    assert len(machine.logged) == 1 and says in machine.logged[0].decode()
    driver.start()
    assert ask(driver) == b"HELLO", "a reset makes it good"


def test_queues_must_not_overlap_each_other(driver: Driver, machine: FakeMachine) -> None:
    driver.begin(VERSION_1)
    driver.add_queue(0)
    driver.common(0x16, 2, 1)
    for offset, value in {0x20: 0x20000, 0x28: 0x24000, 0x30: 0x10000}.items():
        driver.common(offset, 8, value)
    driver.common(0x1C, 2, 1)
    assert driver.status & NEEDS_RESET and b"overlap" in machine.logged[0]


def raw(driver: Driver, at: int, *entries: tuple[int, int, int, int]) -> None:
    for index, entry in enumerate(entries):
        driver.memory.write(at + 16 * index, struct.pack("<QIHH", *entry))


TABLE, OUTSIDE = BUFFERS + 0x8000, 1 << 20


@pytest.mark.parametrize(
    ("chain", "table", "head", "says"),
    [
        ([(BUFFERS, 4, NEXT, 1), (BUFFERS, 4, NEXT, 0)], [], 0, "a loop?"),
        ([(BUFFERS, 4, NEXT, 0)], [], 0, "a loop?"),
        ([(BUFFERS, 4, NEXT, 8)], [], 0, "descriptor 8 of a table of 8"),
        ([], [], 9, "descriptor 9"),
        ([(OUTSIDE, 4, 0, 0)], [], 0, "is not in memory"),
        ([(OUTSIDE - 2, 4, WRITE, 0)], [], 0, "is not in memory"),
        ([((1 << 64) - 2, 4, 0, 0)], [], 0, "is not in memory"),
        ([(BUFFERS, 0xFFFF_FFFF, 0, 0)], [], 0, "is not in memory"),
        ([(BUFFERS, 4, WRITE | NEXT, 1), (BUFFERS, 4, 0, 0)], [], 0, "readable buffer follows"),
        ([(TABLE, 16, INDIRECT, 0)], [(TABLE, 16, INDIRECT, 0)], 0, "indirect descriptor"),
        ([(TABLE, 16, INDIRECT | NEXT, 0)], [], 0, "indirect descriptor"),
        ([(TABLE, 0, INDIRECT, 0)], [], 0, "indirect table of 0"),
        ([(TABLE, 24, INDIRECT, 0)], [], 0, "indirect table of 24"),
        ([(TABLE, 0xFFFF_FFF0, INDIRECT, 0)], [], 0, "indirect table of"),
        ([(OUTSIDE, 16, INDIRECT, 0)], [], 0, "indirect table of 16 bytes at 0x100000"),
        ([(TABLE, 32, INDIRECT, 0)], [(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)], 0, "a loop?"),
        ([(TABLE, 32, INDIRECT, 0)], [(BUFFERS, 1, NEXT, 2)], 0, "descriptor 2 of a table of 2"),
    ],
)
def test_chains_that_cannot_be(
    driver: Driver, machine: FakeMachine, echo: Echo, chain: list[tuple[int, int, int, int]],
    table: list[tuple[int, int, int, int]], head: int, says: str,
) -> None:  # fmt: skip
    driver.start()
    messages = driver.enable_msix()
    one = driver.queues[0]
    raw(driver, one.table, *chain)
    raw(driver, TABLE, *table)
    one.offer(head)
    one.notify()
    assert driver.status & NEEDS_RESET and not echo.ready
    assert says in machine.logged[0].decode(), machine.logged
    assert machine.messages == [messages[0]], "an interrupt for the configuration"
    one.notify()
    driver.common(0x14, 1, 15)
    driver.queues[1].notify()
    assert len(machine.logged) == 1 and one.done() == []
    driver.common(0x14, 1, 0)
    driver.start()
    assert ask(driver) == b"HELLO"


def test_more_buffers_than_there_is_room_for(driver: Driver, machine: FakeMachine) -> None:
    driver.start()
    driver.memory.write(driver.queues[0].avail + 2, struct.pack("<H", 9))
    driver.notify(0)
    assert driver.status & NEEDS_RESET and b"9 buffers" in machine.logged[0]


def test_it_says_so_once(driver: Driver, machine: FakeMachine) -> None:
    for _ in range(3):
        driver.start()
        driver.queues[0].offer(100)
        driver.notify(0)
    assert len(machine.logged) == 1 and machine.crossings == [(FAULT_POINT, 2, 42, 0)] * 3, "and counts each"


def test_indirect_needs_to_be_negotiated(driver: Driver) -> None:
    driver.begin(VERSION_1)
    driver.queues = [driver.add_queue(0)]
    driver.common(0x14, 1, 15)
    driver.queues[0].add([text(driver, BUFFERS, b"x")], TABLE)
    driver.notify(0)
    assert driver.status & NEEDS_RESET


def test_saved_and_restored_between_buffers(driver: Driver, machine: FakeMachine) -> None:
    driver.start(events=True)
    for _ in range(5):
        ask(driver)
    state = driver.bus.save()
    fresh = FakeMachine()
    fresh.memory.write(0, machine.memory.read(0, 1 << 20))
    other = Driver(fresh, bus_of(fresh, Echo()))
    other.bus.restore(state)
    assert other.bus.save() == state
    other.queues = driver.queues
    for queue in other.queues:
        queue.driver, queue.memory = other, fresh.memory
    assert ask(other, b"again") == b"AGAIN"
    state["functions"]["02.0"]["queues"][0]["driver"] = 1 << 40
    with pytest.raises(ValueError, match="not in memory"):
        other.bus.restore(state)


def test_rng(machine: FakeMachine) -> None:
    driver = Driver(machine, bus_of(machine, Rng())).start()
    seen = set()
    for _ in range(4):
        driver.queues[0].add([room(BUFFERS, 16), room(BUFFERS + 0x1000, 16)])
        driver.notify(0)
        assert [written for _, written in driver.queues[0].done()] == [32]
        seen |= {driver.memory.read(BUFFERS, 16), driver.memory.read(BUFFERS + 0x1000, 16)}
    assert len(seen) == 8


def test_a_chain_of_half_a_gibibyte_is_not_copied(driver: Driver, machine: FakeMachine) -> None:
    """All of memory, many times over: allowed, and answered with what a device copies at most."""
    driver.start()
    one = driver.queues[0]
    one.add([*[(0, 1 << 20, 0)] * 500, room(BUFFERS, 4)], TABLE)
    one.notify()
    assert one.done() == [(0, 4)] and not driver.status & NEEDS_RESET
