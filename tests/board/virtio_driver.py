"""A guest's side of PCI and virtio, in Python: for tests of devices, without a processor."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.pci.bridges import HostBridge
from hvd.board.pci.bus import INTX_GSIS, PciBus
from hvd.board.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, VirtioDevice
from hvd.board.virtio.pci import VirtioPci
from hvd.trace.points import BackendId

NEXT, WRITE, INDIRECT = 1, 2, 4
RINGS = 0x10000  # where the driver puts its first queue; 64 KiB each
BUFFERS = 0x80000


class CountingBoard(HotBoard):
    """Remembers point and arguments of the crossings."""

    def __init__(self, backend: BackendId) -> None:
        super().__init__(backend)
        self.crossings: list[tuple[int, ...]] = []

    def cross(self, point: int, start_ns: int, rip: int, flags: int = 0, *arguments: int) -> None:
        self.crossings.append((point, *arguments))


class FakeMachine:
    """What devices ask of a machine."""

    def __init__(self, memory_bytes: int = 1 << 20) -> None:
        self.memory = GuestMemory(memory_bytes)
        self.vcpu = self
        self.messages: list[tuple[int, int]] = []
        self.changed: list[tuple[int, int]] = []
        self.logged: list[bytes] = []
        self.records: list[tuple[int, int, int, int]] = []
        self.board = CountingBoard(BackendId.EMULATION)
        self.crossings = self.board.crossings
        self.console_size = (24, 80)
        self.kicked: list[Callable[[], None]] = []

    @property
    def lines(self) -> dict[int, bool]:
        """Level of PCI's two."""
        found = self.board.save()["ioapic.lines"]
        return {gsi: bool(found >> gsi & 1) for gsi in INTX_GSIS}

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def memory_changed_at(self, ranges: Sequence[int]) -> None:
        for address, length in zip(ranges[::2], ranges[1::2], strict=True):
            self.memory.file_offset(address, length)
            self.changed.append((address, length))

    def on_kick(self, listener: Callable[[], None]) -> None:
        self.kicked.append(listener)

    def console_write(self, data: bytes) -> None:
        while data := data[self.board.console_write(data) :]:
            self.board.console_take()  # as the main thread does when it is full

    def record_as(self, point: int, a0: int, a1: int, a2: int, a3: int) -> None:
        self.records.append((a0, a1, a2, a3))

    def log(self, text: bytes) -> None:
        self.logged.append(text)


def bus_of(machine: FakeMachine, *devices: VirtioDevice) -> PciBus:
    """A bus with these in slots 2, 3, ..."""
    functions: list[Any] = [(0, 0, HostBridge())]
    functions += [(slot, 0, VirtioPci(machine, device)) for slot, device in enumerate(devices, 2)]  # type: ignore[arg-type]
    return PciBus(machine, functions)  # type: ignore[arg-type]


class Function:
    """Configuration space of one function, by the ports."""

    def __init__(self, bus: PciBus, slot: int, number: int = 0) -> None:
        self.bus, self.select = bus, 0x8000_0000 | slot << 11 | number << 8

    def read(self, offset: int, size: int = 4) -> int:
        self.bus.write_port(0xCF8, 4, self.select | offset & 0xFC)
        return self.bus.read_port(0xCFC + offset % 4, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write_port(0xCF8, 4, self.select | offset & 0xFC)
        self.bus.write_port(0xCFC + offset % 4, size, value)

    def capabilities(self) -> list[tuple[int, int]]:
        """(identifier, offset), in the list's order."""
        found, at = [], self.read(0x34, 1)
        while at:
            found.append((self.read(at, 1), at))
            at = self.read(at + 1, 1)
            assert len(found) < 48
        return found

    def bar(self, index: int) -> int:
        low = self.read(0x10 + 4 * index)
        high = self.read(0x14 + 4 * index) if low & 6 == 4 else 0
        return (low & ~0xF) | high << 32


class DriverQueue:
    def __init__(self, driver: Driver, index: int, size: int) -> None:
        self.driver, self.memory, self.index, self.size = driver, driver.memory, index, size
        self.table = RINGS + 0x10000 * index
        self.avail = self.table + 0x4000
        self.used = self.table + 0x8000
        self.next_avail = self.next_used = self.free = 0

    def describe(self, buffers: Iterable[tuple[int, int, int]], table: int | None = None, first: int = 0) -> int:
        """Chained descriptors of (address, length, flags); returns the head."""
        entries = list(buffers)
        for at, (address, length, flags) in enumerate(entries):
            last = at == len(entries) - 1
            index = (first + at) % self.size if table is None else at
            following = (index + 1) % self.size if table is None else at + 1
            raw = struct.pack("<QIHH", address, length, flags | (0 if last else NEXT), 0 if last else following)
            self.memory.write((self.table if table is None else table) + 16 * index, raw)
        return first

    def offer(self, head: int) -> None:
        self.memory.write(self.avail + 4 + 2 * (self.next_avail % self.size), struct.pack("<H", head))
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.next_avail))

    def add(self, buffers: Sequence[tuple[int, int, int]], indirect: int = 0) -> int:
        """Offer a chain, by an indirect table at that address if one is given."""
        head = self.free
        if indirect:
            self.describe(buffers, table=indirect)
            self.describe([(indirect, 16 * len(buffers), INDIRECT)], first=head)
            self.free = (self.free + 1) % self.size
        else:
            self.describe(buffers, first=head)
            self.free = (self.free + len(buffers)) % self.size
        self.offer(head)
        return head

    def notify(self) -> None:
        self.driver.notify(self.index)

    def done(self) -> list[tuple[int, int]]:
        """(head, written) of what came back since the last call."""
        (index,) = struct.unpack("<H", self.memory.read(self.used + 2, 2))
        found = []
        while self.next_used != index:
            raw = self.memory.read(self.used + 4 + 8 * (self.next_used % self.size), 8)
            found.append(struct.unpack("<II", raw))
            self.next_used = (self.next_used + 1) & 0xFFFF
        return found  # type: ignore[return-value]


