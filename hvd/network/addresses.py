"""Addresses of networks and cards: what is valid, what is free, what is derived from a guest's identity. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network

from hvd.errors import HvdError

# Room for the host and a few guests; and no larger than a private block of RFC 1918.
PREFIXES = range(8, 30)
# Of networks whose subnet the daemon chooses.
POOL_PREFIX = 24
# RFC 1918, RFC 6598 and, for tests of networks, RFC 2544.
_PRIVATE = tuple(
    map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15"))
)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def parse_subnet(text: str) -> IPv4Network:
    """Of private use, since its route hides whatever has these addresses outside. Raises HvdError FIELD_INVALID."""
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise _invalid(text, "is no IPv4 subnet", f"write it like 10.77.3.0/24 ({error})") from error
    if subnet.prefixlen not in PREFIXES:
        raise _invalid(text, "has a size that no network can have", f"use /{PREFIXES[0]} to /{PREFIXES[-1]}")
    if not any(subnet.subnet_of(private) for private in _PRIVATE):
        raise _invalid(
            text, "is not for private networks", "use one within 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
        )
    return subnet


def _invalid(text: str, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field="network.subnet", value=repr(text[:60]), problem=problem, remedy=remedy)


def free_subnet(pool: IPv4Network, taken: Collection[IPv4Network]) -> IPv4Network:
    """The first of the pool that overlaps nothing. Raises HvdError SUBNETS_EXHAUSTED."""
    for subnet in pool.subnets(new_prefix=max(POOL_PREFIX, pool.prefixlen)):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise HvdError("SUBNETS_EXHAUSTED", pool=pool)


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The host's own address."""
    return subnet[1]


def parse_address(text: str, subnet: IPv4Network, field: str) -> IPv4Address:
    """One that a guest of the subnet can have. Raises HvdError FIELD_INVALID."""
    try:
        address = IPv4Address(text)
    except ValueError:
        address = None
    if address is None or address not in subnet or address in (subnet[0], subnet[1], subnet[-1]):
        raise HvdError(
            "FIELD_INVALID",
            field=field,
            value=repr(text[:60]),
            problem=f"is no address for a guest of {subnet}",
            remedy=f"use one of {subnet[2]} to {subnet[-2]}, or leave it out",
        )
    return address


def free_address(subnet: IPv4Network, taken: Collection[IPv4Address], network: str) -> IPv4Address:
    """The lowest that a guest can have. Raises HvdError SUBNET_FULL."""
    for number in range(2, subnet.num_addresses - 1):
        if subnet[number] not in taken:
            return subnet[number]
    raise HvdError("SUBNET_FULL", network=network, subnet=subnet)


def parse_mac(text: str, field: str) -> str:
    """In lower case; one that a card can have. Raises HvdError FIELD_INVALID."""
    mac = text.lower().replace("-", ":")
    problem = ""
    if not _MAC.fullmatch(mac):
        problem = "is no MAC address"
    elif int(mac[:2], 16) & 1:
        problem = "is a group's address (its first byte is odd), not a card's"
    elif mac == "00:00:00:00:00:00":
        problem = "is no card's address"
    if problem:
        raise HvdError(
            "FIELD_INVALID",
            field=field,
            value=repr(text[:60]),
            problem=problem,
            remedy="write it like 52:54:00:12:34:56, or leave it out",
        )
    return mac


def made_mac(uid: str, card: int, taken: Collection[str] = ()) -> str:
    """Locally administered and of one station (IEEE 802, 8.2), the same for the same guest and card."""
    attempt = 0
    while True:
        digest = bytearray(hashlib.sha256(f"{uid}/{card}/{attempt}".encode()).digest()[:6])
        digest[0] = digest[0] & 0xFC | 0x02
        mac = digest.hex(":")
        if mac not in taken:
            return mac
        attempt += 1


def overlap(subnet: IPv4Network, others: Iterable[tuple[IPv4Network, str]]) -> str:
    """Whom it would collide with; empty = nobody."""
    for other, owner in others:
        if subnet.overlaps(other):
            return f"{other} of {owner}"
    return ""

