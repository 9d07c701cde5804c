"""virtio-blk (VIRTIO 1.2, 5.2), before an image of hvd.board.block. A request is done when its notification returns:
data goes between the image's file and guest memory without a copy, in the vcpu's thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from hvd.board.virtio.device import VirtioDevice
from hvd.board.virtio.queue import QueueError

if TYPE_CHECKING:
    from hvd.board.block import BlockImage

SECTOR: Final = 512
QUEUE: Final = 256
# Features, 5.2.3
SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, DISCARD, WRITE_ZEROES = (1 << bit for bit in (2, 5, 6, 9, 10, 13, 14))
# Types of requests and what they end with, 5.2.6
IN, OUT, TYPE_FLUSH, GET_ID, TYPE_DISCARD, TYPE_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
HEADER: Final = struct.Struct("<IIQ")
RANGE: Final = struct.Struct("<QII")  # of discard and write-zeroes: sector, sectors, flags
UNMAP: Final = 1
ID_BYTES: Final = 20
PHYSICAL_BLOCK_EXPONENT: Final = 3  # 4 KiB, what file systems of hosts use
MOST_SECTORS: Final = (1 << 31) // SECTOR  # of one range
MOST_RANGES: Final = 32


class Block(VirtioDevice):
    """A disk. What the image answers with an OSError is an I/O error of the guest, and is said once for each errno."""

    name: ClassVar[str] = "virtio-blk"
    device_id: ClassVar[int] = 2
    class_code: ClassVar[int] = 0x01_80_00
    queue_sizes = (QUEUE,)

    def __init__(self, image: BlockImage, serial: str, log: Callable[[bytes], None]) -> None:
        """serial: what the guest sees in /sys/block/vda/serial, up to 20 characters."""
        self._image, self._serial, self._log = image, serial, log
        self._sectors = image.size_bytes // SECTOR
        self._told: set[int | None] = set()
        self.features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | (RO if image.read_only else DISCARD | WRITE_ZEROES)
        self._config = struct.pack(
            "<QIIHBBIBBHIBBHIIIIIBxxx",
            self._sectors, 0, QUEUE - 2, 0, 0, 0, SECTOR,
            PHYSICAL_BLOCK_EXPONENT, 0, 1 << PHYSICAL_BLOCK_EXPONENT, 0,
            1, 0, 1,
            MOST_SECTORS, MOST_RANGES, 1 << PHYSICAL_BLOCK_EXPONENT,
            MOST_SECTORS, MOST_RANGES, 1,
        )  # fmt: skip

    @property
    def config(self) -> bytes:
        return self._config

    def handle_queue(self, index: int) -> None:
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            readable, writable = chain.readable, chain.writable
            # Drivers of today give the header and the status descriptors of their own; any layout is allowed (2.7.4.2).
            if not readable or len(readable[0]) != HEADER.size:
                readable = _split(readable, HEADER.size)
            if not writable or len(writable[-1]) != 1:
                writable = _split_last(writable)
            kind, _, sector = HEADER.unpack(readable[0])
            writable[-1][0] = self._serve(kind, sector, readable[1:], writable[:-1])
            queue.push(chain, chain.capacity)

    def _serve(self, kind: int, sector: int, data: Sequence[memoryview], into: Sequence[memoryview]) -> int:
        """One request; returns its status."""
        try:
            if kind == IN:
                length = sum(map(len, into))
                if length % SECTOR or sector + length // SECTOR > self._sectors:
                    return IOERR
                self._image.read(sector * SECTOR, into)
            elif kind == OUT:
                length = sum(map(len, data))
                if length % SECTOR or sector + length // SECTOR > self._sectors or self._image.read_only:
                    return IOERR
                self._image.write(sector * SECTOR, data)
            elif kind == TYPE_FLUSH:
                self._image.flush()
            elif kind == GET_ID:
                return _fill(into, self._serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0"))
            elif kind in (TYPE_DISCARD, TYPE_WRITE_ZEROES):
                return self._clear(kind, data)
            else:
                return UNSUPP
        except OSError as error:
            self._report(kind, error)
            return IOERR
        return OK

    def _clear(self, kind: int, data: Sequence[memoryview]) -> int:
        """Both make zeroes: what was discarded reads as zeroes here (5.2.6.2 leaves it open)."""
        length = sum(map(len, data))
        if self._image.read_only or not length or length % RANGE.size or length > RANGE.size * MOST_RANGES:
            return IOERR
        ranges = b"".join(data)
        for sector, sectors, flags in RANGE.iter_unpack(ranges):
            if flags & ~(UNMAP if kind == TYPE_WRITE_ZEROES else 0):
                return UNSUPP
            if sectors > MOST_SECTORS or sector + sectors > self._sectors:
                return IOERR
            if sectors:
                self._image.discard(sector * SECTOR, sectors * SECTOR)
        return OK

    def _report(self, kind: int, error: OSError) -> None:
        if error.errno not in self._told:
            self._told.add(error.errno)
            what = "read" if kind == IN else "write"
            reason = os.strerror(error.errno) if error.errno else str(error)
            self._log(f"{self._serial}: a {what} failed: {reason}; the guest sees an I/O error".encode())


def _split(views: Sequence[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes as one view (a copy, if they are scattered), then the rest."""
    head, rest = bytearray(), []
    for view in views:
        missing = length - len(head)
        head += view[:missing]
        if len(view) > missing:
            rest.append(view[missing:])
    if len(head) < length:
        raise QueueError(f"a request with a header of {len(head)} bytes")
    return [memoryview(head), *rest]


def _split_last(views: Sequence[memoryview]) -> list[memoryview]:
    """The same views, of which the last is one byte long."""
    kept = [view for view in views if len(view)]
    if not kept:
        raise QueueError("a request without room for its status")
    last = kept.pop()
    return [*kept, last[:-1], last[-1:]] if len(last) > 1 else [*kept, last]


def _fill(views: Sequence[memoryview], data: bytes) -> int:
    done = 0
    for view in views:
        piece = data[done : done + len(view)]
        view[: len(piece)] = piece
        done += len(piece)
    return OK if done == len(data) else IOERR
