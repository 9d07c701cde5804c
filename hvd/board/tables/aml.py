"""ACPI Machine Language, as much as a small DSDT needs (ACPI specification 6.5, chapter 20; resource descriptors: 6.4).

Every function returns the bytes of one term; a term list is their concatenation.
"""

from __future__ import annotations

import struct
from typing import Final

_ZERO, _ONE, _BYTE, _WORD, _DWORD, _QWORD, _STRING = 0x00, 0x01, 0x0A, 0x0B, 0x0C, 0x0E, 0x0D
_NAME, _SCOPE, _BUFFER, _PACKAGE, _DUAL, _MULTI = 0x08, 0x10, 0x11, 0x12, 0x2E, 0x2F
_DEVICE: Final = b"\x5b\x82"
_END_TAG: Final = b"\x79\x00"
MEMORY, IO, BUS_NUMBER = 0, 1, 2


def integer(value: int) -> bytes:
    """In its shortest form."""
    if value < 2:
        return bytes((_ZERO, _ONE)[value : value + 1])
    for prefix, form, limit in ((_BYTE, "<B", 1 << 8), (_WORD, "<H", 1 << 16), (_DWORD, "<I", 1 << 32)):
        if value < limit:
            return bytes((prefix,)) + struct.pack(form, value)
    return bytes((_QWORD,)) + struct.pack("<Q", value)


def _segment(name: str) -> bytes:
    return name.ljust(4, "_").encode("ascii")


def path(name: str) -> bytes:
    """ "\\_SB.PCI0", "_HID": names of up to four characters, from the root or from here."""
    root = b"\\" if name.startswith("\\") else b""
    segments = [_segment(part) for part in name.removeprefix("\\").split(".") if part]
    prefix = {0: b"\0", 1: b"", 2: bytes((_DUAL,))}.get(len(segments), bytes((_MULTI, len(segments))))
    return root + prefix + b"".join(segments)


def _with_length(body: bytes) -> bytes:
    """PkgLength counts itself."""
    if len(body) + 1 < 1 << 6:
        return bytes((len(body) + 1,)) + body
    for count in (1, 2, 3):
        length = len(body) + 1 + count
        if length < 1 << (4 + 8 * count):
            return bytes((count << 6 | length & 0xF,)) + (length >> 4).to_bytes(count, "little") + body
    raise ValueError("a package of more than 256 MiB")


def name(what: str, value: bytes) -> bytes:
    return bytes((_NAME,)) + path(what) + value


def scope(where: str, *terms: bytes) -> bytes:
    return bytes((_SCOPE,)) + _with_length(path(where) + b"".join(terms))


def device(what: str, *terms: bytes) -> bytes:
    return _DEVICE + _with_length(path(what) + b"".join(terms))


def package(*elements: bytes) -> bytes:
    return bytes((_PACKAGE,)) + _with_length(bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    return bytes((_BUFFER,)) + _with_length(integer(len(data)) + data)


def eisa_id(text: str) -> bytes:
    """ "PNP0A03", compressed: three letters of five bits, four digits, big-endian."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return integer(int.from_bytes(struct.pack(">HH", letters, int(text[3:], 16)), "little"))


def resources(*descriptors: bytes) -> bytes:
    """A resource template. The checksum of its end tag is 0: not checked (6.4.2.9)."""
    return buffer(b"".join(descriptors) + _END_TAG)


def io(first: int, count: int) -> bytes:
    """Fixed I/O ports, 16 bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def irq(number: int) -> bytes:
    """An ISA interrupt: edge, active high, exclusive (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << number)


def _address(tag: int, form: str, kind: int, flags: int, first: int, last: int) -> bytes:
    # Producer; minimum and maximum are fixed, positive decode.
    body = struct.pack("<BBB" + 5 * form, kind, 0x0C, flags, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body


def bus_range(first: int, last: int) -> bytes:
    return _address(0x88, "H", BUS_NUMBER, 0, first, last)


def io_range(first: int, last: int) -> bytes:
    """Ports that a bridge passes on: the entire range (6.4.3.5.5)."""
    return _address(0x88, "H", IO, 3, first, last)


def memory_range(first: int, last: int) -> bytes:
    """32-bit memory that a bridge passes on: read-write, not cacheable."""
    return _address(0x87, "I", MEMORY, 1, first, last)
