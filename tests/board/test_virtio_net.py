"""virtio-net, driven by a driver in Python, on a port that the test holds."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import BUFFERS, WRITE, Driver, FakeMachine, bus_of

from hvd.board.net.port import HEADER_BYTES, PortGone, Sent, Unplugged
from hvd.board.virtio import net
from hvd.board.virtio.net import BURST, Net, split
from hvd.trace.counters import NIC_FIELDS

MAC = "52:54:00:12:34:56"
BUFFER_BYTES = 2048
NEEDS_RESET = 64


class Wire:
    """A port: frames for the guest in `coming`, those of the guest in `gone`."""

    mtu = 9000
    offloads = True

    def __init__(self) -> None:
        self.coming: deque[bytes] = deque()
        self.gone: list[tuple[bytes, bytes]] = []
        self.room = 1 << 30
        self.broken = ""
        self.agreed: tuple[bool, ...] = ()
        self.closed = False

    def fileno(self) -> int:
        return 99

    def set_offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        self.agreed = (checksum, tso4, tso6, ecn)

    def receive(self, buffer: memoryview) -> int:
        self._check()
        if not self.coming:
            return 0
        frame = (bytes(HEADER_BYTES) + self.coming.popleft())[: len(buffer)]
        buffer[: len(frame)] = frame
        return len(frame)

    def send(self, header: bytes, frame: Sequence[memoryview]) -> Sent:
        self._check()
        if not self.room:
            return Sent.LATER
        self.room -= 1
        assert len(header) == HEADER_BYTES
        self.gone.append((bytes(header), b"".join(frame)))
        return Sent.DONE

    def _check(self) -> None:
        if self.broken:
            raise PortGone(self.broken)

    def close(self) -> None:
        self.closed = True


class Watching:
    """A Watcher whose events are the test's."""

    def __init__(self) -> None:
        self.armed: tuple[bool, bool] | None = None
        self.ready: Callable[[], None] = lambda: None

    def watch(self, fd: int, ready: Callable[[], None]) -> Watching:
        self.ready = ready
        return self

    def arm(self, readable: bool, writable: bool) -> None:
        self.armed = (readable, writable)

    def close(self) -> None:
        self.armed = None


class Rig:
    """A machine with one card and its driver. The receive queue has as many buffers as give() gave."""

    def __init__(self, features: int = net.MAC | net.MERGEABLE | net.STATUS | net.OFFLOADS | net.MTU) -> None:
        self.machine = FakeMachine(4 << 20)
        self.wire, self.watching = Wire(), Watching()
        self.paused = False
        self.card = Net(
            "net0", MAC, self.wire, watcher=self.watching, log=self.machine.log, is_paused=lambda: self.paused
        )
        self.bus = bus_of(self.machine, self.card)
        self.driver = Driver(self.machine, self.bus).start(features, size=256, events=True)
        self.receiving, self.transmitting = self.driver.queues
        self.given = 0

    def give(self, count: int, length: int = BUFFER_BYTES) -> None:
        for _ in range(count):
            self.receiving.add([(BUFFERS + BUFFER_BYTES * self.given, length, WRITE)])
            self.given += 1
        self.receiving.notify()

    def received(self) -> list[tuple[int, bytes]]:
        """num_buffers and frame of each."""
        found = []
        done = deque(self.receiving.done())
        while done:
            head, written = done.popleft()
            data = self._buffer(head, written)
            (buffers,) = struct.unpack_from("<H", data, 10)
            for _ in range(buffers - 1):
                data += self._buffer(*done.popleft())
            found.append((buffers, data[HEADER_BYTES:]))
        return found

    def _buffer(self, head: int, written: int) -> bytes:
        (address,) = struct.unpack("<Q", self.machine.memory.read(self.receiving.table + 16 * head, 8))
        return self.machine.memory.read(address, written)

    def send(self, frame: bytes, header: bytes = bytes(HEADER_BYTES), cuts: Sequence[int] = (HEADER_BYTES,)) -> None:
        data = header + frame
        self.machine.memory.write(BUFFERS, data)
        edges = [0, *cuts, len(data)]
        parts = [(BUFFERS + start, end - start, 0) for start, end in pairwise(edges)]
        self.transmitting.add(parts)
        self.transmitting.notify()

    def counted(self) -> dict[str, int]:
        return {name: value for name, value in zip(NIC_FIELDS, self.card.counters, strict=False) if value}

    @property
    def link_is_up(self) -> bool:
        return bool(self.driver.config(6, 2) & 1)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def frame(length: int, seed: int = 0) -> bytes:
    return bytes((seed + index * 7) & 0xFF for index in range(length))


