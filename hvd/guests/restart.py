"""The restart policy: whether a guest that ended is started again, and after how long.

Pauses double with each end in a row and are forgotten by a run of some length, so that a guest that fails at once costs
the host little, and one that fails once a day comes back at once.
"""

from __future__ import annotations

import time

from hvapi.v1 import guest_pb2

from hvd.backends.contract import InstanceStatus

Policy = guest_pb2.RestartPolicy
LEAST_SECONDS, MOST_SECONDS, CALM_SECONDS = 0.1, 60.0, 10.0


def failed(status: InstanceStatus) -> bool:
    """Does this end count as a failure? A triple fault does: no guest asks for one (but see on_reset)."""
    return status.state in ("FAILED", "LOST") or status.reason == "TRIPLE_FAULT" or bool(status.exit_code)


def is_on(policy: guest_pb2.RestartPolicy) -> bool:
    return policy.mode in (Policy.ALWAYS, Policy.ON_FAILURE)


class Restarts:
    """What the policy remembers of one guest."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._began: float | None = None

    def begin(self) -> None:
        """A run begins."""
        self._began = time.monotonic()

    def forget(self) -> None:
        """It was started by hand."""
        self.in_a_row = 0

    def wanted(self, policy: guest_pb2.RestartPolicy, status: InstanceStatus) -> bool:
        """Does the policy want a guest that ended like this, without having been asked to, to be started again?"""
        if self._began is not None and time.monotonic() - self._began >= CALM_SECONDS:
            self.in_a_row = 0
        self._began = None
        return status.reason != "KILLED" and is_on(policy) and (policy.mode == Policy.ALWAYS or failed(status))

    def given_up(self, policy: guest_pb2.RestartPolicy) -> bool:
        """Were there too many in a row?"""
        return policy.mode == Policy.ON_FAILURE and 0 < policy.max_retries <= self.in_a_row

    @property
    def pause_seconds(self) -> float:
        return min(LEAST_SECONDS * 2.0 ** min(self.in_a_row, 20), MOST_SECONDS)
