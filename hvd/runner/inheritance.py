"""Descriptors that a runner is born with: where it says that it is ready, then those of its network cards in their order.

Both who starts runners and the runner itself count from READY_FD; nothing else is open beyond the standard streams.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

READY_FD = 3
FIRST_CARD_FD = READY_FD + 1
# Besides READY_FD: as many as a machine may have cards.
MOST_DESCRIPTORS = 8
# Beyond every number that inherit() and posix_spawn's actions write to.
ABOVE = 64


def lifted(descriptor: int) -> int:
    """A copy whose number is none that a runner's descriptors get, so that putting one in place closes no other. The
    caller closes it. Raises OSError."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE)


def inherit(descriptors: Sequence[int]) -> None:
    """Put them at READY_FD and behind. Raises OSError."""
    for place, copy in enumerate([lifted(descriptor) for descriptor in descriptors], READY_FD):
        os.dup2(copy, place)
        os.close(copy)
