"""The user that a guest's processes run as, and what belongs to it: the daemon's side."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# Nobody else's: https://systemd.io/UIDS-GIDS/ calls it unused.
FIRST_USER: Final = 1_879_048_192
USERS: Final = 1 << 27
# CAP_CHOWN, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN (linux/capability.h): to own files, and to change the user, the root, the network.
NEEDED: Final = {"chown": 0, "setgid": 6, "setuid": 7, "setpcap": 8, "sys_admin": 21}


@functools.cache
def missing() -> Sequence[str]:
    """Of NEEDED, what this process does not have, and will not get; empty = guests can have all of the jail."""
    with open("/proc/self/status", encoding="ascii") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return [name for name, number in NEEDED.items() if not held >> number & 1]


def user_of(uid: str) -> int:
    """The user, and the group, of the guest with this uid: always the same one. Two guests of a thousand have one in common with a probability of
    one in 270; their other walls remain."""
    try:
        return FIRST_USER + uuid.UUID(uid).int % USERS
    except ValueError:  # of tests and of old stores
        return FIRST_USER + int.from_bytes(uid.encode()[-8:], "big") % USERS


def give(directory: Path, user: int) -> None:
    """The directory and what is in it, one level of directories further down, to that user. Raises OSError."""
    _give(directory, user)
    for entry in os.scandir(directory):
        _give(entry.path, user)
        if entry.is_dir(follow_symlinks=False):
            for inner in os.scandir(entry.path):
                _give(inner.path, user)


def _give(path: Path | str, user: int) -> None:
    about = os.lstat(path)
    # A file with another name elsewhere, such as a snapshot that is being cloned, is not this guest's alone.
    if about.st_uid != user and not (about.st_nlink > 1 and not os.path.isdir(path)):
        os.chown(path, user, user, follow_symlinks=False)


def give_as(path: Path, parent: Path) -> None:
    """To the owner of another: what is made in a directory of a guest belongs to the guest. Raises OSError."""
    about = parent.stat()
    if about.st_uid != os.geteuid():
        os.chown(path, about.st_uid, about.st_gid, follow_symlinks=False)