def test_what_the_driver_finds(rig: Rig) -> None:
    assert rig.driver.pci.read(0) == 0x1041_1AF4 and rig.driver.pci.read(8) >> 8 == 0x020000
    assert bytes(rig.driver.config(index, 1) for index in range(6)).hex(":") == MAC
    assert (rig.link_is_up, rig.driver.config(8, 2), rig.driver.config(10, 2)) == (True, 1, 9000)


def test_a_card_without_a_cable() -> None:
    machine = FakeMachine()
    card = Net("net0", MAC, Unplugged())
    driver = Driver(machine, bus_of(machine, card))
    assert not driver.offered() & net.OFFLOADS
    driver.start(net.MAC | net.STATUS)
    assert driver.config(6, 2) & 1 == 0
    machine.memory.write(BUFFERS, bytes(100))
    driver.queues[1].add([(BUFFERS, 100, 0)])
    driver.queues[1].notify()
    assert driver.queues[1].done() == [(0, 0)]
    assert card.counters[NIC_FIELDS.index("transmitted_dropped")] == 1


def test_frames_for_the_guest(rig: Rig) -> None:
    rig.give(8)
    assert rig.watching.armed == (True, False)
    rig.wire.coming += [frame(60), frame(1514, 3)]
    rig.watching.ready()
    assert rig.received() == [(1, frame(60)), (1, frame(1514, 3))]
    assert rig.counted() == {"received_bytes": 1574, "received_packets": 2}
    assert rig.watching.armed == (True, False)
    assert any(rig.machine.lines.values()), "the driver is interrupted"


def test_a_large_frame_takes_several_buffers(rig: Rig) -> None:
    rig.give(40)
    rig.wire.coming += [frame(5000), frame(65535 + 14, 1), frame(60)]
    rig.watching.ready()
    assert rig.received() == [(3, frame(5000)), (33, frame(65549, 1)), (1, frame(60))]


def test_a_frame_waits_for_buffers(rig: Rig) -> None:
    rig.receiving.notify()
    rig.wire.coming += [frame(5000), frame(60)]
    rig.watching.ready()
    assert rig.received() == [] and rig.watching.armed == (False, False)
    rig.give(2)  # one too few
    assert rig.received() == [] and rig.watching.armed == (False, False)
    rig.give(2)
    assert rig.received() == [(3, frame(5000)), (1, frame(60))]
    assert rig.watching.armed == (True, False)
    assert rig.counted() == {"received_bytes": 5060, "received_packets": 2}


def test_without_mergeable_buffers_what_does_not_fit_is_lost() -> None:
    rig = Rig(net.MAC)
    rig.give(3)
    rig.wire.coming += [frame(3000), frame(100)]
    rig.watching.ready()
    (lost, _), (head, written) = rig.receiving.done()
    assert (lost, head, written) == (0, 1, HEADER_BYTES + 100)
    assert rig.counted() == {"received_dropped": 1, "received_bytes": 100, "received_packets": 1}
    rig.give(1, length=HEADER_BYTES - 1)
    rig.wire.coming += [frame(60), frame(61)]
    rig.watching.ready()
    assert [written for _, written in rig.receiving.done()] == [HEADER_BYTES + 60, 0]


