"""Ports for servers that must be told theirs before they listen."""

from __future__ import annotations

import random
import socket
from pathlib import Path


def free_port() -> int:
    """Of 127.0.0.1, outside of the range of which the kernel gives one to whoever asks for any: nobody is given it before the server binds it."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [*range(10_000, low), *range(high + 1, 1 << 16)] or range(low, high + 1)
    while True:
        port = random.SystemRandom().choice(ports)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
