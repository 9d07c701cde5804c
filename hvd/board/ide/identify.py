"""What IDENTIFY DEVICE and IDENTIFY PACKET DEVICE answer: 256 words (ATA/ATAPI-6, clauses 8.15 and 8.16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SECTOR: Final = 512
MOST_MULTIPLE: Final = 16  # sectors of a block of READ and WRITE MULTIPLE
LBA28_SECTORS: Final = (1 << 28) - 1

_HEADS, _TRACK = 16, 63
_LARGEST_CHS: Final = 16383 * _HEADS * _TRACK
FIRMWARE: Final = "1.0"
DISK_MODEL, CDROM_MODEL = "HVD HARDDISK", "HVD CD-ROM"


@dataclass(frozen=True, slots=True)
class Geometry:
    """A translation of logical blocks to cylinders, heads and sectors."""

    cylinders: int
    heads: int
    track: int  # sectors, counted from 1

    @property
    def sectors(self) -> int:
        return self.cylinders * self.heads * self.track

    @staticmethod
    def of(sectors: int) -> Geometry:
        """The default translation of a disk (ATA-5, annex B.2: 16 heads, 63 sectors a track)."""
        if sectors < _HEADS * _TRACK:  # smaller than a cylinder
            return Geometry(1, 1, min(sectors, _TRACK)) if sectors < 2 * _TRACK else Geometry(1, sectors // _TRACK, _TRACK)
        return Geometry(min(sectors, _LARGEST_CHS) // (_HEADS * _TRACK), _HEADS, _TRACK)


def _text(words: list[int], first: int, count: int, text: str) -> None:
    """ASCII, the first character of a pair in the high byte."""
    padded = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    for index in range(count):
        words[first + index] = padded[2 * index] << 8 | padded[2 * index + 1]


def _identity(words: list[int], model: str, serial: str) -> None:
    _text(words, 10, 10, serial)
    _text(words, 23, 4, FIRMWARE)
    _text(words, 27, 20, model)


def _packed(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(2, "little") for word in words)


def identify_disk(sectors: int, serial: str, default: Geometry, present: Geometry, multiple: int, write_cache: bool) -> bytes:
    """512 bytes. multiple: sectors of a block, 0 = READ MULTIPLE is off."""
    words = [0] * 256
    _identity(words, DISK_MODEL, serial)
    words[0] = 0x0040  # fixed
    words[1], words[3], words[6] = default.cylinders, default.heads, default.track
    words[47] = 0x8000 | MOST_MULTIPLE
    words[48] = 1  # 32-bit accesses to the data port
    words[49] = 1 << 11 | 1 << 9  # IORDY, LBA; no DMA
    words[50] = 0x4000
    words[51] = 0x0200  # PIO mode 2 without flow control
    words[53] = 0b11  # words 54-58 and 64-70 are valid
    words[54], words[55], words[56] = present.cylinders, present.heads, present.track
    words[57], words[58] = present.sectors & 0xFFFF, present.sectors >> 16 & 0xFFFF
    words[59] = 0x100 | multiple if multiple else 0
    low = min(sectors, LBA28_SECTORS)
    words[60], words[61] = low & 0xFFFF, low >> 16
    words[64] = 0b11  # PIO modes 3 and 4
    words[67] = words[68] = 120  # ns of a PIO cycle
    words[80] = 0b1111110  # ATA-1 to ATA/ATAPI-6
    words[82] = words[85] = 1 << 14 | 1 << 5  # NOP, write cache
    if not write_cache:
        words[85] &= ~(1 << 5)
    words[83] = words[86] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10  # FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses
    words[86] &= ~(1 << 14)
    words[84] = words[87] = 1 << 14
    words[93] = 1 << 14 | 1  # of a hardware reset: a valid word, device 0
    for index in range(4):
        words[100 + index] = sectors >> (16 * index) & 0xFFFF
    return _packed(words)


def identify_cdrom(serial: str) -> bytes:
    """512 bytes."""
    words = [0] * 256
    _identity(words, CDROM_MODEL, serial)
    words[0] = 0x85C0  # ATAPI, CD-ROM, removable, ready for the packet within 50 us, packets of 12 bytes
    words[48] = 1
    words[49] = 1 << 11 | 1 << 9
    words[53] = 0b10
    words[64] = 0b11
    words[67] = words[68] = 120
    words[80] = 0b1111110
    words[82] = words[85] = 1 << 14 | 1 << 9 | 1 << 4  # NOP, DEVICE RESET, packets
    words[83] = words[84] = words[87] = 1 << 14
    return _packed(words)
