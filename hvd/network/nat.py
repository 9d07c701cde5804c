"""The packet filter's part of networks: one nftables table of this daemon, always written as a whole.

It is made from the networks there are, so a table that a crash left behind is replaced at the next start, and nothing
in it is ever patched. Container backends add what they publish to the same table.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from hvd.errors import HvdError

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


def ruleset(table: str, networks: Sequence[Filtered]) -> str:
    """The commands that make the table what it is to be, in one transaction; without networks it goes away."""
    lines = [f"add table ip {table}", f"delete table ip {table}"]
    if not networks:
        return "\n".join(lines) + "\n"
    bridges = ", ".join(f'"{network.bridge}"' for network in networks)
    nat = [network for network in networks if network.nat]
    lines.append(f"table ip {table} {{")
    lines.append("  chain postrouting {")
    lines.append("    type nat hook postrouting priority srcnat; policy accept;")
    for network in nat:
        lines.append(f'    ip saddr {network.subnet} oifname != "{network.bridge}" masquerade')
    lines.append("  }")
    lines.append("  chain forward {")
    lines.append("    type filter hook forward priority filter; policy accept;")
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


def apply(table: str, networks: Sequence[Filtered]) -> None:
    """Blocks for some milliseconds. Raises HvdError FILTER_FAILED."""
    try:
        if any(network.nat for network in networks) and FORWARD.read_text("ascii").strip() == "0":
            FORWARD.write_text("1", "ascii")
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=ruleset(table, networks),
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