def test_a_flood_lets_the_guest_run(rig: Rig) -> None:
    rig.give(200)
    rig.wire.coming += [frame(60)] * 150
    rig.watching.ready()
    assert len(rig.received()) == BURST and rig.watching.armed == (True, True)
    rig.watching.ready()
    rig.watching.ready()
    assert len(rig.received()) == 150 - BURST and rig.watching.armed == (True, False)


def test_what_is_no_frame_is_lost(rig: Rig) -> None:
    rig.give(2)
    rig.wire.coming += [b"", frame(13), frame(14)]
    rig.watching.ready()
    assert rig.received() == [(1, frame(14))]
    assert rig.counted()["received_dropped"] == 2


@pytest.mark.parametrize("cuts", [(12,), (), (5, 12), (5, 7, 40), (1, 2, 3, 12, 13, 14)], ids=str)
def test_frames_of_the_guest(rig: Rig, cuts: Sequence[int]) -> None:
    header = bytes([1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0])
    rig.send(frame(600), header, cuts)
    assert rig.wire.gone == [(header, frame(600))]
    assert len(rig.transmitting.done()) == 1
    assert rig.counted() == {"transmitted_bytes": 600, "transmitted_packets": 1}


def test_without_offloads_the_header_asks_for_nothing() -> None:
    rig = Rig(net.MAC)
    rig.send(frame(60), bytes([1] * HEADER_BYTES))
    assert rig.wire.gone == [(bytes(HEADER_BYTES), frame(60))]
    rig.give(1)
    assert rig.wire.agreed == ()


def test_the_port_hears_what_the_driver_takes() -> None:
    rig = Rig(net.MAC | net.GUEST_CSUM | net.GUEST_TSO4)
    rig.give(1)
    assert rig.wire.agreed == (True, True, False, False)
    # The next driver takes nothing.
    rig.driver.start(net.MAC, size=256)
    rig.driver.queues[0].add([(BUFFERS, BUFFER_BYTES, WRITE)])
    rig.driver.queues[0].notify()
    assert rig.wire.agreed == (False, False, False, False)


@pytest.mark.parametrize("length", [0, 13, 65535 + 19])
def test_what_the_guest_sends_that_is_no_frame(rig: Rig, length: int) -> None:
    rig.send(frame(length), cuts=(12,) if length else ())
    rig.send(frame(60))
    assert [len(sent) for _, sent in rig.wire.gone] == [60]
    assert rig.counted() == {"transmitted_dropped": 1, "transmitted_bytes": 60, "transmitted_packets": 1}
    assert len(rig.transmitting.done()) == 2


def test_frames_wait_for_the_port(rig: Rig) -> None:
    rig.give(1)
    rig.wire.room = 1
    for seed in range(3):
        rig.machine.memory.write(BUFFERS + 4096 * seed, bytes(HEADER_BYTES) + frame(60, seed))
        rig.transmitting.add([(BUFFERS + 4096 * seed, HEADER_BYTES + 60, 0)])
    rig.transmitting.notify()
    assert [sent for _, sent in rig.wire.gone] == [frame(60, 0)] and rig.watching.armed == (True, True)
    assert len(rig.transmitting.done()) == 1
    rig.watching.ready()
    assert len(rig.wire.gone) == 1 and rig.watching.armed == (True, True)
    rig.wire.room = 5
    rig.watching.ready()
    assert [sent for _, sent in rig.wire.gone] == [frame(60, seed) for seed in range(3)]
    assert len(rig.transmitting.done()) == 2 and rig.watching.armed == (True, False)


