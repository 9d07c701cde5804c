"""The networks of this daemon: what was asked for (store), and that it is so on the host (bridge, filter, DHCP).

What is asked for is in the store before the host is touched, and the host is made to agree with it at the daemon's
start, at every creation and deletion, and when a guest is plugged in: bridges that vanished are made again, those that
the store does not know are removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Coroutine, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hvapi.v1 import guest_pb2, network_pb2

from hvd.errors import HvdError
from hvd.guests.interfaces import cards_of
from hvd.guests.model import check_id, check_labels
from hvd.network import addresses, dhcp, links, nat, ports
from hvd.network.links import Links
from hvd.network.store import NetworkStore

log = structlog.get_logger()

Network = network_pb2.Network
PREFIX = "networks/"
# What a card may be plugged into besides networks; a network of that name would be taken for it.
SPECIAL = frozenset({"user", "none", "host"})
DEFAULT_MTU = 1500
LEAST_MTU, MOST_MTU = 68, 65535
T = TypeVar("T")
Plugged = tuple[guest_pb2.Guest, guest_pb2.NetworkInterface]


class Networks:
    """guests() gives all guests there are, running or not."""

    def __init__(self, path: Path, pool: IPv4Network, guests: Callable[[], Iterable[guest_pb2.Guest]]) -> None:
        """Raises HvdError DISK_FULL, STORE_DAMAGED, STORE_VERSION."""
        self._store = NetworkStore(path)
        self._pool = pool
        self._guests = guests
        owner = self._store.owner()
        self.links = Links(owner)
        self._table = f"hvd_{owner}"
        self._networks = {network.name: network for network in self._store.load()}
        self._servers: dict[str, dhcp.Server] = {}
        # Held while the host's network is changed.
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        # What the filter says now; None = nobody knows.
        self._published: list[ports.Published] | None = None
        self._refiltering: asyncio.Task[None] | None = None

    # ---- what there is

    def guests(self) -> Iterable[guest_pb2.Guest]:
        """All, running or not."""
        return self._guests()

    def get(self, name: str) -> Network:
        """Raises HvdError NAME_INVALID, NETWORK_NOT_FOUND."""
        identifier = check_id(name.removeprefix(PREFIX), "network")
        try:
            return self._networks[PREFIX + identifier]
        except KeyError:
            raise HvdError("NETWORK_NOT_FOUND", name=identifier) from None

    def shown(self, network: Network) -> Network:
        """With who is plugged in."""
        shown = Network()
        shown.CopyFrom(network)
        for guest, card in self.plugged(network.name):
            shown.attachments.add(guest=guest.name, mac_address=card.mac_address, ip_address=card.ip_address)
        return shown

    def page(self, size: int, after: str) -> tuple[list[Network], str]:
        """By name, those behind networks/{after}; and the last one's id when there are more."""
        names = sorted(name for name in self._networks if name > PREFIX + after)
        page = [self.shown(self._networks[name]) for name in names[:size]]
        return page, page[-1].name.removeprefix(PREFIX) if len(names) > size else ""

    def plugged(self, name: str) -> list[Plugged]:
        """The cards on a network, of guests that run and that do not."""
        return [
            (guest, card)
            for guest in self._guests()
            for card in cards_of(guest)
            if card.network == name
        ]

    def _taps(self, name: str) -> list[str]:
        """Those that its guests have while they run."""
        return [
            links.tap_name(guest.uid, number)
            for guest in self._guests()
            for number, card in enumerate(cards_of(guest))
            if card.network == name
        ]

    # ---- creation and deletion

    async def create(self, identifier: str, asked: Network, request_id: str = "") -> Network:
        """Raises HvdError NAME_INVALID, NAME_TAKEN, FIELD_INVALID, SUBNET_OVERLAP, SUBNETS_EXHAUSTED,
        REQUEST_ID_REUSED, NETWORK_UNAVAILABLE, LINK_FAILED, FILTER_FAILED, DISK_FULL."""
        return await self._whole(self._create(identifier, asked, request_id))

    async def _create(self, identifier: str, asked: Network, request_id: str) -> Network:
        fingerprint = hashlib.sha256(identifier.encode() + b"\0" + asked.SerializeToString(deterministic=True)).digest()
        async with self._lock:
            if request_id and (earlier := self._store.answered(request_id, fingerprint)):
                return self._networks.get(earlier.name, earlier)
            network = self._asked(identifier, asked)
            await asyncio.to_thread(check_host, identifier)
            taken = [(IPv4Network(other.subnet), f"network {other.name}") for other in self._networks.values()]
            taken += await asyncio.to_thread(self.links.subnets)
            if not network.subnet:
                network.subnet = str(addresses.free_subnet(self._pool, [subnet for subnet, _ in taken]))
            subnet = IPv4Network(network.subnet)
            if other := addresses.overlap(subnet, taken):
                raise HvdError("SUBNET_OVERLAP", subnet=subnet, other=other)
            network.gateway_address = str(addresses.gateway_of(subnet))
            self._networks[network.name] = network
            try:
                await self._up(network)
                self._store.create(network, request_id, fingerprint)
            except BaseException:
                del self._networks[network.name]
                await self._down(network)
                raise
            return network

    def _asked(self, identifier: str, asked: Network) -> Network:
        check_id(identifier, "network")
        if identifier in SPECIAL:
            raise HvdError("NAME_INVALID", what="network", name=identifier)
        if PREFIX + identifier in self._networks:
            raise HvdError("NAME_TAKEN", what="network", name=identifier)
        check_labels(asked.labels)
        if asked.forwarding not in Network.Forwarding.values():
            raise HvdError(
                "FIELD_INVALID",
                field="network.forwarding",
                value=asked.forwarding,
                problem="is unknown",
                remedy="use NAT or NONE",
            )
        if asked.mtu and not LEAST_MTU <= asked.mtu <= MOST_MTU:
            raise HvdError(
                "FIELD_INVALID",
                field="network.mtu",
                value=asked.mtu,
                problem="is out of range",
                remedy=f"use {LEAST_MTU} to {MOST_MTU}",
            )
        network = Network(
            name=PREFIX + identifier,
            uid=str(uuid.uuid4()),
            subnet=str(addresses.parse_subnet(asked.subnet)) if asked.subnet else "",
            forwarding=asked.forwarding or Network.NAT,
            mtu=asked.mtu or DEFAULT_MTU,
            labels=asked.labels,
        )
        network.create_time.GetCurrentTime()
        return network

    async def delete(self, name: str, allow_missing: bool = False) -> None:
        """Raises HvdError NAME_INVALID, NETWORK_NOT_FOUND, NETWORK_IN_USE, LINK_FAILED, FILTER_FAILED."""
        await self._whole(self._delete(name, allow_missing))

    async def _delete(self, name: str, allow_missing: bool) -> None:
        async with self._lock:
            try:
                network = self.get(name)
            except HvdError as error:
                if allow_missing and error.reason == "NETWORK_NOT_FOUND":
                    return
                raise
            if users := sorted({guest.name.removeprefix("guests/") for guest, _ in self.plugged(network.name)}):
                raise HvdError("NETWORK_IN_USE", name=network.name.removeprefix(PREFIX), guests=", ".join(users))
            self._store.delete(network.name)
            del self._networks[network.name]
            await self._down(network)

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it whether or not the caller stays to see it done."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    # ---- the host

    async def start(self) -> None:
        """Make the host what the store says. Never raises: what does not work is told by each network's state."""
        async with self._lock:
            if not self._networks and links.obstacle()[0]:
                return  # nothing to do, and no right to look
            try:
                bridges = await asyncio.to_thread(self.links.bridges)
                known = {network.uid for network in self._networks.values()}
                for bridge in bridges:
                    if bridge.key not in known:
                        log.warning("a bridge that no network has is removed", bridge=bridge.name)
                        await asyncio.to_thread(self.links.delete_bridge, bridge)
            except HvdError as error:
                log.error("bridges cannot be looked through", problem=error.message)
            for network in self._networks.values():
                await self._restore(network)

    async def ensure(self, name: str) -> Network:
        """The network, with its bridge there. Raises HvdError NETWORK_NOT_FOUND, NETWORK_UNAVAILABLE, LINK_FAILED,
        FILTER_FAILED."""
        network = self.get(name)
        async with self._lock:
            if network.state != Network.READY or not links.exists(network.bridge):
                await self._up(network)
            return network

    async def _restore(self, network: Network) -> None:
        """Bring it up; what keeps it from that is its state."""
        try:
            await self._up(network)
        except HvdError as error:
            log.error("network is not there", network=network.name, problem=error.message)
            network.state, network.status_message = Network.FAILED, str(error)

    async def _up(self, network: Network) -> None:
        """Bridge, filter, DHCP: those that are there stay. Under the lock."""
        identifier = network.name.removeprefix(PREFIX)
        await asyncio.to_thread(check_host, identifier)
        there = {bridge.key: bridge for bridge in await asyncio.to_thread(self.links.bridges)}
        if network.uid in there:
            network.bridge = there[network.uid].name
        else:
            subnet = IPv4Network(network.subnet)
            address = IPv4Interface(f"{network.gateway_address}/{subnet.prefixlen}")
            mac = addresses.made_mac(network.uid, 0)
            names = bridge_names(identifier, network.uid)
            network.bridge = await asyncio.to_thread(
                self.links.make_bridge, names, network.uid, address, mac, network.mtu
            )
            self._stop_serving(network)  # on a bridge that is gone
            # Guests that ran on while it was away come back to it.
            await asyncio.to_thread(self.links.join, self._taps(network.name), network.bridge)
        await self._filter()
        network.state, network.status_message = Network.READY, ""
        self._serve(network)

    async def _down(self, network: Network) -> None:
        """Under the lock."""
        self._stop_serving(network)
        for bridge in await asyncio.to_thread(self.links.bridges):
            if bridge.key == network.uid:
                await asyncio.to_thread(self.links.delete_bridge, bridge)
        await self._filter()

    async def _filter(self) -> None:
        filtered = [
            nat.Filtered(network.bridge, IPv4Network(network.subnet), network.forwarding == Network.NAT)
            for network in self._networks.values()
            if network.bridge
        ]
        published = self._to_publish()
        await asyncio.to_thread(nat.apply, self._table, filtered, published)
        self._published = published

    def _to_publish(self) -> list[ports.Published]:
        there = [network for network in self._networks.values() if network.bridge]
        known = {network.name: (network.bridge, IPv4Network(network.subnet)) for network in there}
        return ports.published(self._guests(), known)

    async def refilter(self) -> None:
        """After a guest whose ports are published has come or gone. Raises HvdError FILTER_FAILED."""
        async with self._lock:
            await self._filter()

    def refilter_soon(self) -> None:
        if self._refiltering is None:
            self._refiltering = task = asyncio.create_task(self._refilter_later())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refilter_later(self) -> None:
        async with self._lock:
            self._refiltering = None  # what changes from here on is another's work
            if self._to_publish() == self._published:
                return
            try:
                await self._filter()
            except HvdError as error:
                log.error("ports are not published as they should be", problem=error.message)

    # ---- DHCP

    def _serve(self, network: Network) -> None:
        if network.name in self._servers:
            return
        routed = network.forwarding == Network.NAT
        subnet = dhcp.Subnet(
            IPv4Network(network.subnet),
            IPv4Address(network.gateway_address),
            network.mtu,
            routed,
            dhcp.nameservers() if routed else (),
        )
        try:
            self._servers[network.name] = dhcp.Server(network.bridge, subnet, lambda mac: self._card(network.name, mac))
        except OSError as error:
            network.status_message = f"DHCP is not answered: port 67 on {network.bridge}: {error.strerror}"
            log.error("DHCP cannot be served", network=network.name, problem=error.strerror)

    def _stop_serving(self, network: Network) -> None:
        server = self._servers.pop(network.name, None)
        if server is not None:
            server.close()

    def _card(self, name: str, mac: str) -> dhcp.Card | None:
        for guest, card in self.plugged(name):
            if card.mac_address == mac:
                return dhcp.Card(IPv4Address(card.ip_address), guest.name.removeprefix("guests/"))
        return None

    async def close(self) -> None:
        """The daemon goes; bridges, filter and guests stay."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._store.close()


def check_host(network: str) -> None:
    """Can this host have networks at all? Raises HvdError NETWORK_UNAVAILABLE."""
    for problem, remedy in (links.obstacle(), nat.obstacle()):
        if problem:
            raise HvdError("NETWORK_UNAVAILABLE", network=network, problem=problem, remedy=remedy)


def bridge_names(identifier: str, uid: str) -> list[str]:
    """What its bridge may be called, the most telling first."""
    telling = f"hvd-{identifier}"
    unique = f"hvd-{uid[:8]}"
    return [telling, unique] if len(telling) <= links.NAME_BYTES else [unique]
