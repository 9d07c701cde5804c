"""The packet filter's part of networks: one nftables table of this daemon, always written as a whole.

It is made from the networks there are, so a table that a crash left behind is replaced at the next start, and nothing
in it is ever patched.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from hvd.errors import HvdError
from hvd.network.ports import ANY, Published

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Filtered:
    """A network as the filter sees it."""

    bridge: str
    subnet: IPv4Network
    nat: bool


def obstacle() -> tuple[str, str]:
    """Why networks cannot be filtered here, and what would help; ("", "") = they can."""
    if shutil.which("nft", path=_path()) is None:
        return "nft is missing, which sets up NAT and keeps networks apart", "apt-get install nftables"
    return "", ""


def _path() -> str:
    """Where administration programs are, whatever the daemon's own PATH."""
    return "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def ruleset(table: str, networks: Sequence[Filtered], published: Sequence[Published] = ()) -> str:
    """The commands that make the table what it is to be, in one transaction; without networks it goes away."""
    lines = [f"add table ip {table}", f"delete table ip {table}"]
    if not networks:
        return "\n".join(lines) + "\n"
    bridges = ", ".join(f'"{network.bridge}"' for network in networks)
    nat = [network for network in networks if network.nat]
    lines.append(f"table ip {table} {{")
    lines.append("  chain loopback {")
    lines.append("    type filter hook prerouting priority raw; policy accept;")
    # route_localnet, which published ports need, must not let a guest reach what listens on the host's loopback.
    lines.append(f"    iifname {{ {bridges} }} ip daddr 127.0.0.0/8 drop")
    lines.append("  }")
    lines += _destinations(published)
    lines.append("  chain postrouting {")
    lines.append("    type nat hook postrouting priority srcnat; policy accept;")
    for bridge, subnet in sorted({(port.bridge, port.subnet) for port in published}):
        # What the container could not answer: the host's loopback, its own network, and without NAT everybody.
        closed = any(network.bridge == bridge and not network.nat for network in networks)
        known = "" if closed else f" ip saddr {{ 127.0.0.0/8, {subnet} }}"
        lines.append(f'    oifname "{bridge}" ct status dnat{known} masquerade')
    for network in nat:
        lines.append(f'    ip saddr {network.subnet} oifname != "{network.bridge}" masquerade')
    lines.append("  }")
    lines.append("  chain forward {")
    lines.append("    type filter hook forward priority filter; policy accept;")
    for bridge in sorted({port.bridge for port in published}):
        lines.append(f'    oifname "{bridge}" ct status dnat accept')
        lines.append(f'    iifname "{bridge}" ct status dnat ct state established,related accept')
    # Within one bridge (with br_netfilter such packets come by here, too).
    for network in networks:
        lines.append(f'    iifname "{network.bridge}" oifname "{network.bridge}" accept')
    for network in nat:
        # Nobody on a bridge speaks with addresses of others, and networks do not reach each other.
        lines.append(f'    iifname "{network.bridge}" ip saddr {network.subnet} oifname != {{ {bridges} }} accept')
        lines.append(f'    oifname "{network.bridge}" ct state established,related accept')
    lines.append(f"    iifname {{ {bridges} }} drop")
    lines.append(f"    oifname {{ {bridges} }} drop")
    lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _destinations(published: Sequence[Published]) -> list[str]:
    """Where packets to a published port go, those from outside and those of the host itself."""
    if not published:
        return []
    lines = []
    # The hook of what comes in knows its priority by name, that of what goes out by number.
    for hook, priority in (("prerouting", "dstnat"), ("output", "-100")):
        lines.append(f"  chain to_{hook} {{")
        lines.append(f"    type nat hook {hook} priority {priority}; policy accept;")
        for port in published:
            if port.host_address.is_loopback and hook == "prerouting":
                continue
            wanted = "fib daddr type local" if port.host_address == ANY else f"ip daddr {port.host_address}"
            lines.append(f"    {wanted} {port.protocol} dport {port.host_port} dnat to {port.address}:{port.port}")
        lines.append("  }")
    return lines


def apply(table: str, networks: Sequence[Filtered], published: Sequence[Published] = ()) -> None:
    """Blocks for some milliseconds. Raises HvdError FILTER_FAILED."""
    try:
        if (published or any(network.nat for network in networks)) and FORWARD.read_text("ascii").strip() == "0":
            FORWARD.write_text("1", "ascii")
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=ruleset(table, networks, published),
            env={"PATH": _path(), "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HvdError("FILTER_FAILED", problem=str(error)) from error
    if done.returncode:
        raise HvdError("FILTER_FAILED", problem=(done.stderr.strip().splitlines() or ["nft failed"])[0])
    for bridge in {port.bridge for port in published}:
        # After the rules: by then no guest profits from it.
        try:
            Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("1", "ascii")
        except OSError as error:
            raise HvdError("FILTER_FAILED", problem=f"route_localnet of {bridge}: {error.strerror}") from error
