"""A container's network: pairs of virtual cables (veth(4)), one end on the network's bridge, the other in the container.

The network namespace is the runtime's, made with the container's user namespace and gone with its last process; with it
go the cables. So there is nothing of a container's network that a crash could leave behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from hvapi.v1 import guest_pb2, network_pb2

from hvd.errors import HvdError
from hvd.network import dhcp
from hvd.network.links import Links, rtnetlink, tap_name

LOOPBACK = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Cable:
    """What one card of a container is to be."""

    outside: str  # the end that the host sees
    inside: str
    bridge: str
    mtu: int
    mac: str
    address: str
    prefix: int
    gateway: str  # empty = no way out by this card
    back: bool  # see Links.make_veth


def cables(guest: guest_pb2.Guest, networks: dict[str, network_pb2.Network]) -> list[Cable]:
    """Its cards that are on networks; the first whose network has NAT is the way out."""
    found: list[Cable] = []
    routed = False
    for number, card in enumerate(guest.container.network_interfaces):
        if card.network not in networks:
            continue
        network = networks[card.network]
        way_out = network.forwarding == network_pb2.Network.NAT and not routed
        routed = routed or way_out
        found.append(
            Cable(
                tap_name(guest.uid, number), f"eth{len(found)}", network.bridge, network.mtu, card.mac_address,
                card.ip_address, IPv4Network(network.subnet).prefixlen, network.gateway_address if way_out else "",
                bool(guest.container.ports),
            )
        )  # fmt: skip
    return found


async def plug(links: Links, plan: Sequence[Cable], uid: str, pid: int) -> None:
    """Into the network namespace of the process. Raises HvdError LINK_FAILED."""
    for cable in plan:
        await asyncio.to_thread(
            links.make_veth, cable.outside, cable.bridge, cable.mtu, uid, cable.inside, cable.mac, pid, cable.back
        )
    await asyncio.to_thread(_configure, plan, pid)


def _configure(plan: Sequence[Cable], pid: int) -> None:
    """Addresses and routes, by a thread that enters the namespace and ends there."""

    def work() -> None:
        _enter(pid)
        with rtnetlink("configuring a container's network") as inside:
            for cable in plan:
                (index,) = inside.link_lookup(ifname=cable.inside)
                inside.addr("add", index=index, address=cable.address, prefixlen=cable.prefix)
                inside.link("set", index=index, state="up")
                if cable.gateway:
                    inside.route("add", dst="default", gateway=cable.gateway, oif=index)

    with ThreadPoolExecutor(1, "netns") as thread:
        thread.submit(work).result()


def _enter(pid: int) -> None:
    """This thread only. Raises HvdError LINK_FAILED."""
    try:
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(namespace, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(namespace)
    except OSError as error:
        raise HvdError("LINK_FAILED", what="entering a container's network namespace", problem=error) from error


def hosts_text(host_name: str, plan: Sequence[Cable], host: bool) -> str:
    """Its /etc/hosts."""
    text = _text("/etc/hosts") if host else LOOPBACK
    for cable in plan:
        text += f"{cable.address} {host_name}\n"
    return text if plan else f"{text}127.0.1.1 {host_name}\n"


def name_servers_text(plan: Sequence[Cable], host: bool) -> str:
    """Its /etc/resolv.conf: the host's name servers, as far as it can reach them; empty without a way out."""
    if host:
        return _text("/etc/resolv.conf")
    if not any(cable.gateway for cable in plan):
        return ""
    return "".join(f"nameserver {address}\n" for address in dhcp.nameservers())


def _text(path: str) -> str:
    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
    return text if text.endswith("\n") or not text else text + "\n"
