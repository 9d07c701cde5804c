"""Trace sessions: several at once, each with its guests, kinds and points; recording is on only for what some session
wants.

A ring has one word of enabled kinds, written by the daemon alone: the union of what the sessions on that guest want.
The last session that goes switches it off. What a session does not want but another does is filtered out (filter.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from hvapi.record import RECORD_BYTES

from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.trace.filter import Filter
from hvd.trace.points import Kind, Wanted
from hvd.trace.ring import RingReader, create_ring, write_enabled

_ARGUMENTS_OFFSET = 32
_KIND_OFFSET = 14  # of struct hv_record
# More than a session can lose in one gap; whoever tells of more is not believed, or sums would not fit into 64 bits.
MOST_LOST = 1 << 40
# Rings of one guest that wait for a slow reader; of the oldest the rest is then lost, and counted.
MOST_RUNS = 8


Listener = Callable[[Wanted], Awaitable[None]]


class TraceSwitch:
    """What is wanted of which guest directory, over all sessions; keeps the rings' enabled words so, and gives each
    session the rings of the guest's further runs.
    """

    def __init__(self) -> None:
        self._sessions: dict[Path, list[GuestTrace]] = {}
        # Of running guests: who is told what is wanted, besides the ring.
        self._followers: dict[Path, _Follower] = {}

    def add(self, directory: Path, session: GuestTrace) -> None:
        """Raises HvdError DISK_FULL when the ring has no room; nothing is added then."""
        self._sessions.setdefault(directory, []).append(session)
        try:
            self.apply(directory)
        except BaseException:
            self.remove(directory, session)
            raise

    def remove(self, directory: Path, session: GuestTrace) -> None:
        sessions = self._sessions[directory]
        sessions.remove(session)
        if not sessions:
            del self._sessions[directory]
        with contextlib.suppress(HvdError):  # no room: those who are left were told so themselves
            self.apply(directory)

    def wanted(self, directory: Path) -> Wanted:
        union = Wanted()
        for session in self._sessions.get(directory, ()):
            union |= session.wanted
        return union

    def apply(self, directory: Path) -> None:
        """Write the union; also for a ring that an earlier daemon left switched on. Who is told of it besides may take a while: settled().
        Raises HvdError DISK_FULL."""
        wanted = self.wanted(directory)
        write_enabled(directory / names.TRACE, wanted.mask, wanted.stacks)
        if (follower := self._followers.get(directory)) is not None:
            follower.tell(wanted)

    async def settled(self, directory: Path) -> None:
        """What is wanted now is done, or has become the sessions' error."""
        if (follower := self._followers.get(directory)) is not None and follower.task is not None:
            await asyncio.shield(follower.task)

    def begin(self, directory: Path, listener: Listener) -> None:
        """A guest runs in this directory: listener (Instance.trace) is told what is wanted, now and whenever that changes, one after the
        other; an HvdError that it raises is the sessions' error. In the event loop."""
        self._followers[directory] = _Follower(listener, lambda error: self._fail(directory, error))
        try:
            self.apply(directory)
        except HvdError as error:
            self._fail(directory, error)

    def _fail(self, directory: Path, error: HvdError) -> None:
        for session in self._sessions.get(directory, ()):
            session.fail(error)

    def end(self, directory: Path) -> None:
        """It has ended."""
        self._followers.pop(directory, None)

    def before_launch(self, directory: Path) -> Wanted:
        """A guest is about to be started in its (new) directory: if anybody listens, its ring is made and switched on
        now, so that its first crossing is seen. What goes wrong with that is the sessions' error, not the guest's.
        Answers what is wanted of it.
        """
        sessions = self._sessions.get(directory, ())
        if not sessions:
            return Wanted()
        wanted = self.wanted(directory)
        path = directory / names.TRACE
        try:
            create_ring(path, names.TRACE_RECORDS, wanted.mask, wanted.stacks)
            for session in sessions:
                session.follow(RingReader(path, from_start=True))
        except (HvdError, OSError) as error:
            problem = error if isinstance(error, HvdError) else HvdError("TRACE_UNREADABLE", problem=str(error))
            path.unlink(missing_ok=True)
            for session in sessions:
                session.fail(problem)
            return Wanted()
        return wanted


