"""Where the API listens: unix sockets by role, TCP with mutual TLS; and whether somebody else is there already."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvd.api.roles import SOCKETS, Role
from hvd.config import Config
from hvd.errors import HvdError

UNIX = "unix://"
# sun_path of struct sockaddr_un, less the byte that ends it.
MOST_PATH_BYTES = 107
SOCKET_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Endpoint:
    address: str  # unix:///path or host:port
    role: Role | None  # None = of the client's certificate

    @property
    def path(self) -> Path | None:
        return Path(self.address.removeprefix(UNIX)) if self.address.startswith(UNIX) else None


def endpoints(config: Config) -> list[Endpoint]:
    """Those asked for; otherwise one socket per role in the runtime directory."""
    if config.listen:
        return [
            Endpoint(address, Role.ADMIN if address.startswith(UNIX) else None)
            for address in dict.fromkeys(config.listen)
        ]
    return [Endpoint(f"{UNIX}{config.runtime_dir / name}", role) for role, name in SOCKETS.items()]


def claim(path: Path) -> None:
    """Make room for a socket: a dead daemon's is removed.

    Raises HvdError ENDPOINT_IN_USE when a living one answers there, ENDPOINT_UNUSABLE when it is no socket or no place
    for one.
    """
    endpoint = f"{UNIX}{path}"
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise HvdError(
            "ENDPOINT_UNUSABLE",
            endpoint=endpoint,
            problem=f"the path has more than {MOST_PATH_BYTES} bytes",
            remedy="choose a shorter one with --listen or --runtime-dir",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise HvdError(
            "ENDPOINT_UNUSABLE", endpoint=endpoint, problem=error.strerror, remedy="choose another --listen"
        ) from error
    if not stat.S_ISSOCK(mode):
        raise HvdError(
            "ENDPOINT_UNUSABLE",
            endpoint=endpoint,
            problem="there is something that is no socket",
            remedy="move it away, or choose another --listen",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A living daemon whose queue is full does not answer at once: it is alive all the same.
        probe.setblocking(False)
        result = probe.connect_ex(os.fspath(path))
    if result == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif result != errno.ENOENT:
        raise HvdError("ENDPOINT_IN_USE", endpoint=endpoint)


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    """Sockets made within are born for this user only: changing them afterwards would leave a moment in which anybody may connect.
    open_to_group() opens them.
    """
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def open_to_group(endpoint: Endpoint, config: Config) -> None:
    """Give an endpoint's socket the group and the mode that make its role's policy. Raises HvdError ENDPOINT_UNUSABLE."""
    path, role = endpoint.path, endpoint.role
    assert path is not None and role is not None
    groups, modes = (dict(setting.split("=", 1) for setting in table) for table in (config.socket_group, config.socket_mode))
    try:
        if role in groups:
            os.chown(path, -1, int(groups[role]))
        os.chmod(path, int(modes[role], 8) if role in modes else SOCKET_MODE)
    except OSError as error:
        remedy = "leave socket-group out, or run hvd as root or as a member of that group"
        raise HvdError("ENDPOINT_UNUSABLE", endpoint=endpoint.address, problem=str(error), remedy=remedy) from error
