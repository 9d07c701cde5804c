"""Which records a session wants. A ring has one word of kinds; what a session does not want of them, but another does, goes here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from hvapi.record import FLAG_MORE, FLAG_STACK, FLAG_UNTIMED, RECORD_BYTES

from hvd.errors import HvdError
from hvd.trace.points import BackendId, Kind, Point, Wanted

# Of struct hv_record: bytes, and the record as eight words of 64 bits.
_POINT_OFFSET, _KIND_OFFSET, _FLAGS_OFFSET = 12, 14, 18
_WORDS = RECORD_BYTES // 8
_WHAT, _WHERE, _RIP, _THREAD = 1, 2, 3, 5  # duration, point, kind, backend; vcpu, flags, sequence; rip; a container's argument "tid"
_WITHOUT_STACK = bytes(value for value in range(256) if not value & FLAG_STACK)
_MOST_NS = 0xFFFFFFFF
T = TypeVar("T")


class Filter:
    """Everything must hold that is given."""

    def __init__(
        self,
        kinds: Iterable[str],
        reasons: Iterable[str],
        points: Iterable[Point],
        *,
        addresses: Collection[tuple[int, int]] = (),
        pids: Iterable[int] = (),
        min_duration_ns: int = 0,
        stacks: bool = False,
    ) -> None:
        """kinds: labels of Kind; reasons: names of points; addresses: first and last; empty = all. Raises HvdError FIELD_INVALID for a
        name that does not exist, and for what no record can have.
        """
        known_points: dict[str, list[Point]] = {}
        for point in points:
            for name in {point.name, point.family or point.name}:
                known_points.setdefault(name, []).append(point)
        known_kinds: dict[str, Kind] = {kind.label: kind for kind in Kind if kind is not Kind.LOST}
        wanted_kinds: set[Kind] = {_known(known_kinds, "kinds", kind) for kind in kinds}
        wanted_points = {point for reason in reasons for point in _known(known_points, "reasons", reason)}
        if wanted_points:
            # Both given = both must hold.
            wanted_points = {point for point in wanted_points if not wanted_kinds or point.kind in wanted_kinds}
            wanted_kinds = {point.kind for point in wanted_points}
        self.mask = sum(1 << kind for kind in wanted_kinds or known_kinds.values())
        self._kinds = bytes(sorted(wanted_kinds)) if wanted_kinds else b""
        self._points = {point.id for point in wanted_points}
        self.wanted = Wanted(self.mask, frozenset(self._points) if self._points else None, self.mask if stacks else 0)
        for first, last in addresses:
            if first > last:
                raise HvdError("FIELD_INVALID", field="addresses", value=f"{first:#x}-{last:#x}", problem="ends before it begins",
                               remedy="the lower address comes first")  # fmt: skip
        if not 0 <= min_duration_ns <= _MOST_NS:
            raise HvdError("FIELD_INVALID", field="min_duration", value=f"{min_duration_ns} ns", problem="no record can tell",
                           remedy="use at most 4.29 s: what took longer is recorded as that")  # fmt: skip
        self._addresses = tuple(addresses)
        self._pids = frozenset(pids)
        self._least_ns = min_duration_ns
        self._stacks = stacks
        self._looks = bool(self._addresses or self._pids or self._least_ns)

    def apply(self, block: bytes) -> bytes:
        """The records of the block that are wanted, each with what continues it."""
        if not self._stacks and block[_FLAGS_OFFSET::RECORD_BYTES].translate(None, _WITHOUT_STACK):
            block = _without_stacks(block)
        if not self._looks:
            if not self._kinds:
                return block
            # bytes.translate with the wanted kinds deleted: what is left are the unwanted ones. All in C, since most blocks pass whole.
            if not self._points and not block[_KIND_OFFSET::RECORD_BYTES].translate(None, self._kinds):
                return block
            if self._points and self._points.issuperset(memoryview(block).cast("H")[_POINT_OFFSET // 2 :: RECORD_BYTES // 2].tolist()):
                return block
            return self._of_kinds(block)
        words = memoryview(block).cast("Q")
        columns = (words[at::_WORDS].tolist() for at in (_WHAT, _WHERE, _RIP, _THREAD))
        kept, wanted = [], False
        for index, (what, where, rip, thread) in enumerate(zip(*columns, strict=True)):
            if not where >> 16 & FLAG_MORE:
                wanted = self._wants(what, where >> 16, rip, thread)
            if wanted:
                kept.append(block[index * RECORD_BYTES : (index + 1) * RECORD_BYTES])
        return b"".join(kept)

    def _wants(self, what: int, flags: int, rip: int, thread: int) -> bool:
        if self._kinds and what >> 48 & 0xFF not in self._kinds:
            return False
        if self._points and what >> 32 & 0xFFFF not in self._points:
            return False
        if self._least_ns and (flags & FLAG_UNTIMED or what & _MOST_NS < self._least_ns):
            return False
        if self._pids and what >> 56 == BackendId.CONTAINER and thread >> 32 not in self._pids:
            return False
        return not self._addresses or any(first <= rip <= last for first, last in self._addresses)

    def _of_kinds(self, block: bytes) -> bytes:
        kinds, low, high = (block[offset::RECORD_BYTES] for offset in (_KIND_OFFSET, _POINT_OFFSET, _POINT_OFFSET + 1))
        return b"".join(
            block[index * RECORD_BYTES : (index + 1) * RECORD_BYTES]
            for index in range(len(kinds))
            if kinds[index] in self._kinds and (not self._points or low[index] | high[index] << 8 in self._points)
        )


def _without_stacks(block: bytes) -> bytes:
    """Another session wanted them."""
    return b"".join(
        block[start : start + RECORD_BYTES]
        for start in range(0, len(block), RECORD_BYTES)
        if not block[start + _FLAGS_OFFSET] & FLAG_STACK
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
