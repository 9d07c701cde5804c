"""The network cards that a guest is asked for: checks, and what becomes of them on the board."""

from __future__ import annotations

import hashlib
import re

from hvapi.v1 import guest_pb2

from hvd.board.spec import MOST_INTERFACES, NetworkSpec
from hvd.errors import HvdError

NETWORKS = "networks/"
# Networks that need no name.
USER, UNPLUGGED = "user", "none"
# Of MAC addresses that are made up: locally administered, unicast; the one that QEMU and libvirt use, too.
MAC_PREFIX = "52:54:00"

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
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
        _check_interface(f"machine.network_interfaces[{number}]", card)


def _check_interface(field: str, card: guest_pb2.NetworkInterface) -> None:
    if card.network not in (USER, UNPLUGGED) and not _ID.fullmatch(card.network.removeprefix(NETWORKS)):
        raise _invalid(
            f"{field}.network",
            repr(card.network[:80]),
            "is no network",
            f"use '{USER}', '{UNPLUGGED}' or {NETWORKS} and a network's name",
        )
    if card.mac_address and (not _MAC.fullmatch(card.mac_address) or int(card.mac_address[:2], 16) & 1):
        raise _invalid(
            f"{field}.mac_address",
            repr(card.mac_address[:80]),
            "is no MAC address of one card",
            "write it like 52:54:00:12:34:56, in lower case, the first byte even",
        )


def resolve_interfaces(guest: guest_pb2.Guest) -> tuple[NetworkSpec, ...]:
    """The network cards as the board gets them."""
    return tuple(
        NetworkSpec(
            f"net{number}", card.network.removeprefix(NETWORKS), card.mac_address or made_up_mac(guest.uid, number)
        )
        for number, card in enumerate(guest.machine.network_interfaces)
    )


def made_up_mac(uid: str, number: int) -> str:
    """Always the same for this card of this guest."""
    digest = hashlib.sha256(f"{uid}/{number}".encode()).digest()
    return ":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in digest[:3])])


def _invalid(field: str, value: object, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field=field, value=value, problem=problem, remedy=remedy)
