"""Tables that know neither where they will lie nor who puts them there.

A kernel's loader places them itself; firmware gets the blobs with a script of what to patch, in the form that
QEMU and SeaBIOS have for it (SeaBIOS src/fw/romfile_loader.h; QEMU hw/acpi/bios-linker-loader.c describes it).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2
_ENTRY_BYTES: Final = 128
_NAME: Final = "56s"


@dataclass(frozen=True, slots=True)
class Pointer:
    """`size` bytes at `offset` of a blob: they hold an offset into the blob `to`, and must become an address."""

    blob: str
    offset: int
    size: int
    to: str


@dataclass(frozen=True, slots=True)
class Checksum:
    """The byte at `offset` makes the sum of `length` bytes from `start` on 0. It is 0 until then."""

    blob: str
    offset: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Blob:
    """alignment: bytes. low: it must lie where kernels search, 0xF0000-0xFFFFF."""

    data: bytes
    alignment: int
    low: bool = False


@dataclass(slots=True)
class Pieces:
    """Blobs by name, and what to patch once they have addresses: pointers first, then checksums, in this order."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    pointers: list[Pointer] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)

    def placed(self, addresses: Mapping[str, int]) -> dict[str, bytes]:
        """The blobs as they are at these addresses."""
        result = {name: bytearray(blob.data) for name, blob in self.blobs.items()}
        for pointer in self.pointers:
            data, end = result[pointer.blob], pointer.offset + pointer.size
            value = int.from_bytes(data[pointer.offset : end], "little") + addresses[pointer.to]
            data[pointer.offset : end] = value.to_bytes(pointer.size, "little")
        for checksum in self.checksums:
            data = result[checksum.blob]
            data[checksum.offset] = -sum(data[checksum.start : checksum.start + checksum.length]) & 0xFF
        return {name: bytes(data) for name, data in result.items()}

    def loader_script(self) -> bytes:
        """The file etc/table-loader for firmware that finds the blobs as files of their names."""
        entries = [
            struct.pack(
                f"<I{_NAME}IB", _ALLOCATE, name.encode(), blob.alignment, _ZONE_FSEG if blob.low else _ZONE_HIGH
            )
            for name, blob in self.blobs.items()
        ]
        entries += [
            struct.pack(f"<I{_NAME}{_NAME}IB", _ADD_POINTER, p.blob.encode(), p.to.encode(), p.offset, p.size)
            for p in self.pointers
        ]
        entries += [
            struct.pack(f"<I{_NAME}III", _ADD_CHECKSUM, c.blob.encode(), c.offset, c.start, c.length)
            for c in self.checksums
        ]
        return b"".join(entry.ljust(_ENTRY_BYTES, b"\0") for entry in entries)