class _Follower:
    """Tells a listener what is wanted, in tasks of the event loop: never two at a time, and of what changed meanwhile the last."""

    def __init__(self, listener: Listener, fail: Callable[[HvdError], None]) -> None:
        self._listener = listener
        self._fail = fail
        self._wanted = self._told = Wanted()
        self.task: asyncio.Task[None] | None = None

    def tell(self, wanted: Wanted) -> None:
        self._wanted = wanted
        if self._told != wanted and (self.task is None or self.task.done()):
            self.task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        while self._told != self._wanted:
            wanted = self._wanted
            try:
                await self._listener(wanted)
            except HvdError as error:
                self._fail(error)
            self._told = wanted


class GuestTrace:
    """One session's view of one guest, over all its runs: each has a ring of its own, a new file.

    Must be closed: the ring is switched off with the last session.
    """

    def __init__(self, directory: Path, wanted: Filter, switch: TraceSwitch) -> None:
        """Raises HvdError DISK_FULL when there is no room for the ring's records."""
        self.wanted = wanted.wanted
        self._directory = directory
        self._filter = wanted
        self._switch = switch
        # The runs' rings, oldest first. All but the last are of runs that have ended.
        self._rings: deque[RingReader] = deque()
        self._lost = 0
        self._problem: HvdError | None = None
        # Look for a ring that was not announced: that of a run which is just being started.
        self._looks = not self._open(from_start=False)
        try:
            switch.add(directory, self)
        except BaseException:
            self._close_rings()
            raise

    def _open(self, *, from_start: bool) -> bool:
        try:
            self._rings.append(RingReader(self._directory / names.TRACE, from_start=from_start))
        except HvdError:
            return False  # not made yet
        return True

    def follow(self, ring: RingReader) -> None:
        """Go on with this ring when the ones before it are read to their ends."""
        self._looks = False
        self._rings.append(ring)
        if len(self._rings) > MOST_RUNS:
            ring = self._rings.popleft()
            self._lost += ring.unread()
            ring.close()

    def fail(self, problem: HvdError) -> None:
        """The next read() raises it."""
        self._problem = problem

    def check(self) -> None:
        """Raises the HvdError that the next read() would."""
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        self._close_rings()
        self._switch.remove(self._directory, self)

    def _close_rings(self) -> None:
        while self._rings:
            self._rings.pop().close()

    def read(self, most: int) -> tuple[bytes, int, bool]:
        """Up to `most` wanted records, how many were lost, and whether to ask again at once (False = nothing new).

        Raises HvdError DISK_FULL, TRACE_UNREADABLE: a run of the guest could not be traced.
        """
        self.check()
        if not self._rings:
            if not self._looks or not self._open(from_start=True):
                return b"", 0, False
            self._looks = False
            self._switch.apply(self._directory)
        # Asked before reading: a ring that is not the last is complete.
        complete = len(self._rings) > 1
        lost, self._lost = self._lost, 0
        try:
            block, missed = self._rings[0].read(most)
        except HvdError:
            # Cut short or gone bad: silent until the guest is started anew.
            self._rings.popleft().close()
            return b"", lost, complete
        lost += min(missed, MOST_LOST)
        if complete and not block and not missed:
            self._rings.popleft().close()
            return b"", lost, True
        found = bool(block or lost)
        if 0 in block[_KIND_OFFSET::RECORD_BYTES]:
            block, missed = _without_gaps(block)
            lost += missed
        return self._filter.apply(block), min(lost, MOST_LOST), found


def _without_gaps(block: bytes) -> tuple[bytes, int]:
    """Take out records of kind LOST: how many were lost before they came into the ring."""
    kept, lost = [], 0
    for start in range(0, len(block), RECORD_BYTES):
        if block[start + _KIND_OFFSET] == Kind.LOST:
            told = int.from_bytes(block[start + _ARGUMENTS_OFFSET : start + _ARGUMENTS_OFFSET + 8], "little")
            lost += min(told, MOST_LOST)
        else:
            kept.append(block[start : start + RECORD_BYTES])
    return b"".join(kept), lost
