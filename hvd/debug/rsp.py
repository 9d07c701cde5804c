"""gdb's remote protocol as bytes: framing, checksums, acknowledgements (GDB manual, E.1 "Overview").

Nothing that arrives raises: what is no packet is skipped, a packet with a wrong checksum is asked for again, one that is
too long is answered as an unknown one is.
"""

from __future__ import annotations

import enum
from typing import Final

# Of a packet's payload as it stands on the wire, in bytes; announced to gdb.
MOST_BYTES: Final = 0x10000
_BREAK: Final = 0x03
_ESCAPE: Final = 0x7D
_ESCAPED: Final = b"#$}*"
_HEX: Final = b"0123456789abcdefABCDEF"

UNSUPPORTED: Final = b""


class Interrupt(enum.Enum):
    """Ctrl-C in gdb."""

    INTERRUPT = 0


Event = bytes | Interrupt


class Link:
    """The stub's end of one connection: feed() what arrives, take what is to be sent from `to_send`."""

    def __init__(self) -> None:
        self.to_send = bytearray()
        self.acknowledges = True
        self._payload: bytearray | None = None  # of the packet that is arriving; None = between packets
        self._too_long = False
        self._checksum: bytearray | None = None  # its digits so far; None = the payload is not complete
        self._last = b""
        self._repeat = False

    def feed(self, data: bytes) -> list[Event]:
        """The packets' payloads, unescaped, and interrupts, in their order."""
        events: list[Event] = []
        for byte in data:
            if self._checksum is not None:
                self._digit(byte, events)
            elif self._payload is not None:
                self._inside(byte)
            else:
                self._between(byte, events)
        if self._repeat:  # once, however often it was asked for
            self._repeat = False
            self.to_send += self._last
        return events

    def send(self, payload: bytes) -> None:
        """A packet for gdb."""
        self._last = frame(payload)
        self.to_send += self._last

    def _between(self, byte: int, events: list[Event]) -> None:
        if byte == 0x24:  # $
            self._begin()
        elif byte == _BREAK:
            events.append(Interrupt.INTERRUPT)
        elif byte == 0x2D and self.acknowledges:  # -: it did not understand
            self._repeat = True

    def _begin(self) -> None:
        self._payload, self._too_long, self._checksum = bytearray(), False, None

    def _inside(self, byte: int) -> None:
        if self._payload is None:
            raise AssertionError("a packet has begun")
        if byte == 0x24:  # it stands in no packet unescaped: the one before was cut short
            self._begin()
        elif byte == 0x23:  # #
            self._checksum = bytearray()
        elif len(self._payload) < MOST_BYTES:
            self._payload.append(byte)
        else:
            self._too_long = True

    def _digit(self, byte: int, events: list[Event]) -> None:
        if self._checksum is None or self._payload is None:
            raise AssertionError("a packet has ended")
        self._checksum.append(byte)
        if len(self._checksum) < 2:
            return
        payload, digits, too_long = bytes(self._payload), bytes(self._checksum), self._too_long
        self._payload = self._checksum = None
        right = all(digit in _HEX for digit in digits) and (too_long or int(digits, 16) == sum(payload) & 0xFF)
        if self.acknowledges:
            self.to_send += b"+" if right else b"-"
            if not right:
                return
        # Without acknowledgements gdb does not repeat: it gets the answer to what it seems to have said.
        events.append(UNSUPPORTED if too_long else unescape(payload))


def frame(payload: bytes) -> bytes:
    """$payload#checksum."""
    body = escape(payload)
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


def escape(payload: bytes) -> bytes:
    """Binary data as it may stand in a packet of the stub's."""
    if not any(byte in payload for byte in _ESCAPED):
        return payload
    return b"".join(bytes((_ESCAPE, byte ^ 0x20)) if byte in _ESCAPED else bytes((byte,)) for byte in payload)


def unescape(payload: bytes) -> bytes:
    """The reverse; an escape without a byte behind it is dropped."""
    if _ESCAPE not in payload:
        return payload
    out = bytearray()
    escaped = False
    for byte in payload:
        if escaped:
            out.append(byte ^ 0x20)
            escaped = False
        elif byte == _ESCAPE:
            escaped = True
        else:
            out.append(byte)
    return bytes(out)


def number(digits: bytes) -> int:
    """A hexadecimal number of at most 64 bits. Raises ValueError."""
    if not 1 <= len(digits) <= 16 or any(digit not in _HEX for digit in digits):
        raise ValueError(f"{digits!r} is no number")
    return int(digits, 16)


def hex_bytes(digits: bytes) -> bytes:
    """Bytes of two digits each, without blanks. Raises ValueError."""
    if len(digits) % 2 or any(digit not in _HEX for digit in digits):
        raise ValueError("no pairs of hexadecimal digits")
    return bytes.fromhex(digits.decode("ascii"))
