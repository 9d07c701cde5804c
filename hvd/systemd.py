"""What systemd and hvd tell each other: readiness, watchdog, where the log goes (sd_notify(3), systemd.exec(5))."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import sys
from collections.abc import Mapping

import structlog

log = structlog.get_logger()


@functools.cache
def notify_socket() -> str:
    """Where systemd listens; empty = nowhere. With the first call the environment has it no more: children do not speak for hvd, and `runc start`
    would wait until the container's own program says that it is ready."""
    return os.environ.pop("NOTIFY_SOCKET", "")


def notify(state: str) -> None:
    """Tell systemd, if it listens."""
    address = notify_socket()
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.setblocking(False)  # whoever does not read shall not hold the API
        try:
            notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            notifier.send(state.encode())
        except OSError as error:
            log.warning("NOTIFY_SOCKET cannot be told", error=str(error))


def watchdog_seconds(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often it wants to hear that this process is well; None = it does not."""
    wanted = environment.get("WATCHDOG_USEC", "")
    whom = environment.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or not int(wanted) or (whom and whom != str(os.getpid())):
        return None
    return int(wanted) / 2e6


async def keep_watchdog(seconds: float) -> None:
    """For ever. It comes from the event loop that serves the API: one that is stuck is noticed."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


def is_journal(environment: Mapping[str, str] = os.environ) -> bool:
    """Does stderr go to the journal, which keeps fields?"""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        about = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # there is none
        return False
    return (device, inode) == (str(about.st_dev), str(about.st_ino))
