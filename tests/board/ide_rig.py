"""What the tests of IDE share: images in memory, and a controller driven as a driver does, through the hot board's ports."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hvd.board.bus import Bus
from hvd.board.hot import HotBoard, PortResult
from hvd.board.ide.controller import Ide
from hvd.trace.points import BackendId

PRIMARY, SECONDARY = 0x1F0, 0x170
DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)
CONTROL = 0x3F6 - 0x1F0  # offset, of both channels
REQUEST, FAILED = 0x08, 0x01


class MemoryImage:
    """A BlockImage in memory that fails where it is told to."""

    def __init__(self, content: bytes, read_only: bool = False) -> None:
        self.content = bytearray(content)
        self.read_only = read_only
        self.size_bytes = len(content)
        self.broken: set[int] = set()  # sectors
        self.flushes = 0

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size_bytes:
            raise ValueError(f"{length} at {offset}")
        if self.broken & set(range(offset // 512, (offset + length + 511) // 512)):
            raise OSError(errno.EIO, "broken")

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            self._check(offset, buffer.nbytes)
            buffer[:] = self.content[offset : offset + buffer.nbytes]
            offset += buffer.nbytes

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "read-only")
        for buffer in buffers:
            self._check(offset, buffer.nbytes)
            self.content[offset : offset + buffer.nbytes] = buffer
            offset += buffer.nbytes

    def flush(self) -> None:
        self.flushes += 1
        if -1 in self.broken:
            raise OSError(errno.ENOSPC, "full")

    def discard(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def close(self) -> None: ...


def numbered(sectors: int) -> bytes:
    """A disk whose sectors tell their number."""
    return b"".join(number.to_bytes(4, "little") * 128 for number in range(sectors))


class Rig:
    """A controller behind the hot board, as a guest sees it."""

    def __init__(self, *disks: MemoryImage, cdroms: Sequence[MemoryImage] = ()) -> None:
        self.board = HotBoard(BackendId.EMULATION)
        self.lines: dict[int, bool] = {}
        self.trips = 0  # accesses that came to Python
        entries = [self._entry(f"disk{n}", image, False) for n, image in enumerate(disks)]
        entries += [self._entry(f"cdrom{n}", image, True) for n, image in enumerate(cdroms)]
        self.machine: Any = SimpleNamespace(disks=entries, board=self.board, set_irq=self._set_irq)
        self.ide = Ide(self.machine)
        self.bus = Bus([self.ide])
        for ports in self.ide.ports:
            self.board.claim(ports)

    @staticmethod
    def _entry(name: str, image: MemoryImage, cdrom: bool) -> Any:
        return SimpleNamespace(spec=SimpleNamespace(name=name, bus="ide", cdrom=cdrom), image=image)

    def _set_irq(self, irq: int, level: bool) -> None:
        self.lines[irq] = level

    # ---- accesses

    def read(self, port: int, size: int = 1) -> int:
        result, value = self.board.port_in(port, size)
        if result is PortResult.DONE:
            return value
        self.trips += 1
        return self.bus.read_port(port, size)

    def write(self, port: int, value: int, size: int = 1) -> None:
        if self.board.port_out(port, size, value) is not PortResult.DONE:
            self.trips += 1
            self.bus.write_port(port, size, value)

    def data_in(self, base: int, length: int, size: int = 2) -> bytes:
        return b"".join(self.read(base, size).to_bytes(size, "little") for _ in range(-(-length // size)))

    def data_out(self, base: int, data: bytes, size: int = 2) -> None:
        for at in range(0, len(data), size):
            self.write(base, int.from_bytes(data[at : at + size], "little"), size)

    # ---- commands

    def command(
        self, code: int, lba: int = 0, count: int = 1, *, base: int = PRIMARY, slave: bool = False, wide: bool = False, feature: int = 0
    ) -> None:
        """With a logical block address of 28 bits, or wide: 48."""
        head = 0 if wide else lba >> 24 & 0xF
        self.write(base + DEVICE, 0xE0 | (0x10 if slave else 0) | head)
        self.write(base + ERROR, feature)
        if wide:
            for register, value in ((COUNT, count >> 8), (LOW, lba >> 24), (MID, lba >> 32), (HIGH, lba >> 40)):
                self.write(base + register, value & 0xFF)
        for register, value in ((COUNT, count), (LOW, lba), (MID, lba >> 8), (HIGH, lba >> 16)):
            self.write(base + register, value & 0xFF)
        self.write(base + STATUS, code)

    def status(self, base: int = PRIMARY) -> int:
        return self.read(base + CONTROL)

    def packet(self, packet: bytes, limit: int = 2048, *, base: int = SECONDARY, size: int = 2) -> bytes:
        """A packet command and all it answers; the status afterwards is for the caller to look at."""
        self.write(base + DEVICE, 0xA0)
        self.write(base + ERROR, 0)
        self.write(base + MID, limit & 0xFF)
        self.write(base + HIGH, limit >> 8)
        self.write(base + STATUS, 0xA0)
        assert self.read(base + STATUS) & REQUEST
        assert self.read(base + COUNT) == 1  # the packet, please
        self.data_out(base, packet.ljust(12, b"\0"), size)
        answer = b""
        while self.read(base + STATUS) & REQUEST:
            assert self.read(base + COUNT) == 2
            length = self.read(base + MID) | self.read(base + HIGH) << 8
            assert 0 < length <= limit
            answer += self.data_in(base, length, size)
        assert self.read(base + COUNT) == 3
        return answer
