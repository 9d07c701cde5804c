"""The host's network interfaces, by netlink: bridges, and the taps that join them.

Every interface made here carries in its alias whose it is (`hvd:OWNER:...`), so that a daemon finds its own again, and
only those. A tap lives as long as a descriptor of it is open: what crashes leaves no taps behind.
Everything here blocks for some milliseconds: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from hvd.errors import HvdError

TUN = "/dev/net/tun"
# IFNAMSIZ of linux/if.h, less the final NUL.
NAME_BYTES = 15
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# struct virtio_net_hdr_v1: what VIRTIO 1 has before every frame (hvd/board/net).
VNET_HEADER_BYTES = 12
_CAP_NET_ADMIN = 12
_MAIN_TABLE = 254


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of ours that the host has."""

    name: str
    index: int
    key: str  # what make_bridge was told


def obstacle() -> tuple[str, str]:
    """Why this process can make no bridges and taps here, and what would help; ("", "") = it can."""
    if not _has_net_admin():
        return "the daemon may not change the host's network (no CAP_NET_ADMIN)", "run hvd as root, or use --network user"
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return (
            f"{TUN} cannot be opened: {os.strerror(error.errno or 0)}",
            "`modprobe tun`, and give the daemon access to it; or use --network user",
        )
    if importlib.util.find_spec("pyroute2") is None:
        return "the Python package pyroute2 is missing", "pip install pyroute2; or use --network user"
    return "", ""


def tap_name(uid: str, card: int) -> str:
    """Of a guest's card, a machine's tap or a container's veth, among the host's interfaces while the guest runs:
    `tcpdump -i` knows it by this, and /sys/class/net/NAME/statistics counts (what the guest sends is received there)."""
    return f"hvd-{uid[:8]}-{card}"


def exists(interface: str) -> bool:
    """In this process's network namespace, which /sys need not show."""
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def _has_net_admin() -> bool:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


