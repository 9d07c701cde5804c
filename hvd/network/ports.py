"""Ports of the host that lead to a container's: what is asked for, what is taken, and whom the packet filter sends where.

A published port is a rule of the packet filter (nat.py), so it works while the daemon is away. While the daemon is there
it also keeps the port from the host's other programs, by listening on it: no connection gets that far.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from hvapi.v1 import guest_pb2

from hvd.errors import HvdError

TCP, UDP = "tcp", "udp"
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
DEFAULT_ADDRESS = "127.0.0.1"
ANY = IPv4Address("0.0.0.0")
MOST_PORTS = 64
# In which a guest's ports are open.
_ENDED = frozenset({guest_pb2.Guest.STOPPED, guest_pb2.Guest.FAILED})

PublishedPort = guest_pb2.PublishedPort
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Published:
    """A port of the host as the filter sees it."""

    protocol: str
    host_address: IPv4Address
    host_port: int
    bridge: str
    subnet: IPv4Network
    address: IPv4Address
    port: int


def is_open(guest: guest_pb2.Guest) -> bool:
    return guest.state not in _ENDED


def check_ports(container: guest_pb2.ContainerConfig) -> None:
    """What can be seen without the host; the defaults are filled in. Raises HvdError FIELD_INVALID."""
    if len(container.ports) > MOST_PORTS:
        raise _invalid("container.ports", f"{len(container.ports)} of them", f"more than {MOST_PORTS}", "give fewer")
    if container.ports and not any(card.network not in ("", "none", "host") for card in container.network_interfaces):
        raise _invalid(
            "container.ports", len(container.ports), "the container is on no network of the daemon's",
            "add --network NAME (`hvctl network create` makes one); with --network host its ports are the host's",
        )  # fmt: skip
    for number, port in enumerate(container.ports):
        field = f"container.ports[{number}]"
        port.protocol = port.protocol or TCP
        port.host_address = port.host_address or DEFAULT_ADDRESS
        if port.protocol not in _KINDS:
            raise _invalid(f"{field}.protocol", repr(port.protocol[:40]), "is unknown", "use tcp or udp")
        if not 1 <= port.container_port <= 65535:
            raise _invalid(f"{field}.container_port", port.container_port, "is no port", "use 1-65535")
        if port.host_port > 65535:
            raise _invalid(f"{field}.host_port", port.host_port, "is no port", "use 1-65535, or 0 for a free one")
        try:
            address = IPv4Address(port.host_address)
        except ValueError:
            address = None
        if address is None or address.is_multicast:
            value = repr(port.host_address[:60])
            raise _invalid(f"{field}.host_address", value, "is no IPv4 address", "use 127.0.0.1, 0.0.0.0 or one of the host")


def key_of(port: PublishedPort) -> Key:
    return port.protocol, port.host_address, port.host_port


def published(guests: Iterable[guest_pb2.Guest], networks: dict[str, tuple[str, IPv4Network]]) -> list[Published]:
    """Of the guests that run. networks: name -> bridge and subnet, of those that are there."""
    found = []
    for guest in guests:
        if not guest.container.ports or not is_open(guest):
            continue
        card = next((card for card in guest.container.network_interfaces if card.network in networks), None)
        if card is None:
            continue
        bridge, subnet = networks[card.network]
        for port in guest.container.ports:
            found.append(
                Published(
                    port.protocol, IPv4Address(port.host_address), port.host_port, bridge, subnet,
                    IPv4Address(card.ip_address), port.container_port,
                )
            )  # fmt: skip
    return found


class Ports:
    """Those of the host that this daemon's guests have. Its calls take microseconds."""

    def __init__(self) -> None:
        self._held: dict[str, list[socket.socket]] = {}

    def assign(self, guest: guest_pb2.Guest, others: Iterable[guest_pb2.Guest]) -> None:
        """For a guest that is being made: a free port of the host wherever none was given. Raises HvdError PORT_TAKEN (by
        a guest, running or not, or by a process), FIELD_INVALID."""
        taken = [(key_of(port), other.name) for other in others for port in other.container.ports]
        for number, port in enumerate(guest.container.ports):
            if port.host_port:
                owner = _owner(key_of(port), taken)
                if owner:
                    raise _taken(key_of(port), f"guest '{owner.removeprefix('guests/')}'")
                _bind(key_of(port), number).close()
            while not port.host_port:
                with _bind(key_of(port), number) as free:
                    found = free.getsockname()[1]
                if not _owner((port.protocol, port.host_address, found), taken):
                    port.host_port = found
            taken.append((key_of(port), guest.name or "the same guest"))

    def hold(self, guest: guest_pb2.Guest) -> None:
        """From a start to the end of the guest: nobody else gets its ports. Raises HvdError PORT_TAKEN, FIELD_INVALID."""
        if guest.uid in self._held or not guest.container.ports:
            return
        held: list[socket.socket] = []
        try:
            for number, port in enumerate(guest.container.ports):
                held.append(_bind(key_of(port), number))
                if port.protocol == TCP:
                    held[-1].listen(1)
        except BaseException as error:
            for one in held:
                one.close()
            if isinstance(error, OSError):
                raise _taken(key_of(port), "a process of the host") from error
            raise
        self._held[guest.uid] = held

    def release(self, uid: str) -> None:
        for one in self._held.pop(uid, ()):
            one.close()

    def close(self) -> None:
        for uid in list(self._held):
            self.release(uid)


def _owner(key: Key, taken: Iterable[tuple[Key, str]]) -> str:
    """Whose it is; empty = nobody's."""
    for other, name in taken:
        same = key[1] == other[1] or str(ANY) in (key[1], other[1])
        if same and (key[0], key[2]) == (other[0], other[2]):
            return name
    return ""


def _bind(key: Key, number: int) -> socket.socket:
    """Raises HvdError PORT_TAKEN, FIELD_INVALID."""
    protocol, address, port = key
    bound = socket.socket(socket.AF_INET, _KINDS[protocol] | socket.SOCK_CLOEXEC)
    try:
        if protocol == TCP:
            # Connections of before that have ended do no harm.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        if protocol == TCP:
            bound.listen(1)  # only now is it known that nobody else listens
    except OSError as error:
        bound.close()
        field = f"container.ports[{number}]"
        if error.errno == errno.EADDRINUSE:
            raise _taken(key, "a process of the host") from error
        if error.errno == errno.EADDRNOTAVAIL:
            remedy = "`ip address` shows its addresses"
            raise _invalid(f"{field}.host_address", repr(address), "is no address of the host", remedy) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _invalid(f"{field}.host_port", port, "the daemon may not bind it", "use one above 1023") from error
        raise
    return bound


def _taken(key: Key, owner: str) -> HvdError:
    return HvdError("PORT_TAKEN", port=key[2], protocol=key[0], address=key[1], owner=owner)


def _invalid(field: str, value: object, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field=field, value=value, problem=problem, remedy=remedy)
