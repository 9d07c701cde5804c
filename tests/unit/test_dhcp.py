"""The DHCP server's answers, by RFC 2131."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd.network import dhcp

MAC = bytes.fromhex("525400123456")
NETWORK = dhcp.Subnet(
    IPv4Network("10.1.2.0/24"), IPv4Address("10.1.2.1"), 1400, True, [IPv4Address("9.9.9.9"), IPv4Address("1.1.1.1")]
)
FIXED = struct.Struct("!4BIHH4s4s4s4s16s64s128s4s")
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)


def find(mac: str) -> dhcp.Card | None:
    return dhcp.Card(IPv4Address("10.1.2.7"), "web-1") if mac == MAC.hex(":") else None


def packet(kind: int, *options: tuple[int, bytes], mac: bytes = MAC, client: str = "0.0.0.0", op: int = 1) -> bytes:
    fixed = FIXED.pack(op, 1, 6, 0, 0xABCD, 3, 0, IPv4Address(client).packed, bytes(4), bytes(4), bytes(4), mac, b"", b"",
                       b"\x63\x82\x53\x63")  # fmt: skip
    told = b"".join(bytes([code, len(value)]) + value for code, value in ((53, bytes([kind])), *options))
    return fixed + told + b"\xff"


def read(reply: bytes | None) -> tuple[dict[int, bytes], str]:
    """Options, and the address that it gives."""
    assert reply is not None and len(reply) >= 300
    op, hardware, length, _, transaction, _, flags, _, yours, server, _, mac, _, _, _ = FIXED.unpack_from(reply)
    assert (op, hardware, length, transaction, mac[:6]) == (2, 1, 6, 0xABCD, MAC)
    assert flags & 0x8000 and IPv4Address(server) == NETWORK.server
    return dhcp._options(reply[FIXED.size :]), str(IPv4Address(yours))


def test_a_client_gets_its_address() -> None:
    options, address = read(dhcp.answer(packet(DISCOVER), NETWORK, find))
    assert address == "10.1.2.7" and options[53] == bytes([OFFER])
    request = packet(REQUEST, (50, IPv4Address(address).packed), (54, options[54]))
    options, address = read(dhcp.answer(request, NETWORK, find))
    assert address == "10.1.2.7"
    assert options == {
        53: bytes([ACK]), 54: NETWORK.server.packed, 51: b"\xff\xff\xff\xff", 1: bytes([255, 255, 255, 0]),
        28: bytes([10, 1, 2, 255]), 26: (1400).to_bytes(2, "big"), 12: b"web-1", 3: NETWORK.server.packed,
        6: bytes([9, 9, 9, 9, 1, 1, 1, 1]),
    }  # fmt: skip


def test_a_network_without_a_way_out_tells_of_none() -> None:
    closed = dhcp.Subnet(NETWORK.subnet, NETWORK.server, 1500, False)
    options, _ = read(dhcp.answer(packet(DISCOVER), closed, find))
    assert not {3, 6} & options.keys()


def test_renewal_and_another_address() -> None:
    assert read(dhcp.answer(packet(REQUEST, client="10.1.2.7"), NETWORK, find))[0][53] == bytes([ACK])
    options, address = read(dhcp.answer(packet(REQUEST, (50, IPv4Address("10.9.9.9").packed)), NETWORK, find))
    assert (options, address) == ({53: bytes([NAK]), 54: NETWORK.server.packed}, "0.0.0.0")
    options, address = read(dhcp.answer(packet(INFORM, client="10.1.2.7"), NETWORK, find))
    assert options[53] == bytes([ACK]) and 51 not in options and address == "0.0.0.0"


@pytest.mark.parametrize(
    "silent",
    [
        packet(DISCOVER, mac=bytes.fromhex("525400123457")),
        packet(DISCOVER, op=2),
        packet(RELEASE),
        packet(DECLINE),
        packet(REQUEST, (54, bytes([10, 1, 2, 9]))),  # to another server
        packet(DISCOVER)[:100],
        packet(DISCOVER)[: FIXED.size],
        b"",
    ],
    ids=range(8),
)
def test_what_gets_no_answer(silent: bytes) -> None:
    assert dhcp.answer(silent, NETWORK, find) is None


@given(st.binary(max_size=80), st.integers(0, 400))
def test_nonsense(options: bytes, cut: int) -> None:
    good = packet(DISCOVER)[: FIXED.size]
    dhcp.answer(good + options, NETWORK, find)
    dhcp.answer((good + options)[:cut], NETWORK, find)
    dhcp.answer(options, NETWORK, find)


def test_name_servers_of_the_host(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# x\nsearch a\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver fe80::1\nnameserver\nnameserver x\n")
    assert dhcp.nameservers(file) == [IPv4Address("9.9.9.9")]
    assert dhcp.nameservers(tmp_path / "none") == []
