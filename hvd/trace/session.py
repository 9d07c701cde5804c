"""Trace sessions: several at once, each with its guests, kinds and points; recording is on only for what some session
wants.

A ring has one word of enabled kinds, written by the daemon alone: the union of what the sessions on that guest want.
The last session that goes switches it off. What a session does not want but another does is filtered out here.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from hvapi.record import RECORD_BYTES

from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.trace.points import Kind, Point
from hvd.trace.ring import RingReader, create_ring, write_enabled

_ARGUMENTS_OFFSET = 32
_POINT_OFFSET = 12  # of struct hv_record; two bytes
_KIND_OFFSET = 14
# Rings of one guest that wait for a slow reader; of the oldest the rest is then lost, and counted.
MOST_RUNS = 8
T = TypeVar("T")


class Filter:
    """Which records a session wants."""

    def __init__(self, kinds: Iterable[str], reasons: Iterable[str], points: Iterable[Point]) -> None:
        """kinds: labels of Kind; reasons: names of points; empty = all. Raises HvdError FIELD_INVALID for one that does
        not exist.
        """
        known_points = {point.name: point for point in points}
        known_kinds: dict[str, Kind] = {kind.label: kind for kind in Kind if kind is not Kind.LOST}
        wanted_kinds: set[Kind] = {_known(known_kinds, "kinds", kind) for kind in kinds}
        wanted_points = {_known(known_points, "reasons", reason) for reason in reasons}
        if wanted_points:
            # Both given = both must hold.
            wanted_points = {point for point in wanted_points if not wanted_kinds or point.kind in wanted_kinds}
            wanted_kinds = {point.kind for point in wanted_points}
        self.mask = sum(1 << kind for kind in wanted_kinds or known_kinds.values())
        self._kinds = bytes(sorted(wanted_kinds)) if wanted_kinds else b""
        self._points = {point.id for point in wanted_points}

    def apply(self, block: bytes) -> bytes:
        """The records of the block that are wanted."""
        if not self._kinds:
            return block
        # bytes.translate with the wanted kinds deleted: what is left are the unwanted ones. All in C, since most blocks
        # pass whole.
        if not self._points and not block[_KIND_OFFSET::RECORD_BYTES].translate(None, self._kinds):
            return block
        kinds, low, high = (block[offset::RECORD_BYTES] for offset in (_KIND_OFFSET, _POINT_OFFSET, _POINT_OFFSET + 1))
        return b"".join(
            block[index * RECORD_BYTES : (index + 1) * RECORD_BYTES]
            for index in range(len(kinds))
            if kinds[index] in self._kinds and (not self._points or low[index] | high[index] << 8 in self._points)
        )


def _known(table: dict[str, T], field: str, name: str) -> T:
    try:
        return table[name]
    except KeyError:
        raise HvdError(
            "FIELD_INVALID",
            field=field,
            value=repr(name[:80]),
            problem="is not known",
            remedy="`hvctl trace points` lists what there is",
        ) from None


class TraceSwitch:
    """What is wanted of which guest directory, over all sessions; keeps the rings' enabled words so, and gives each
    session the rings of the guest's further runs.
    """

    def __init__(self) -> None:
        self._sessions: dict[Path, list[GuestTrace]] = {}
        # Of running guests: who is told what is wanted, besides the ring.
        self._recorders: dict[Path, Callable[[int], None]] = {}

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

    def mask(self, directory: Path) -> int:
        union = 0
        for session in self._sessions.get(directory, ()):
            union |= session.mask
        return union

    def apply(self, directory: Path) -> None:
        """Write the union; also for a ring that an earlier daemon left switched on. Raises HvdError DISK_FULL, TRACE_UNAVAILABLE."""
        write_enabled(directory / names.TRACE, self.mask(directory))
        if (recorder := self._recorders.get(directory)) is not None:
            recorder(self.mask(directory))

    def begin(self, directory: Path, recorder: Callable[[int], None]) -> None:
        """A guest runs in this directory: recorder (Instance.trace) is told which kinds are wanted, now and whenever that changes."""
        self._recorders[directory] = recorder
        try:
            self.apply(directory)
        except HvdError as error:
            for session in self._sessions.get(directory, ()):
                session.fail(error)

    def end(self, directory: Path) -> None:
        """It has ended."""
        self._recorders.pop(directory, None)

    def before_launch(self, directory: Path) -> None:
        """A guest is about to be started in its (new) directory: if anybody listens, its ring is made and switched on
        now, so that its first crossing is seen. What goes wrong with that is the sessions' error, not the guest's.
        """
        sessions = self._sessions.get(directory, ())
        if not sessions:
            return
        path = directory / names.TRACE
        try:
            create_ring(path, names.TRACE_RECORDS, self.mask(directory))
            for session in sessions:
                session.follow(RingReader(path, from_start=True))
        except (HvdError, OSError) as error:
            problem = error if isinstance(error, HvdError) else HvdError("TRACE_UNREADABLE", problem=str(error))
            path.unlink(missing_ok=True)
            for session in sessions:
                session.fail(problem)


class GuestTrace:
    """One session's view of one guest, over all its runs: each has a ring of its own, a new file.

    Must be closed: the ring is switched off with the last session.
    """

    def __init__(self, directory: Path, wanted: Filter, switch: TraceSwitch) -> None:
        """Raises HvdError DISK_FULL when there is no room for the ring's records."""
        self.mask = wanted.mask
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
        if self._problem is not None:
            raise self._problem
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
        lost += missed
        if complete and not block and not missed:
            self._rings.popleft().close()
            return b"", lost, True
        found = bool(block or lost)
        if 0 in block[_KIND_OFFSET::RECORD_BYTES]:
            block, missed = _without_gaps(block)
            lost += missed
        return self._filter.apply(block), lost, found


def _without_gaps(block: bytes) -> tuple[bytes, int]:
    """Take out records of kind LOST: how many were lost before they came into the ring."""
    kept, lost = [], 0
    for start in range(0, len(block), RECORD_BYTES):
        if block[start + _KIND_OFFSET] == Kind.LOST:
            lost += int.from_bytes(block[start + _ARGUMENTS_OFFSET : start + _ARGUMENTS_OFFSET + 8], "little")
        else:
            kept.append(block[start : start + RECORD_BYTES])
    return b"".join(kept), lost
