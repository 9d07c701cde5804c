"""Guests' network cards: what each gets at its guest's creation (MAC, address), and what it is plugged into at a start.

A guest whose card cannot be plugged in is refused, at its creation and again at its start, before anything runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import structlog
from hvapi.v1 import guest_pb2

from hvd.backends.container_spec import ContainerSpec
from hvd.board.net import user
from hvd.board.spec import NetworkSpec
from hvd.errors import HvdError
from hvd.guests.interfaces import HOST, SPECIAL, USER, cards_of, field_of
from hvd.network import addresses, container_cards
from hvd.network.links import tap_name
from hvd.network.networks import PREFIX, Networks, check_host
from hvd.network.ports import Ports, is_open
from hvd.runner.inheritance import FIRST_CARD_FD

log = structlog.get_logger()

# proc(5), /proc/net/route: a line per route, destination and mask in columns 2 and 8.
_ROUTES = Path("/proc/net/route")


class Cards:
    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._ports = Ports()

    async def assign(self, guest: guest_pb2.Guest) -> None:
        """For a guest that is being made: the full names of its networks, MACs and addresses. No two cards on one
        network have the same; nothing else may be assigned meanwhile.

        Raises HvdError NETWORK_NOT_FOUND, NETWORK_UNAVAILABLE, FIELD_INVALID, MAC_TAKEN, ADDRESS_TAKEN, SUBNET_FULL.
        """
        own: set[str] = set()
        given: dict[str, set[IPv4Address]] = {}
        for number, card in enumerate(cards_of(guest)):
            others: dict[str, str] = {}
            if card.network in (*SPECIAL, HOST):
                if card.network == USER:
                    await asyncio.to_thread(check_user_mode)
                if guest.HasField("container"):
                    continue  # it has no card
            else:
                network = self._networks.get(card.network)
                card.network = network.name
                await asyncio.to_thread(check_host, network.name.removeprefix(PREFIX))
                plugged = self._networks.plugged(network.name)
                others = {other.mac_address: owner.name for owner, other in plugged}
                owners = {other.ip_address: owner.name for owner, other in plugged}
                taken = given.setdefault(network.name, set())
                address = _address(card, field_of(number, guest), IPv4Network(network.subnet), owners, taken, network.name)
                taken.add(address)
                card.ip_address = str(address)
            if card.mac_address:
                card.mac_address = addresses.parse_mac(card.mac_address, f"{field_of(number, guest)}.mac_address")
                owner = others.get(card.mac_address, guest.name if card.mac_address in own else "")
                if owner:
                    raise HvdError("MAC_TAKEN", mac=card.mac_address, guest=owner.removeprefix("guests/"))
            else:
                card.mac_address = addresses.made_mac(guest.uid, number, {*others, *own})
            own.add(card.mac_address)
        self._ports.assign(guest, self._networks.guests())

    @contextlib.asynccontextmanager
    async def plugged(
        self, guest: guest_pb2.Guest, specs: Sequence[NetworkSpec]
    ) -> AsyncIterator[tuple[tuple[NetworkSpec, ...], tuple[int, ...]]]:
        """The cards with what they are plugged into, and the descriptors that the runner has to inherit; they are open
        within the block. A tap lives on with the runner that has it.

        Raises HvdError NETWORK_NOT_FOUND, NETWORK_UNAVAILABLE, LINK_FAILED, FILTER_FAILED.
        """
        descriptors: list[int] = []
        try:
            plugged = []
            for number, spec in enumerate(specs):
                if spec.network == USER:
                    await asyncio.to_thread(check_user_mode)
                elif spec.network not in SPECIAL:
                    network = await self._networks.ensure(spec.network)
                    tap = await asyncio.to_thread(
                        self._networks.links.open_tap, tap_name(guest.uid, number), network.bridge, network.mtu, guest.uid
                    )
                    spec = replace(spec, fd=FIRST_CARD_FD + len(descriptors), mtu=network.mtu)
                    descriptors.append(tap)
                plugged.append(spec)
            yield tuple(plugged), tuple(descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


    async def container(self, guest: guest_pb2.Guest, spec: ContainerSpec) -> ContainerSpec:
        """What a container needs of its networks, for a launch that plugs it in; its ports are its own from now on.

        Raises HvdError NETWORK_NOT_FOUND, NETWORK_UNAVAILABLE, LINK_FAILED, FILTER_FAILED, PORT_TAKEN.
        """
        names = {card.network for card in guest.container.network_interfaces if card.network not in (*SPECIAL, HOST)}
        networks = {name: await self._networks.ensure(name) for name in sorted(names)}
        plan = container_cards.cables(guest, networks)
        self._ports.hold(guest)
        if guest.container.ports:
            await self._networks.refilter()
        plug = functools.partial(container_cards.plug, self._networks.links, plan, guest.uid) if plan else None
        return replace(
            spec,
            hosts=container_cards.hosts_text(spec.hostname, plan, spec.host_network),
            name_servers=container_cards.name_servers_text(plan, spec.host_network),
            plug=plug,
        )

    def changed(self, guest: guest_pb2.Guest) -> None:
        """A guest has come, gone on or ended: its ports follow."""
        if not guest.container.ports:
            return
        if not is_open(guest):
            self._ports.release(guest.uid)
        self._networks.refilter_soon()

    def gone(self, guest: guest_pb2.Guest) -> None:
        """Deleted."""
        self._ports.release(guest.uid)

    def adopted(self, guests: Iterable[guest_pb2.Guest]) -> None:
        """At the daemon's start: the ports of those that run are theirs."""
        for guest in guests:
            if is_open(guest):
                try:
                    self._ports.hold(guest)
                except HvdError as error:
                    log.error("a port that is published is taken", guest=guest.name, problem=error.message)
        self._networks.refilter_soon()

    def close(self) -> None:
        self._ports.close()


def _address(
    card: guest_pb2.NetworkInterface,
    field: str,
    subnet: IPv4Network,
    owners: dict[str, str],
    own: set[IPv4Address],
    network: str,
) -> IPv4Address:
    """The one that was asked for, or a free one."""
    taken = own | {IPv4Address(text) for text in owners if text}
    if not card.ip_address:
        return addresses.free_address(subnet, taken, network.removeprefix(PREFIX))
    address = addresses.parse_address(card.ip_address, subnet, f"{field}.ip_address")
    if address in taken:
        owner = owners.get(str(address), "the same guest").removeprefix("guests/")
        raise HvdError("ADDRESS_TAKEN", address=address, guest=owner)
    return address


def check_user_mode() -> None:
    """Raises HvdError NETWORK_UNAVAILABLE."""
    problem = remedy = ""
    if shutil.which(user.PROGRAM) is None:
        problem, remedy = f"{user.PROGRAM} is missing", f"apt-get install {user.PROGRAM}"
    elif not _has_default_route():
        problem = f"the host has no default route, which {user.PROGRAM} needs"
        remedy = "give the host one, or use a network of `hvctl network create`"
    if problem:
        raise HvdError("NETWORK_UNAVAILABLE", network=USER, problem=problem, remedy=remedy)


def _has_default_route() -> bool:
    try:
        lines = _ROUTES.read_text("ascii").splitlines()[1:]
    except OSError:
        return False
    return any(words[1] == words[7] == "00000000" for words in (line.split() for line in lines) if len(words) > 7)
