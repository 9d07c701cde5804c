"""PCI and virtio, whatever a guest does: any access of any register, any bytes in the rings. No exception, no touch outside of guest
memory (FakeMachine.memory_changed and the image look), values that fit, and state that can be saved and restored."""

from __future__ import annotations

import contextlib
import json
import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from test_virtio_block import MemoryImage
from virtio_driver import BUFFERS, RINGS, Driver, FakeMachine, Function, bus_of

from hvd.board.pci.bus import WINDOW
from hvd.board.virtio.block import Block
from hvd.board.virtio.console import Console
from hvd.board.virtio.rng import Rng

MEMORY = 1 << 20
sizes = st.sampled_from([1, 2, 4, 8])
values = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, 3, 7, 11, 15, 0xFFFF, 0xFFFF_FFFF, 1 << 32, RINGS, MEMORY, MEMORY - 16])


class Bench:
    """A bus with each device, and what the guest of a test does to it."""

    def __init__(self) -> None:
        self.machine = FakeMachine(MEMORY)
        image = MemoryImage()
        self.bus = bus_of(self.machine, Block(image, "disk0", self.machine.log), Rng(), Console(self.machine))  # type: ignore[arg-type]

    def check(self) -> None:
        """Another machine takes over the state, and says the same of itself."""
        state = json.loads(json.dumps(self.bus.save()))
        other = Bench()
        other.machine.memory.write(0, self.machine.memory.read(0, MEMORY))
        try:
            other.bus.restore(state)
        except ValueError as error:
            # The driver's rings may have become unusable after it enabled them: they cannot, their place is fixed then.
            raise AssertionError(f"its own state is refused: {error}") from error
        assert other.bus.save() == state
        other.close()
        self.close()

    def close(self) -> None:
        self.machine.memory.close()


config = st.tuples(st.just("config"), st.integers(0, 5), st.integers(0, 255), st.sampled_from([1, 2, 4]), values)
port = st.tuples(st.just("port"), st.integers(0xCF8, 0xCFF), st.just(0), st.sampled_from([1, 2, 4]), values)
# Within the BARs as they are preset, mostly; elsewhere in the window, too.
near = st.integers(0, 0x40) | st.integers(0, 0x3FFF) | st.sampled_from([0x1000, 0x2000, 0x3000, 0x3004, 0xFFF, 0x3FFC])
memory = st.tuples(st.just("memory"), st.sampled_from([0, 0x4000, 0x8000, 0xC000, 0x10000, 0x14000]), near, sizes, values)
anywhere = st.tuples(st.just("memory"), st.integers(0, len(WINDOW) - 8), st.just(0), sizes, values)


@settings(max_examples=150, deadline=None)
@given(st.lists(config | port | memory | anywhere, max_size=120), st.booleans())
def test_any_access_to_any_register(accesses: list[tuple[str, int, int, int, int]], started: bool) -> None:
    one = Bench()
    if started:
        Driver(one.machine, one.bus, 2).start()
    for kind, place, offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        if kind == "config":
            Function(one.bus, place).write(offset & ~(size - 1), value, size)
            got = Function(one.bus, place).read(offset & ~(size - 1), size)
        elif kind == "port":
            size = min(size, 0xD00 - place)
            one.bus.write_port(place, size, value & (1 << 8 * size) - 1)
            got = one.bus.read_port(place, size)
        else:
            one.bus.write_mmio(WINDOW.start + place + offset, size, value)
            got = one.bus.read_mmio(WINDOW.start + place + offset, size)
        assert 0 <= got < 1 << 8 * size
    one.check()


flags = st.sampled_from([0, 1, 2, 3, 4, 5, 7]) | st.integers(0, 0xFFFF)
PLACES = [BUFFERS, BUFFERS + 0x1000, RINGS, RINGS + 0x4000, RINGS + 0x8000, MEMORY - 4, MEMORY, (1 << 64) - 8]
where = st.sampled_from(PLACES) | st.integers(0, MEMORY)
length = st.sampled_from([0, 1, 8, 16, 20, 32, 512, 4096, 0xFFFF_FFFF]) | st.integers(0, 0xFFFF_FFFF)
descriptor = st.tuples(where, length, flags, st.integers(0, 9) | st.integers(0, 0xFFFF))


@settings(max_examples=300, deadline=None)
@given(
    slot=st.integers(2, 4), table=st.lists(descriptor, max_size=8), indirect=st.lists(descriptor, max_size=8),
    heads=st.lists(st.integers(0, 8) | st.integers(0, 0xFFFF), max_size=9), requests=st.binary(max_size=64), events=st.booleans(),
    repeat=st.integers(1, 3),
)  # fmt: skip
def test_any_bytes_in_the_rings(
    slot: int, table: list[tuple[int, int, int, int]], indirect: list[tuple[int, int, int, int]], heads: list[int],
    requests: bytes, events: bool, repeat: int,
) -> None:  # fmt: skip
    one = Bench()
    driver = Driver(one.machine, one.bus, slot).start(size=8, events=events)
    one.machine.board.console_put(b"typed")
    for _ in range(repeat):
        for queue in driver.queues:
            one.machine.memory.write(BUFFERS, requests)
            for at, entries in ((queue.table, table), (BUFFERS + 0x1000, indirect)):
                for index, entry in enumerate(entries):
                    one.machine.memory.write(at + 16 * index, struct.pack("<QIHH", *entry))
            for head in heads:
                queue.offer(head)
            queue.notify()
        one.machine.board.console_take()
        if driver.status & 64:
            assert len(one.machine.logged) == 1 or slot == 2
            driver.start(size=8, events=events)
    one.check()


def test_random_memory_many_times() -> None:
    """Faster than hypothesis, and blind: rings full of noise."""
    noise = random.Random(7)
    one = Bench()
    for turn in range(400):
        driver = Driver(one.machine, one.bus, 2 + turn % 3).start(size=8, events=bool(turn & 1))
        for queue in driver.queues:
            one.machine.memory.write(queue.table, noise.randbytes(128))
            # Half of the addresses in memory, so that more than the first check is reached.
            for index in range(8):
                entry = (noise.randrange(1 << 21), noise.randrange(1 << noise.randrange(1, 20)), noise.randrange(8), noise.randrange(9))
                one.machine.memory.write(queue.table + 16 * index, struct.pack("<QIHH", *entry))
            one.machine.memory.write(queue.avail + 2, struct.pack("<9H", noise.randrange(9), *(noise.randrange(9) for _ in range(8))))
            queue.notify()
        one.machine.board.console_take()
    one.close()


json_values = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_nonsense_in_a_snapshot(data: st.DataObject) -> None:
    """One value of a real state is something else: it is taken or refused, and the board still answers."""
    one = Bench()
    Driver(one.machine, one.bus, 2).start()
    state = json.loads(json.dumps(one.bus.save()))
    place = state
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    with contextlib.suppress(ValueError, TypeError):
        one.bus.restore(state)
    for slot in range(5):
        Function(one.bus, slot).write(4, 6, 2)
    for offset in range(0, 0x18000, 0x400):
        one.bus.write_mmio(WINDOW.start + offset, 2, 1)
        one.bus.read_mmio(WINDOW.start + offset, 4)
    one.bus.reset()
    Driver(one.machine, one.bus, 2).start()
    one.close()
