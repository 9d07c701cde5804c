"""Fills the trace rings of all traced containers. For each way of learning system calls (Source) that is in use, a thread reads and
writes records; what could not be told becomes a record of its own.

Nothing here is called in the event loop: a thread that reads a flood is told what to do between two turns, and whoever tells it waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import structlog

from hvd.backends.container.trace.choice import choose, open_source
from hvd.backends.container.trace.points import chosen
from hvd.backends.container.trace.source import Source
from hvd.errors import HvdError
from hvd.trace.points import BackendId
from hvd.trace.writer import RecordWriter

log = structlog.get_logger()

# How long a loss may go unreported.
LOSS_SECONDS = 0.25
# To the end of what had been told when a container was left; others may go on telling.
LAST_TURNS = 64
# So many calls are read in one turn.
TURN_CALLS = 1024  # of up to 15 records each: less than a ring holds
# After a turn that left something, the thread rests for this share of the time that it took: the rest of the daemon needs the interpreter, too.
REST_SHARE = 0.5
_REMEDY = "see docs/tracing.md, Containers"


@dataclass(slots=True)
class _Traced:
    reader: _Reader
    wanted: bytes


class Recorder:
    """Thread-safe; every method may wait, for a turn of the thread that reads or for the kernel."""

    def __init__(self, ways: Sequence[str] | None = None) -> None:
        """ways: names of sources, best first; None = what the kernel can."""
        self._ways = ways
        self._lock = threading.Lock()
        self._readers: dict[str, _Reader] = {}
        self._guests: dict[str, _Traced] = {}

    def use(self, ways: Sequence[str]) -> None:
        self._ways = ways

    def begin(self, uid: str, directory: Path, init: int, mask: int, points: Collection[int] | None) -> None:
        """Trace the container from now on, or choose its calls anew. init: its process 1; points: of the calls that are wanted, None = all.
        Raises HvdError TRACE_UNAVAILABLE, DISK_FULL."""
        wanted = chosen(points)
        with self._lock:
            known = self._guests.get(uid)
            try:
                if known is None:
                    self._begin(uid, directory, init, mask, wanted)
                elif known.wanted != wanted:
                    known.reader.source.follow(uid, init, wanted)
                    known.wanted = wanted
            except OSError as error:
                raise HvdError("TRACE_UNAVAILABLE", problem=str(error), remedy=_REMEDY) from error

    def _begin(self, uid: str, directory: Path, init: int, mask: int, wanted: bytes) -> None:
        ways = choose("auto").ways if self._ways is None else self._ways
        problem: HvdError | OSError = HvdError("TRACE_UNAVAILABLE", problem="there is no way to learn its calls here", remedy=_REMEDY)
        for way in ways:
            try:
                reader = self._readers.get(way) or _Reader(open_source(way))
                self._readers[way] = reader
                reader.add(uid, RecordWriter(directory, BackendId.CONTAINER, mask))
                try:
                    reader.source.follow(uid, init, wanted)
                except BaseException:
                    reader.remove(uid)
                    raise
            except (OSError, HvdError) as error:
                self._tidy()
                if isinstance(error, HvdError) and error.reason != "TRACE_UNAVAILABLE":
                    raise
                problem = error
            else:
                reader.watch()
                self._guests[uid] = _Traced(reader, wanted)
                return
        raise problem

    def is_by_thread(self, uid: str) -> bool:
        """What starts a program in the container is to wait until follow_process() has told of it, or the trace may miss the program."""
        with self._lock:
            return (guest := self._guests.get(uid)) is not None and guest.reader.source.by_thread

    def follow_process(self, uid: str, pid: int) -> None:
        """A process of the host that starts a program in the container, which may be traced or not."""
        with self._lock:
            if (guest := self._guests.get(uid)) is not None:
                guest.reader.source.follow_process(uid, pid)

    def found_program(self, uid: str, pid: int, program: int) -> None:
        """What the process of follow_process() has started; 0 = nothing."""
        with self._lock:
            if (guest := self._guests.get(uid)) is not None:
                guest.reader.source.found_program(uid, pid, program)
                guest.reader.wake()

    def end(self, uid: str) -> None:
        """No more of this container; what was told so far is written when this returns. No error when it is not traced."""
        with self._lock:
            guest = self._guests.pop(uid, None)
            if guest is not None:
                guest.reader.source.leave(uid)
                guest.reader.remove(uid)
                self._tidy()

    def _tidy(self) -> None:
        used = {id(guest.reader) for guest in self._guests.values()}
        for way, reader in list(self._readers.items()):
            if id(reader) not in used:
                del self._readers[way]
                reader.close()


class _Reader:
    """A source and the thread that reads it, which owns the writers."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._writers: dict[str, RecordWriter] = {}
        self._lost: dict[str, tuple[int, int]] = {}
        self._broken: set[str] = set()
        self._orders: deque[tuple[Callable[[], bool | None], Future[None]]] = deque()
        self._watched: list[int] = []
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._ends = False
        self._thread = threading.Thread(target=self._run, name=f"container-trace-{source.name}", daemon=True)
        self._thread.start()

    # ---- for others

    def add(self, uid: str, writer: RecordWriter) -> None:
        def order() -> None:
            self._writers[uid], self._lost[uid] = writer, (0, 0)

        self._order(order)

    def remove(self, uid: str) -> None:
        """What was told so far is written, and its writer closed."""
        self._order(lambda: self._remove(uid))

    def watch(self) -> None:
        """The source has other descriptors."""
        self._order(self._watch)

    def wake(self) -> None:
        """There may be something to write."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        self._order(self._end)
        self._thread.join()
        self._epoll.close()
        os.close(self._bell)
        self.source.close()

    def _order(self, work: Callable[[], bool | None]) -> None:
        done: Future[None] = Future()
        self._orders.append((work, done))
        os.eventfd_write(self._bell, 1)
        done.result()

    # ---- the thread

    def _run(self) -> None:
        more, rest = False, 0.0
        while not self._ends:
            if not more:
                self._epoll.poll(LOSS_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
            elif rest > 0 and not self._orders:
                time.sleep(rest)
            while self._orders:
                work, done = self._orders.popleft()
                try:
                    work()
                except Exception as error:  # noqa: BLE001  for whoever ordered it
                    done.set_exception(error)
                else:
                    done.set_result(None)
            if self._ends:
                return
            began = time.monotonic()
            more = self._turn()
            rest = (time.monotonic() - began) * REST_SHARE

    def _turn(self) -> bool:
        try:
            more = self.source.read(self._writers, TURN_CALLS, self._report_losses)
        except OSError as error:
            log.warning("system calls cannot be read", source=self.source.name, error=str(error))
            more = False
        for uid in self._writers:
            if not more:
                self._report_losses(uid)
            self._flush(uid)
        return more

    def _report_losses(self, uid: str) -> None:
        try:
            records, calls = self.source.losses(uid)
        except (OSError, KeyError):  # it is not followed yet, or no more
            return
        told, uncounted = self._lost[uid]
        if records > told:
            self._writers[uid].lose(records - told, calls - uncounted)
            self._lost[uid] = records, calls

    def _flush(self, uid: str) -> None:
        try:
            self._writers[uid].flush()
        except OSError as error:
            if uid not in self._broken:
                log.warning("a trace ring cannot be written", guest=uid, error=str(error))
                self._broken.add(uid)

    def _remove(self, uid: str) -> None:
        if uid not in self._writers:
            return
        for _ in range(LAST_TURNS):
            if not self._turn():
                break
        self._report_losses(uid)
        self._flush(uid)
        self.source.forget(uid)
        self._watch()
        self._writers.pop(uid).close()
        del self._lost[uid]
        self._broken.discard(uid)

    def _watch(self) -> None:
        for descriptor in self._watched:
            try:
                self._epoll.unregister(descriptor)
            except OSError:  # closed since
                continue
        self._watched = self.source.descriptors()
        for descriptor in self._watched:
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)

    def _end(self) -> None:
        self._ends = True


RECORDER = Recorder()