class Links:
    """owner: whose interfaces these are, at most 16 characters, the same after every start of the same daemon."""

    def __init__(self, owner: str) -> None:
        self._prefix = f"hvd:{owner}:"

    def bridges(self) -> list[Bridge]:
        """Ours. Raises HvdError LINK_FAILED."""
        with rtnetlink("listing bridges") as netlink:
            found = []
            for link in netlink.get_links():
                alias = link.get_attr("IFLA_IFALIAS") or ""
                if alias.startswith(self._prefix) and _kind(link) == "bridge":
                    found.append(Bridge(link.get_attr("IFLA_IFNAME"), link["index"], alias.removeprefix(self._prefix)))
            return found

    def make_bridge(self, names: list[str], key: str, address: IPv4Interface, mac: str, mtu: int) -> str:
        """A bridge that is up and has the address, under the first of the names that is free; its name. The fixed MAC
        keeps neighbours' tables right while ports come and go. Raises HvdError LINK_FAILED."""
        with rtnetlink(f"making the bridge of network {key}") as netlink:
            name = next((name for name in names if not netlink.link_lookup(ifname=name)), None)
            if name is None:
                raise HvdError("LINK_FAILED", what=f"making bridge {names[0]}", problem="its name is taken")
            netlink.link("add", ifname=name, kind="bridge", address=mac, br_stp_state=0, br_forward_delay=0)
            try:
                (index,) = netlink.link_lookup(ifname=name)
                # First of all: from here on it is found again.
                netlink.link("set", index=index, ifalias=self._prefix + key, mtu=mtu)
                _no_ipv6(name)
                netlink.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
                netlink.link("set", index=index, state="up")
            except BaseException:
                netlink.link("del", ifname=name)
                raise
            return name

    def delete_bridge(self, bridge: Bridge) -> None:
        """No error when it is gone. Raises HvdError LINK_FAILED."""
        with rtnetlink(f"deleting bridge {bridge.name}") as netlink, _gone_is_well():
            netlink.link("del", index=bridge.index)

    def open_tap(self, name: str, bridge: str, mtu: int, key: str) -> int:
        """A tap that is up and a port of the bridge; its descriptor, non-blocking, is its life. Frames have
        struct virtio_net_hdr_v1 before them. Raises HvdError LINK_FAILED."""
        with rtnetlink(f"making tap {name} on bridge {bridge}") as netlink:
            fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
                fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
                (index,) = netlink.link_lookup(ifname=name)
                (master,) = netlink.link_lookup(ifname=bridge) or (None,)
                if master is None:
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
                _no_ipv6(name)
                netlink.link("set", index=index, ifalias=self._prefix + key, mtu=mtu, master=master)
                netlink.link("set", index=index, state="up")
            except BaseException:
                os.close(fd)
                raise
            return fd

    def make_veth(self, name: str, bridge: str, mtu: int, key: str, inside: str, mac: str, pid: int, back: bool) -> None:
        """A pair: one end is a port of the bridge, the other, `inside`, is in the network namespace of the process, down.
        It goes with either end's namespace. back: the bridge sends it what it sent itself, as a container that calls its own
        published port needs where br_netfilter is on ("hairpin"). Raises HvdError LINK_FAILED."""
        with rtnetlink(f"making {name} on bridge {bridge}") as netlink:
            (master,) = netlink.link_lookup(ifname=bridge) or (None,)
            if master is None:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            for index in netlink.link_lookup(ifname=name):  # of the run before, whose namespace the kernel is taking down
                with _gone_is_well():
                    netlink.link("del", index=index)
            peer = {"ifname": inside, "net_ns_pid": pid, "address": mac, "mtu": mtu}
            netlink.link("add", ifname=name, kind="veth", mtu=mtu, peer=peer)
            (index,) = netlink.link_lookup(ifname=name)
            _no_ipv6(name)
            netlink.link("set", index=index, ifalias=self._prefix + key, master=master)
            if back:
                netlink.brport("set", index=index, mode=1)
            netlink.link("set", index=index, state="up")

    def join(self, taps: list[str], bridge: str) -> None:
        """Make those of these taps that there are ports of the bridge. Raises HvdError LINK_FAILED."""
        with rtnetlink(f"plugging taps into bridge {bridge}") as netlink:
            (master,) = netlink.link_lookup(ifname=bridge) or (None,)
            for name in taps:
                if master is not None and (found := netlink.link_lookup(ifname=name)):
                    netlink.link("set", index=found[0], master=master)

    def subnets(self) -> list[tuple[IPv4Network, str]]:
        """Where the host has addresses or routes, except by bridges of ours: subnet and whose it is. Raises HvdError
        LINK_FAILED."""
        with rtnetlink("listing addresses") as netlink:
            names, ours = {}, set()
            for link in netlink.get_links():
                names[link["index"]] = link.get_attr("IFLA_IFNAME")
                if (link.get_attr("IFLA_IFALIAS") or "").startswith(self._prefix):
                    ours.add(link["index"])
            found = []
            for entry in netlink.get_addr(family=2):
                if entry["index"] not in ours:
                    interface = IPv4Interface(f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}")
                    found.append((interface.network, f"the host's {names.get(entry['index'])}"))
            for route in netlink.get_routes(family=2, table=_MAIN_TABLE):
                device = route.get_attr("RTA_OIF")
                if route["dst_len"] and device not in ours:
                    subnet = IPv4Network(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
                    found.append((subnet, f"a route of the host by {names.get(device)}"))
            return found


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return (info.get_attr("IFLA_INFO_KIND") or "") if info else ""


def _no_ipv6(interface: str) -> None:
    """Guests may speak IPv6 with each other; the host takes no part in it, least of all their router advertisements."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1", "ascii")


@contextlib.contextmanager
def rtnetlink(what: str) -> Iterator[Any]:
    """Of this thread's network namespace. Raises HvdError LINK_FAILED for whatever goes wrong with it."""
    from pyroute2 import IPRoute  # 0.1 s, which a daemon without networks need not spend
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise HvdError("LINK_FAILED", what=what, problem=os.strerror(error.code)) from error
    except OSError as error:
        raise HvdError("LINK_FAILED", what=what, problem=os.strerror(error.errno or 0)) from error


@contextlib.contextmanager
def _gone_is_well() -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
