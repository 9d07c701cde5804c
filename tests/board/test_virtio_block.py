"""virtio-blk on an image in memory, by a driver in Python."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

import pytest
from virtio_driver import BUFFERS, WRITE, Driver, FakeMachine, bus_of

from hvd.board.virtio.block import BLK_SIZE, DISCARD, FLUSH, RO, SEG_MAX, TOPOLOGY, WRITE_ZEROES, Block

SECTORS = 64
OK, IOERR, UNSUPP = 0, 1, 2
HEADER, STATUS, DATA = BUFFERS, BUFFERS + 0x800, BUFFERS + 0x1000


class MemoryImage:
    """The double of BlockImage: bytes, and the errors one asks for."""

    def __init__(self, read_only: bool = False) -> None:
        self.data = bytearray(b"".join(bytes([n]) * 512 for n in range(SECTORS)))
        self.size_bytes, self.read_only = len(self.data), read_only
        self.fail: OSError | None = None
        self.calls: list[tuple[str, int, int]] = []

    def _called(self, what: str, offset: int, length: int) -> None:
        assert offset >= 0 and offset + length <= self.size_bytes, "beyond the image"
        self.calls.append((what, offset, length))
        if self.fail is not None:
            raise self.fail

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._called("read", offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        assert not self.read_only
        self._called("write", offset, sum(map(len, buffers)))
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self) -> None:
        self._called("flush", 0, 0)

    def discard(self, offset: int, length: int) -> None:
        assert not self.read_only
        self._called("discard", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None: ...


class Disk:
    def __init__(self, read_only: bool = False) -> None:
        self.machine = FakeMachine()
        self.image = MemoryImage(read_only)
        block = Block(self.image, "disk0", self.machine.log)
        self.driver = Driver(self.machine, bus_of(self.machine, block)).start(block.features)
        self.memory = self.machine.memory

    def request(self, kind: int, sector: int, *buffers: tuple[int, int, int], header: int = 16) -> int:
        """Status."""
        self.memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(STATUS, b"\xee")
        queue = self.driver.queues[0]
        queue.add([(HEADER, header, 0), *buffers, (STATUS, 1, WRITE)])
        queue.notify()
        assert len(queue.done()) == 1
        return self.memory.read(STATUS, 1)[0]


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_configuration(disk: Disk) -> None:
    driver = disk.driver
    assert driver.pci.read(0) == 0x1042_1AF4
    for feature in (SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, DISCARD, WRITE_ZEROES):
        assert driver.offered() & feature
    assert not driver.offered() & RO and Disk(read_only=True).driver.offered() & (RO | DISCARD) == RO
    assert driver.config(0, 8) == SECTORS and driver.config(12, 4) == 254 and driver.config(20, 4) == 512
    assert driver.config(24, 1) == 3 and driver.config(34, 2) == 1
    assert driver.config(40, 4) == 32 and driver.config(56, 1) == 1


def test_read_and_write_in_pieces(disk: Disk) -> None:
    assert disk.request(0, 3, (DATA, 512, WRITE), (DATA + 0x1000, 256, WRITE), (DATA + 0x2000, 256, WRITE)) == OK
    assert disk.memory.read(DATA, 512) == b"\3" * 512
    assert disk.memory.read(DATA + 0x1000, 256) == disk.memory.read(DATA + 0x2000, 256) == b"\4" * 256
    assert {(DATA, 512), (DATA + 0x2000, 256), (STATUS, 1)} <= set(disk.machine.changed), "code there is dropped"
    disk.memory.write(DATA, b"new" * 512)
    assert disk.request(1, 62, (DATA, 1024, 0)) == OK
    assert disk.image.data[62 * 512 :] == (b"new" * 512)[:1024]
    assert disk.request(4, 0) == OK and disk.image.calls[-1][0] == "flush"


def test_any_layout_of_the_same_request(disk: Disk) -> None:
    """2.7.4.2: the device makes no assumption about the framing."""
    disk.memory.write(HEADER, struct.pack("<IIQ", 1, 0, 7) + b"A" * 512)
    queue = disk.driver.queues[0]
    queue.add([(HEADER, 5, 0), (HEADER + 5, 100, 0), (HEADER + 105, 423, 0), (STATUS, 0, WRITE), (STATUS, 1, WRITE)])
    queue.notify()
    queue.add([(HEADER, 16, 0), (DATA, 513, WRITE)])
    disk.memory.write(HEADER, struct.pack("<I", 0))
    queue.notify()
    assert len(queue.done()) == 2
    assert disk.image.data[7 * 512 : 8 * 512] == b"A" * 512 and disk.memory.read(DATA, 513) == b"A" * 512 + b"\0"


def test_identifier(disk: Disk) -> None:
    assert disk.request(8, 0, (DATA, 20, WRITE)) == OK
    assert disk.memory.read(DATA, 20) == b"disk0".ljust(20, b"\0")
    assert disk.request(8, 0, (DATA, 8, WRITE)) == IOERR


@pytest.mark.parametrize("kind", [11, 13])
def test_discard_and_write_zeroes(disk: Disk, kind: int) -> None:
    disk.memory.write(DATA, struct.pack("<QIIQII", 1, 2, 0, 10, 1, 0))
    assert disk.request(kind, 0, (DATA, 32, 0)) == OK
    assert not any(disk.image.data[512 : 3 * 512]) and not any(disk.image.data[5120:5632]) and disk.image.data[1536] == 3
    for ranges in (struct.pack("<QII", SECTORS, 1, 0), struct.pack("<QII", (1 << 64) - 1, 2, 0), b"", b"x" * 17):
        disk.memory.write(DATA, ranges)
        assert disk.request(kind, 0, (DATA, len(ranges), 0)) == IOERR
    disk.memory.write(DATA, struct.pack("<QII", 1, 1, 2))
    assert disk.request(kind, 0, (DATA, 16, 0)) == UNSUPP


def test_what_cannot_be_done(disk: Disk) -> None:
    assert disk.request(0, SECTORS, (DATA, 512, WRITE)) == IOERR
    assert disk.request(0, SECTORS - 1, (DATA, 1024, WRITE)) == IOERR
    assert disk.request(0, (1 << 64) - 1, (DATA, 512, WRITE)) == IOERR
    assert disk.request(1, 0, (DATA, 100, 0)) == IOERR
    assert disk.request(99, 0) == UNSUPP
    assert disk.image.calls == []


def test_read_only(disk: Disk) -> None:
    disk = Disk(read_only=True)
    assert disk.request(1, 0, (DATA, 512, 0)) == IOERR
    disk.memory.write(DATA, struct.pack("<QII", 1, 1, 0))
    assert disk.request(11, 0, (DATA, 16, 0)) == IOERR
    assert disk.request(0, 0, (DATA, 512, WRITE)) == OK


def test_errors_of_the_host_are_the_guests_and_said_once(disk: Disk) -> None:
    disk.image.fail = OSError(errno.ENOSPC, "no space")
    for _ in range(3):
        assert disk.request(1, 0, (DATA, 512, 0)) == IOERR
    assert disk.request(4, 0) == IOERR
    assert disk.machine.logged == [b"disk0: a write failed: No space left on device; the guest sees an I/O error"]
    disk.image.fail = None
    assert disk.request(1, 0, (DATA, 512, 0)) == OK


@pytest.mark.parametrize("buffers", [[(HEADER, 15, 0), (STATUS, 1, WRITE)], [(HEADER, 16, 0)], [(STATUS, 1, WRITE)]])
def test_requests_without_form(disk: Disk, buffers: list[tuple[int, int, int]]) -> None:
    queue = disk.driver.queues[0]
    queue.add(buffers)
    queue.notify()
    assert disk.driver.status & 64 and b"a request with" in disk.machine.logged[0]
