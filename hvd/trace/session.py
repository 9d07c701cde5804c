"""Trace sessions: several at once, each with its guests, kinds and points; recording is on only for what some session
wants.

A ring has one word of enabled kinds, written by the daemon alone: the union of what the sessions on that guest want.
The last session that goes switches it off. What a session does not want but another does is filtered out here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from hvapi.record import RECORD_BYTES

from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.trace.points import Kind, Point
from hvd.trace.ring import RingReader, write_enabled

_POINT_OFFSET = 12  # of struct hv_record; two bytes
_KIND_OFFSET = 14
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
    """What is wanted of which guest directory, over all sessions; keeps the rings' enabled words so."""

    def __init__(self) -> None:
        self._wanted: dict[Path, list[int]] = {}

    def add(self, directory: Path, mask: int) -> None:
        self._wanted.setdefault(directory, []).append(mask)
        self.apply(directory)

    def remove(self, directory: Path, mask: int) -> None:
        masks = self._wanted[directory]
        masks.remove(mask)
        if not masks:
            del self._wanted[directory]
        self.apply(directory)

    def mask(self, directory: Path) -> int:
        union = 0
        for mask in self._wanted.get(directory, ()):
            union |= mask
        return union

    def apply(self, directory: Path) -> None:
        """Write the union; also for a ring that was just made or that an earlier daemon left switched on."""
        write_enabled(directory / names.TRACE, self.mask(directory))


class GuestTrace:
    """One session's view of one guest, over all its runs: its ring is a new file at each start.

    Must be closed: the ring is switched off with the last session.
    """

    def __init__(self, directory: Path, wanted: Filter, switch: TraceSwitch, run: int) -> None:
        self._directory = directory
        self._filter = wanted
        self._switch = switch
        self._run = run
        self._ring: RingReader | None = None
        self._open(from_start=False)
        switch.add(directory, wanted.mask)

    def _open(self, *, from_start: bool) -> None:
        try:
            self._ring = RingReader(self._directory / names.TRACE, from_start=from_start)
        except HvdError:
            self._ring = None  # not made yet: it is looked for again

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
        self._switch.remove(self._directory, self._filter.mask)

    def read(self, most: int, run: int) -> tuple[bytes, int, bool]:
        """Up to `most` wanted records, how many were lost, and whether to ask again at once (False = nothing new).

        run: GuestLife.run, to notice that the ring was made anew.
        """
        if self._ring is not None:
            try:
                block, lost = self._ring.read(most)
            except HvdError:
                # Cut short or gone bad: the guest may have been started anew; if not, it stays silent until it is.
                self._ring.close()
                self._ring = None
                return b"", 0, False
            if block or lost or run == self._run:
                return self._filter.apply(block), lost, bool(block or lost)
            # The old ring is read to its end.
            self._ring.close()
            self._ring = None
        self._run = run
        self._open(from_start=True)
        if self._ring is None:
            return b"", 0, False
        self._switch.apply(self._directory)
        return b"", 0, True
