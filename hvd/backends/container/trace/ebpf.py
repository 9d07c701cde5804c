"""System calls by eBPF: one pair of programs for all containers, told apart by their control groups."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable

from hvd.backends.container.trace.points import BY_KEY, COMPATIBLE, unnamed
from hvd.backends.container.trace.program import EVENT, PLACES, PLACES_32, SLOTS, TEXT, TEXT_BYTES, Programs
from hvd.backends.container.trace.telling import tell
from hvd.cgroup.hierarchy import PARENT, hierarchy
from hvd.errors import HvdError
from hvd.trace.writer import RecordWriter

LEVEL = PARENT.count("/") + 2  # of the containers' control groups: hvd/<uid>
_REGISTERS = 8  # their place in EVENT


class Ebpf:
    """A Source."""

    name = "ebpf"
    by_thread = False

    def __init__(self) -> None:
        """Raises OSError when the kernel does not allow it."""
        self._programs = Programs(LEVEL)
        self._slots: dict[str, int] = {}
        self._uids: dict[int, str] = {}
        self._groups: dict[str, int] = {}
        self._before: dict[str, tuple[int, int]] = {}
        self._all_lost = 0
        self._counted: dict[tuple[int, int], tuple[int, ...]] = {}  # what of Programs.counts() is in the counters pages

    def descriptors(self) -> list[int]:
        return [self._programs.ring.fd]

    def follow(self, uid: str, init: int, wanted: bytes) -> None:
        slot = self._slots.get(uid)
        group = _group(uid)
        namespace = os.stat(f"/proc/{init}/ns/pid")
        if slot is None:
            slot = next((slot for slot in range(SLOTS) if slot not in self._uids), None)
            if slot is None:
                raise OSError(f"{SLOTS} containers are traced already")
            self._before[uid] = self._programs.losses(slot)
            self._slots[uid], self._uids[slot], self._groups[uid] = slot, uid, group
        self._programs.follow(group, slot, namespace, wanted)

    def follow_process(self, uid: str, pid: int) -> None:
        """It will be in the container's control group."""

    def found_program(self, uid: str, pid: int, program: int) -> None:
        """It is known by its control group."""

    def leave(self, uid: str) -> None:
        if uid in self._groups:
            self._programs.leave(self._groups[uid])

    def forget(self, uid: str) -> None:
        if (slot := self._slots.pop(uid, None)) is not None:
            del self._uids[slot], self._groups[uid], self._before[uid]
            self._programs.forget_counts(slot)
            self._counted = {name: words for name, words in self._counted.items() if name[0] != slot}

    def losses(self, uid: str) -> tuple[int, int]:
        (records, calls), (earlier, uncounted) = self._programs.losses(self._slots[uid]), self._before[uid]
        return records - earlier, calls - uncounted

    def read(self, writers: dict[str, RecordWriter], most: int, losses: Callable[[str], None]) -> bool:
        by_slot = {slot: writers[uid] for slot, uid in list(self._uids.items()) if uid in writers}
        count = 0
        # Events that are there when losses are looked at: with a call, all that was lost before it is in the counters.
        events = self._programs.events()
        self._count_losses(by_slot)
        for count, event in enumerate(itertools.islice(events, most), 1):  # noqa: B007
            fields = EVENT.unpack_from(event)
            if (writer := by_slot.get(fields[3])) is None:
                continue  # of one that is traced no more
            key = fields[21]
            places = PLACES_32 if key & COMPATIBLE else PLACES
            arguments = [fields[_REGISTERS + place] for place in places]
            lengths = fields[19:21]
            texts = _texts(event, lengths, BY_KEY[key].address is not None) if any(lengths) else ()
            tell(writer, key, fields[2], fields[0], fields[1], fields[6], fields[7], fields[4], fields[5], arguments, texts)
        return count == most

    def _count_losses(self, writers: dict[int, RecordWriter]) -> None:
        lost, _ = self._programs.losses()
        if lost == self._all_lost:
            return
        self._all_lost = lost
        for slot, key, words in self._programs.counts():
            before = self._counted.get((slot, key), (0,) * len(words))
            self._counted[slot, key] = words
            if words != before and (writer := writers.get(slot)) is not None:
                call = BY_KEY.get(key)
                count, total_ns, _, *histogram = (now - then for now, then in zip(words, before, strict=True))
                writer.count(call.point if call is not None else unnamed(key, 0).id, count, total_ns, words[2], histogram)

    def close(self) -> None:
        self._programs.close()


def _texts(event: bytes, lengths: tuple[int, ...], is_address: bool) -> list[bytes | None]:
    """Lengths count one more than the text has bytes: a path's NUL."""
    found: list[bytes | None] = []
    for index, length in enumerate(lengths):
        start = TEXT + index * TEXT_BYTES
        text = event[start : start + length - 1] if length else None
        found.append(text + b"..." if text is not None and length == TEXT_BYTES and not is_address else text)
    return found


def _group(uid: str) -> int:
    """The id of its control group: its inode (kernfs_node_id of a 64-bit kernel). Raises HvdError TRACE_UNAVAILABLE."""
    directory = hierarchy().unified_directory(uid)
    with contextlib.suppress(OSError):
        if directory is not None:
            return directory.stat().st_ino
    raise HvdError(
        "TRACE_UNAVAILABLE",
        problem="it has no control group of version 2 to tell it by (as with engine crun on a host that has controllers of both versions)",
        remedy="use engine runc",
    )


def reason() -> str:
    """Why containers cannot be traced by eBPF here; empty = they can."""
    if os.geteuid() != 0:
        return "it needs root, for bpf(2)"
    if os.uname().machine != "x86_64":
        return "its programs know the registers of x86-64 only"
    if hierarchy().unified is None:
        return "the host has no control groups of version 2 mounted, by which containers are told apart"
    try:
        Programs(LEVEL).close()
    except OSError as error:
        return f"the kernel refuses the eBPF programs: {error.strerror}"
    return ""
