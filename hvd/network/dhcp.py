"""The networks' DHCP server (RFC 2131), so that a guest is usable without configuration.

There are no leases to keep: which card has which address is what the guests were made with, so the answer is a function
of the card's MAC, and it is for ever; a daemon that is away does no harm to guests that have their address. Cards that
no guest has get no answer. A guest that floods the server is read slowly: the kernel drops what it sends meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

SERVER_PORT, CLIENT_PORT = 67, 68
# Requests that are read in one go, and how long none are read after them.
BURST = 16
BURST_SECONDS = 0.05
RECEIVE_BYTES = 1 << 16
MOST_BYTES = 1500

_FIXED = struct.Struct("!4BIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_ETHERNET = 1
_BROADCAST = 0x8000
# RFC 2132: options and message types.
_PAD, _END = 0, 255
_MASK, _ROUTER, _DNS, _HOST_NAME, _MTU, _BROADCAST_ADDRESS = 1, 3, 6, 12, 26, 28
_REQUESTED, _LEASE_SECONDS, _TYPE, _SERVER = 50, 51, 53, 54
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_FOR_EVER = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Subnet:
    """What all answers on one network have in common."""

    subnet: IPv4Network
    server: IPv4Address  # the host on the bridge
    mtu: int
    routed: bool  # the server is a way out
    nameservers: Sequence[IPv4Address] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """Whom the answer is for."""

    address: IPv4Address
    host_name: str


# By MAC, "52:54:00:12:34:56".
FindCard = Callable[[str], Card | None]


def answer(packet: bytes, network: Subnet, find: FindCard) -> bytes | None:
    """The reply to a client's packet; None = none is due. Never raises, whatever the packet holds."""
    if len(packet) < _FIXED.size:
        return None
    op, hardware, length, _, transaction, _, flags, client, _, _, _, hardware_address, _, _, cookie = _FIXED.unpack_from(
        packet
    )
    if op != 1 or hardware != _ETHERNET or length != 6 or cookie != _COOKIE:
        return None
    card = find(hardware_address[:6].hex(":"))
    options = _options(packet[_FIXED.size :])
    kind = options.get(_TYPE, b"")
    server = network.server.packed
    if card is None or len(kind) != 1 or options.get(_SERVER, server) != server:
        return None
    if kind[0] == _DISCOVER:
        reply, yours = _OFFER, card.address.packed
    elif kind[0] == _INFORM:
        reply, yours = _ACK, bytes(4)
    elif kind[0] == _REQUEST:
        asked = options.get(_REQUESTED, client)
        agreed = asked == card.address.packed
        reply, yours = (_ACK, card.address.packed) if agreed else (_NAK, bytes(4))
    else:
        return None
    fixed = _FIXED.pack(
        2, _ETHERNET, 6, 0, transaction, 0, flags | _BROADCAST, bytes(4) if reply == _NAK else client, yours, server,
        bytes(4), hardware_address, b"", b"", _COOKIE,
    )  # fmt: skip
    told = [(_TYPE, bytes([reply])), (_SERVER, server)]
    if reply != _NAK:
        if kind[0] != _INFORM:
            told.append((_LEASE_SECONDS, _FOR_EVER.to_bytes(4, "big")))
        told += _configuration(network, card)
    encoded = b"".join(bytes([code, len(value)]) + value for code, value in told)
    # RFC 1542, 2.1: no shorter than a BOOTP message.
    return (fixed + encoded + bytes([_END])).ljust(300, b"\0")


def _configuration(network: Subnet, card: Card) -> list[tuple[int, bytes]]:
    told = [
        (_MASK, network.subnet.netmask.packed),
        (_BROADCAST_ADDRESS, network.subnet.broadcast_address.packed),
        (_MTU, max(network.mtu, 68).to_bytes(2, "big")),
        (_HOST_NAME, card.host_name.encode()[:63]),
    ]
    if network.routed:
        told.append((_ROUTER, network.server.packed))
        if network.nameservers:
            told.append((_DNS, b"".join(address.packed for address in network.nameservers[:3])))
    return told


def _options(data: bytes) -> dict[int, bytes]:
    """As far as they are whole; a repeated one is concatenated (RFC 3396)."""
    options: dict[int, bytes] = {}
    position = 0
    while position < len(data) and data[position] != _END:
        code = data[position]
        position += 1
        if code == _PAD:
            continue
        if position >= len(data):
            break
        length = data[position]
        value = data[position + 1 : position + 1 + length]
        if len(value) < length:
            break
        options[code] = options.get(code, b"") + value
        position += 1 + length
    return options


def nameservers(path: Path = Path("/etc/resolv.conf")) -> list[IPv4Address]:
    """The host's, as far as guests can reach them: not those on the host's own loopback."""
    found = []
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = IPv4Address(words[1])
            except ValueError:
                continue
            if not address.is_loopback:
                found.append(address)
    return found


class Server:
    """Answers on one bridge, in the event loop it is made in."""

    def __init__(self, bridge: str, network: Subnet, find: FindCard) -> None:
        """Raises OSError when another server has the port on this bridge, or without the right to bind it."""
        self._network = network
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode() + b"\0")
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            self._socket.bind(("", SERVER_PORT))
        except OSError:
            self._socket.close()
            raise
        self._listen()

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                packet = self._socket.recv(MOST_BYTES)
                reply = answer(packet, self._network, self._find)
                if reply is not None:
                    # To all: who asks for its address cannot be reached by it yet.
                    self._socket.sendto(reply, ("255.255.255.255", CLIENT_PORT))
            except BlockingIOError:
                return
            except OSError:
                break  # the bridge is down or gone; try again a little later
        self._loop.remove_reader(self._socket)
        self._timer = self._loop.call_later(BURST_SECONDS, self._listen)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
