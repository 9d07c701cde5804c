"""The host's /dev/null, which crun (1.8.1) gives away: it makes root of the container the owner of its standard streams, and of one that is
the host's /dev/null, too. The container has the same device in its /dev, and whoever owns it may close it to everybody else."""

from __future__ import annotations

import contextlib
import os

from hvd.backends.container.rootfs import FIRST_ID

PATH = "/dev/null"


def take_back() -> None:
    """After a container was made, and before anything runs in it. Another that runs already could use the moment between; runc does not do it
    at all."""
    with contextlib.suppress(PermissionError):  # then nobody could give it away either
        if os.stat(PATH).st_uid == FIRST_ID:
            os.chown(PATH, 0, 0)
