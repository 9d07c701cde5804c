"""The network cards that a guest is asked for: the checks that need no knowledge of networks, and what becomes of them on
the board. hvd/network/cards.py does the rest."""

from __future__ import annotations

import re

from hvapi.v1 import guest_pb2

from hvd.board.spec import MOST_INTERFACES, NetworkSpec
from hvd.errors import HvdError
from hvd.network import addresses

NETWORKS = "networks/"
# Networks that need no name.
USER, UNPLUGGED = "user", "none"
SPECIAL = (USER, UNPLUGGED)

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


def _check_interface(field: str, card: guest_pb2.NetworkInterface) -> None:
    if card.network not in SPECIAL and not _ID.fullmatch(card.network.removeprefix(NETWORKS)):
        raise _invalid(
            f"{field}.network",
            repr(card.network[:80]),
            "is no network",
            f"use '{USER}', '{UNPLUGGED}' or {NETWORKS} and a network's name",
        )
    if card.mac_address:
        addresses.parse_mac(card.mac_address, f"{field}.mac_address")
    if card.ip_address and card.network in SPECIAL:
        raise _invalid(
            f"{field}.ip_address", repr(card.ip_address[:80]), f"'{card.network}' gives out no addresses", "leave it out"
        )


def field_of(number: int) -> str:
    """How messages name a card."""
    return f"machine.network_interfaces[{number}]"


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