class Driver:
    """A virtio-pci driver for the device in a slot."""

    def __init__(self, machine: FakeMachine, bus: PciBus, slot: int = 2) -> None:
        self.machine, self.memory, self.bus = machine, machine.memory, bus
        self.pci = Function(bus, slot)
        self.places: dict[int, int] = {}  # type of structure -> address
        for identifier, at in self.pci.capabilities():
            if identifier == 9:
                kind, bar = self.pci.read(at + 3, 1), self.pci.read(at + 4, 1)
                if kind in (1, 2, 3, 4):
                    self.places[kind] = self.pci.bar(bar) + self.pci.read(at + 8)
                    if kind == 2:
                        self.multiplier = self.pci.read(at + 16)
                elif kind == 5:
                    self.access = at
            elif identifier == 0x11:
                self.msix = at
        self.queues: list[DriverQueue] = []

    def common(self, offset: int, size: int, value: int | None = None) -> int:
        if value is None:
            return self.bus.read_mmio(self.places[1] + offset, size)
        self.bus.write_mmio(self.places[1] + offset, size, value)
        return value

    @property
    def status(self) -> int:
        return self.common(0x14, 1)

    def config(self, offset: int, size: int) -> int:
        return self.bus.read_mmio(self.places[4] + offset, size)

    def isr(self) -> int:
        return self.bus.read_mmio(self.places[3], 1)

    def notify(self, index: int) -> None:
        self.bus.write_mmio(self.places[2] + self.multiplier * index, 2, index)

    def offered(self) -> int:
        low = (self.common(0, 4, 0), self.common(4, 4))[1]
        return low | (self.common(0, 4, 1), self.common(4, 4))[1] << 32

    def begin(self, features: int) -> bool:
        """Up to FEATURES_OK."""
        self.pci.write(0x04, 0x6, 2)
        self.common(0x14, 1, 0)
        self.common(0x14, 1, 1)
        self.common(0x14, 1, 3)
        for half in (0, 1):
            self.common(0x08, 4, half)
            self.common(0x0C, 4, features >> 32 * half & 0xFFFF_FFFF)
        self.common(0x14, 1, 11)
        return bool(self.status & 8)

    def add_queue(self, index: int, size: int = 0) -> DriverQueue:
        self.common(0x16, 2, index)
        queue = DriverQueue(self, index, size or self.common(0x18, 2))
        self.common(0x18, 2, queue.size)
        for offset, value in ((0x20, queue.table), (0x28, queue.avail), (0x30, queue.used)):
            self.common(offset, 4, value & 0xFFFF_FFFF)
            self.common(offset + 4, 4, value >> 32)
        self.common(0x1C, 2, 1)
        return queue

    def start(self, features: int = 0, size: int = 0, events: bool = False) -> Driver:
        """The whole of 3.1.1."""
        wanted = features | VERSION_1 | RING_INDIRECT_DESC | (RING_EVENT_IDX if events else 0)
        assert self.begin(wanted)
        self.queues = [self.add_queue(index, size) for index in range(self.common(0x12, 2))]
        self.common(0x14, 1, 15)
        return self

    def enable_msix(self) -> list[tuple[int, int]]:
        """Each queue and the configuration get a vector of their own; returns the messages by vector."""
        count = (self.pci.read(self.msix + 2, 2) & 0x7FF) + 1
        table = self.pci.bar(self.pci.read(self.msix + 4, 1) & 7)
        messages = [(0xFEE0_0000, 0x40 + vector) for vector in range(count)]
        for vector, (address, data) in enumerate(messages):
            for offset, value in ((0, address), (4, 0), (8, data), (12, 0)):
                self.bus.write_mmio(table + 16 * vector + offset, 4, value)
        self.pci.write(self.msix + 2, 0x8000, 2)
        self.common(0x10, 2, 0)
        for index in range(self.common(0x12, 2)):
            self.common(0x16, 2, index)
            self.common(0x1A, 2, index + 1)
        return messages