@pytest.mark.parametrize("sends", [True, False], ids=["sending", "receiving"])
def test_the_cable_is_pulled(rig: Rig, sends: bool) -> None:
    rig.give(4)
    generation = rig.driver.common(0x15, 1)
    rig.wire.broken = "passt is gone"
    if sends:
        rig.send(frame(60))
    else:
        rig.watching.ready()
    assert not rig.link_is_up and rig.watching.armed is None
    assert rig.driver.common(0x15, 1) != generation and rig.driver.isr() & 2
    assert [b"net0" in line and b"passt is gone" in line for line in rig.machine.logged] == [True]
    rig.send(frame(60))
    rig.watching.ready()
    assert len(rig.transmitting.done()) == 1 + sends and not rig.driver.status & NEEDS_RESET
    assert len(rig.machine.logged) == 1
    rig.card.close()
    assert rig.wire.closed


def test_nothing_reaches_a_paused_guest(rig: Rig) -> None:
    rig.give(4)
    rig.paused = True
    rig.wire.coming.append(frame(60))
    rig.watching.ready()
    assert rig.received() == []
    rig.paused = False
    rig.watching.ready()
    assert rig.received() == [(1, frame(60))]


def test_a_reset_forgets_the_frame_that_waited(rig: Rig) -> None:
    rig.receiving.notify()
    rig.wire.coming.append(frame(60))
    rig.watching.ready()
    rig.driver.start(net.MAC | net.MERGEABLE, size=256)
    queue = rig.driver.queues[0]
    queue.add([(BUFFERS, BUFFER_BYTES, WRITE)])
    queue.notify()
    assert queue.done() == []


def test_a_restored_card_goes_on() -> None:
    one, two = Rig(), Rig()
    one.give(4)
    one.wire.coming.append(frame(60))
    one.watching.ready()
    saved = one.bus.save()
    two.machine.memory.write(0, one.machine.memory.read(0, one.machine.memory.size))
    two.bus.restore(saved)
    assert two.watching.armed == (True, False)
    two.wire.coming.append(frame(99))
    two.watching.ready()
    two.receiving.next_used = one.receiving.next_used
    one.received()
    two.receiving.next_used = 1
    assert two.received() == [(1, frame(99))]
    assert two.wire.agreed == (True, True, True, True)
    two.send(frame(77))
    assert [len(sent) for _, sent in two.wire.gone] == [77]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_header_and_frame(parts: list[bytes]) -> None:
    header, rest = split([memoryview(part) for part in parts])
    data = b"".join(parts)
    assert (header, b"".join(rest)) == (data[:HEADER_BYTES], data[HEADER_BYTES:])


_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("mmio"), st.integers(0, 0x4FFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("ring"), st.integers(0, 0x1FFFF), st.sampled_from([2, 4, 8]), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("chain"), st.integers(0, 1), st.integers(0, 5 << 20), st.integers(0, 1 << 17)),
        st.tuples(st.just("notify"), st.integers(0, 3), st.just(0), st.just(0)),
        st.tuples(st.just("frame"), st.integers(0, 70000), st.just(0), st.just(0)),
        st.tuples(st.just("room"), st.integers(0, 2), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(_ACTIONS, st.booleans())
def test_nonsense(actions: list[tuple[str, int, int, int]], mergeable: bool) -> None:
    """Whatever a driver writes anywhere: no exception, and the card does not stop the rest of the machine."""
    rig = Rig(net.MAC | (net.MERGEABLE | net.OFFLOADS if mergeable else 0))
    rig.give(4)
    base = rig.driver.places[1] & ~0xFFFF
    for kind, a, b, c in actions:
        if kind == "mmio":
            rig.bus.write_mmio(base + a // b * b, b, c & ((1 << 8 * b) - 1))
            rig.bus.read_mmio(base + a // b * b, b)
        elif kind == "ring":
            rig.machine.memory.write(0x10000 + a, (c & ((1 << 8 * b) - 1)).to_bytes(b, "little"))
        elif kind == "chain":
            rig.driver.queues[a].add([(b, c, WRITE if a == 0 else 0)])
        elif kind == "notify":
            rig.driver.notify(a)
        elif kind == "frame":
            rig.wire.coming.append(frame(a))
            rig.watching.ready()
        else:
            rig.wire.room = a
        rig.watching.ready()
    rig.card.close()
