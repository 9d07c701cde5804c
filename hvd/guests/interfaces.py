"""The network cards that a guest is asked for: the checks that need no knowledge of networks, and what becomes of them on
the board. hvd/network/cards.py does the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hvapi.v1 import guest_pb2

from hvd.board.spec import MOST_INTERFACES, NetworkSpec
from hvd.errors import HvdError
from hvd.network import addresses

NETWORKS = "networks/"
# Networks that need no name.
USER, UNPLUGGED = "user", "none"
SPECIAL = (USER, UNPLUGGED)
# A container's: the host's own interfaces.
HOST = "host"

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_interfaces(machine: guest_pb2.MachineConfig) -> None:
    """Raises HvdError FIELD_INVALID."""
    if len(machine.network_interfaces) > MOST_INTERFACES:
        raise _invalid(
            "machine.network_interfaces",
            f"{len(machine.network_interfaces)} of them",
            f"a machine has at most {MOST_INTERFACES}",
            "give fewer",
        )
    for number, card in enumerate(machine.network_interfaces):
        _check_interface(field_of(number), card)


def _check_interface(field: str, card: guest_pb2.NetworkInterface, special: tuple[str, ...] = SPECIAL) -> None:
    named = card.network not in (*SPECIAL, HOST) and _ID.fullmatch(card.network.removeprefix(NETWORKS))
    if card.network not in special and not named:
        raise _invalid(
            f"{field}.network",
            repr(card.network[:80]),
            "is no network",
            f"use '{special[0]}', '{special[1]}' or {NETWORKS} and a network's name",
        )
    if card.mac_address:
        addresses.parse_mac(card.mac_address, f"{field}.mac_address")
    if card.ip_address and card.network in special:
        raise _invalid(
            f"{field}.ip_address", repr(card.ip_address[:80]), f"'{card.network}' gives out no addresses", "leave it out"
        )


def check_container_interfaces(container: guest_pb2.ContainerConfig) -> None:
    """Raises HvdError FIELD_INVALID."""
    cards = container.network_interfaces
    if len(cards) > MOST_INTERFACES:
        raise _invalid(
            "container.network_interfaces", f"{len(cards)} of them", f"more than {MOST_INTERFACES}", "give fewer"
        )
    for number, card in enumerate(cards):
        field = f"container.network_interfaces[{number}]"
        _check_interface(field, card, (HOST, UNPLUGGED))
        if card.network in (HOST, UNPLUGGED) and (len(cards) > 1 or card.mac_address):
            raise _invalid(f"{field}.network", repr(card.network), "goes with nothing else", "give it alone")


def cards_of(guest: guest_pb2.Guest) -> Sequence[guest_pb2.NetworkInterface]:
    """A machine's or a container's."""
    config = guest.container if guest.HasField("container") else guest.machine
    return config.network_interfaces


def field_of(number: int, guest: guest_pb2.Guest | None = None) -> str:
    """How messages name a card."""
    kind = "container" if guest is not None and guest.HasField("container") else "machine"
    return f"{kind}.network_interfaces[{number}]"


def resolve_interfaces(guest: guest_pb2.Guest) -> tuple[NetworkSpec, ...]:
    """The network cards as the board gets them, not yet plugged in."""
    return tuple(
        NetworkSpec(
            f"net{number}",
            card.network.removeprefix(NETWORKS),
            card.mac_address or addresses.made_mac(guest.uid, number),
        )
        for number, card in enumerate(guest.machine.network_interfaces)
    )


def _invalid(field: str, value: object, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field=field, value=value, problem=problem, remedy=remedy)
