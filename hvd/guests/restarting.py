"""Starting a guest anew when its restart policy wants that: the wait until then, and what calls it off."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from hvapi.v1 import guest_pb2

from hvd.backends.contract import InstanceStatus
from hvd.guests import conditions
from hvd.guests.model import ENDED
from hvd.guests.restart import Restarts
from hvd.guests.serial import SerialVerbs


class PolicyRestarts(SerialVerbs, ABC):
    """The part of GuestLife that is this."""

    def __init__(self, guest: guest_pb2.Guest, known: bool) -> None:
        """As SerialVerbs."""
        super().__init__(guest, known)
        self._asked_to_end = False
        self._restarts = Restarts()
        self._restart: asyncio.Task[None] | None = None
        self._restarting = False

    @abstractmethod
    async def _launch(self, paused: bool, by_hand: bool) -> None: ...

    @property
    def restarts(self) -> bool:
        """Will the daemon start it anew in a moment?"""
        return self._restarting or (self._restart is not None and not self._restart.done())

    def _wants_restart(self, status: InstanceStatus) -> bool:
        policy = self.guest.restart_policy
        if self._asked_to_end or not self._restarts.wanted(policy, status):
            return False
        if self._restarts.given_up(policy):
            conditions.put(
                self.guest,
                conditions.RESTART_GIVEN_UP,
                "MAX_RETRIES",
                f"failed again after {self._restarts.in_a_row} restarts in a row; `hvctl start` tries once more",
            )
            return False
        conditions.put(
            self.guest,
            conditions.RESTART_PENDING,
            "RESTART_POLICY",
            f"is started again in {self._restarts.pause_seconds:.1f} s",
        )
        return True

    def _schedule_restart(self) -> None:
        seconds = self._restarts.pause_seconds

        async def restart() -> None:
            await asyncio.sleep(seconds)
            async with self._exclusively():
                if self.guest.state not in ENDED:
                    return
                self._restart = None  # from here on it is no longer pending and must not be cancelled half way
                self._restarts.in_a_row += 1
                self.guest.restart_count += 1
                self._restarting = True  # it takes a moment until it is STARTING
                try:
                    await self._launch(paused=False, by_hand=False)
                finally:
                    self._restarting = False

        self._restart = self._spawn(restart())

    def _cancel_restart(self, *, keep_condition: bool = False) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if not keep_condition:
            conditions.clear(self.guest, conditions.RESTART_PENDING)
