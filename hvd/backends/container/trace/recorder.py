"""Fills the trace rings of all traced containers from the one pair of programs, which is loaded while any is traced.

A thread takes what the kernel has told and writes records. What the kernel could not tell because the ring buffer was full is
counted per container and becomes a record of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from hvd.backends.container.cgroup.hierarchy import PARENT, hierarchy
from hvd.backends.container.trace.points import BY_NUMBER, COMPATIBILITY, UNKNOWN
from hvd.backends.container.trace.program import EVENT, SLOTS, TEXT, TEXT_BYTES, USER32_CS, Programs
from hvd.errors import HvdError
from hvd.trace.points import BackendId, Kind
from hvd.trace.writer import RecordWriter

log = structlog.get_logger()

LEVEL = PARENT.count("/") + 2  # of the containers' control groups: hvd/<uid>
# Records that are written at once; far fewer than a ring holds.
BATCH_RECORDS = 1024
# How long a loss may go unreported.
LOSS_SECONDS = 0.25
# After so many, the lock is let go once.
TURN_EVENTS = 4096
# Places of a call's arguments in EVENT: di, si, dx, r10, r8, r9.
_ARGUMENTS = (15, 14, 13, 8, 10, 9)


@dataclass(slots=True)
class _Guest:
    group: int
    slot: int
    writer: RecordWriter
    lost: int = 0
    broken: bool = field(default=False)


class Recorder:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._programs: Programs | None = None
        self._guests: dict[str, _Guest] = {}
        self._slots: dict[int, _Guest] = {}
        self._thread: threading.Thread | None = None
        self._stop = -1

    def begin(self, uid: str, directory: Path, init: int, mask: int) -> None:
        """Trace the container from now on; no error when it is traced. init: its process 1.
        Raises HvdError TRACE_UNAVAILABLE, DISK_FULL."""
        with self._lock:
            if uid in self._guests:
                return
            group = _group(uid)
            try:
                if self._programs is None:
                    self._start()
                assert self._programs is not None
                namespace = os.stat(f"/proc/{init}/ns/pid")
                slot = next((slot for slot in range(SLOTS) if slot not in self._slots), None)
                if slot is None:
                    raise OSError(f"{SLOTS} containers are traced already")
                guest = _Guest(group, slot, RecordWriter(directory, BackendId.CONTAINER, mask))
                guest.lost = self._programs.losses(slot)
                self._guests[uid] = self._slots[slot] = guest
                self._programs.follow(group, slot, namespace)
            except (OSError, HvdError) as error:
                self._forget(uid)
                if isinstance(error, HvdError):
                    raise
                raise HvdError("TRACE_UNAVAILABLE", problem=str(error), remedy="see docs/containers.md, Tracing") from error

    def end(self, uid: str) -> None:
        """No more of this container; what was told so far is written."""
        with self._lock:
            if uid in self._guests and self._programs is not None:
                self._programs.leave(self._guests[uid].group)
                self._drain()
                self._losses()
                self._flush()
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        guest = self._guests.pop(uid, None)
        if guest is not None:
            del self._slots[guest.slot]
            guest.writer.close()
        if not self._guests and self._programs is not None:
            os.eventfd_write(self._stop, 1)
            self._programs.close()
            self._programs = None

    def _start(self) -> None:
        """Under the lock."""
        self._programs = Programs(LEVEL)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(
            target=self._run, args=(os.dup(self._programs.ring.fd), self._stop), name="container-trace", daemon=True
        )
        self._thread.start()

    def _run(self, ring: int, stop: int) -> None:
        """Owns both descriptors. Ends when the programs are unloaded."""
        epoll = select.epoll()
        try:
            epoll.register(ring, select.EPOLLIN | select.EPOLLET)
            epoll.register(stop, select.EPOLLIN)
            more = False
            while True:
                events = epoll.poll(0 if more else LOSS_SECONDS)
                if any(descriptor == stop for descriptor, _ in events):
                    return
                with self._lock:
                    if stop != self._stop or self._programs is None:
                        return
                    more = self._drain(TURN_EVENTS)
                    if not more:
                        self._losses()
                    self._flush()
        finally:
            epoll.close()
            os.close(ring)
            os.close(stop)

    def _drain(self, most: int | None = None) -> bool:
        """Is there more than `most` events?"""
        assert self._programs is not None
        slots, count = self._slots, 0
        for count, event in enumerate(itertools.islice(self._programs.events(), most), 1):  # noqa: B007
            fields = EVENT.unpack_from(event)
            guest = slots.get(fields[3])
            if guest is not None:  # else of one that is traced no more
                _record(guest.writer, fields, event)
                if guest.writer.pending >= BATCH_RECORDS:
                    self._write(guest)
        return count == most

    def _losses(self) -> None:
        assert self._programs is not None
        for guest in self._slots.values():
            if (lost := self._programs.losses(guest.slot)) != guest.lost:
                guest.writer.lose(lost - guest.lost)
                guest.lost = lost

    def _flush(self) -> None:
        for guest in self._slots.values():
            self._write(guest)

    def _write(self, guest: _Guest) -> None:
        try:
            guest.writer.flush()
        except OSError as error:
            if not guest.broken:
                log.warning("a trace ring cannot be written", error=str(error))
            guest.broken = True


def _record(writer: RecordWriter, fields: tuple[int, ...], event: bytes) -> None:
    time_ns, duration_ns, number, pid, rip, result = *fields[:3], fields[4], fields[6], fields[7]
    call = BY_NUMBER.get(number)
    if fields[18] == USER32_CS or call is None:
        point = COMPATIBILITY if fields[18] == USER32_CS else UNKNOWN
        writer.add(point.id, point.kind, time_ns, duration_ns, rip, (result, pid, number, fields[15]), {})
        return
    words = [result, pid, *(fields[place] for place in _ARGUMENTS[: call.arguments])]
    words += [0] * (4 - len(words))
    texts = {}
    at = TEXT
    for position, length in zip(call.paths, (fields[16], fields[17]), strict=False):
        if length:
            text = event[at : at + length - 1]
            texts[position] = text + b"..." if length == TEXT_BYTES else text
        at += TEXT_BYTES
    writer.add(call.point, Kind.SYSTEM_CALL, time_ns, None if call.endless else duration_ns, rip, words, texts)


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
    """Why containers cannot be traced here; empty = they can."""
    if os.geteuid() != 0:
        return "it needs root, for bpf(2)"
    if hierarchy().unified is None:
        return "the host has no control groups of version 2 mounted, by which containers are told apart"
    try:
        Programs(LEVEL).close()
    except OSError as error:
        return f"the kernel refuses the eBPF programs: {error.strerror}"
    return ""


RECORDER = Recorder()
