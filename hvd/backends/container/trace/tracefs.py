"""System calls by the kernel's trace files, where eBPF is not allowed: an instance of its own for each container, with the events
raw_syscalls:sys_enter and sys_exit, for the container's threads and what they fork (Documentation/trace/{ftrace,events}.rst).

What it cannot tell: path names and addresses of sockets (pointers only), the instruction's address, and whether a call is one of a 32-bit
program, for which the program's file is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hvd.backends.container.trace.pages import PAGE_BYTES, events
from hvd.backends.container.trace.points import COMPATIBLE, KEYS, key_of
from hvd.backends.container.trace.telling import tell
from hvd.cgroup.hierarchy import hierarchy
from hvd.runner.directory import process_start_time
from hvd.trace.writer import RecordWriter

# Of all CPUs together; of one at least.
BUFFER_KIB, LEAST_KIB = 8192, 256
# More chosen calls than that are chosen here, not in the kernel, which reads a text of one page.
MOST_CHOSEN = 100
# Threads that are not known are looked for so often.
SCAN_SECONDS = 0.25
_PREFIX = "hvd-"
_FSOPEN, _FSCONFIG, _FSMOUNT, _CREATE, _CLOEXEC = 430, 431, 432, 6, 1
_libc = ctypes.CDLL(None, use_errno=True)
_ENTER, _LEAVE, _FORK = "raw_syscalls/sys_enter", "raw_syscalls/sys_exit", "sched/sched_process_fork"
_MASK = (1 << 64) - 1
# Calls that this must see to know what a thread is: execve, execveat, exit, exit_group, of both kinds.
_EXECS = frozenset({59, 322, COMPATIBLE | 11, COMPATIBLE | 358})
_ENDS = frozenset({60, 231, COMPATIBLE | 1, COMPATIBLE | 252})
_MOST_TASKS = 8192
# Events that are kept while a program is being started, and for how long at most.
_MOST_WAITING, STARTING_SECONDS = 1 << 16, 5.0


def _mount() -> int:
    """A mount of tracefs that nobody else sees, and which goes with the descriptor. Raises OSError."""

    def call(number: int, *arguments: object) -> int:
        result = int(_libc.syscall(number, *arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), f"tracefs: {os.strerror(ctypes.get_errno())}")
        return result

    context = call(_FSOPEN, b"tracefs", _CLOEXEC)
    try:
        call(_FSCONFIG, context, _CREATE, None, None, 0)
        return call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


@contextlib.contextmanager
def mounted() -> Iterator[Path]:
    """The trace files, for a look. Raises OSError."""
    descriptor = _mount()
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class Tracefs:
    """A Source."""

    name = "tracefs"
    by_thread = True

    def __init__(self) -> None:
        """Raises OSError when the kernel has none or does not allow it."""
        self._mount = _mount()
        try:
            self._root = Path(f"/proc/self/fd/{self._mount}")
            _sweep(self._root)
            self._events = {name: _Event(self._root / "events" / name) for name in (_ENTER, _LEAVE, _FORK)}
        except BaseException:
            os.close(self._mount)
            raise
        self._guests: dict[str, _Guest] = {}

    def descriptors(self) -> list[int]:
        return [descriptor for guest in list(self._guests.values()) for descriptor in guest.pipes]

    def follow(self, uid: str, init: int, wanted: bytes) -> None:
        if (known := self._guests.get(uid)) is not None:
            known.choose(wanted)
            return
        guest = _Guest(self._root, uid, self._events, wanted)
        try:
            guest.add([init])
            guest.scan()
            guest.switch(True)
        except BaseException:
            guest.close()
            raise
        self._guests[uid] = guest  # only now: the thread that reads finds it

    def follow_process(self, uid: str, pid: int) -> None:
        if (guest := self._guests.get(uid)) is not None:
            guest.starting[pid] = time.monotonic()
            guest.add([pid])

    def found_program(self, uid: str, pid: int, program: int) -> None:
        if (guest := self._guests.get(uid)) is not None:
            guest.found(pid, program)

    def leave(self, uid: str) -> None:
        if (guest := self._guests.get(uid)) is not None:
            guest.switch(False)
            guest.starting.clear()

    def forget(self, uid: str) -> None:
        if (guest := self._guests.pop(uid, None)) is not None:
            guest.close()

    def losses(self, uid: str) -> tuple[int, int]:
        lost = self._guests[uid].losses()
        return lost, lost  # of which calls, nobody knows

    def read(self, writers: dict[str, RecordWriter], most: int, losses: Callable[[str], None]) -> bool:
        more = False
        for uid, guest in list(self._guests.items()):
            if (writer := writers.get(uid)) is not None:
                until, left = guest.collect(most)
                more |= left
                if left:  # a buffer that is read to its end was not full, and it stays full until it is read
                    losses(uid)
                guest.tell(writer, until)
        return more

    def close(self) -> None:
        for uid in list(self._guests):
            self.forget(uid)
        os.close(self._mount)


class _Event:
    """What its file `format` says: its number, and where its fields stand."""

    def __init__(self, directory: Path) -> None:
        text = (directory / "format").read_text("ascii")
        self.number = int(next(line for line in text.splitlines() if line.startswith("ID:"))[3:])
        self.offsets = {}
        for line in text.splitlines():
            parts = [part.strip() for part in line.split(";")]
            if parts[0].startswith("field:") and len(parts) > 2:
                name = parts[0].split()[-1].partition("[")[0]
                self.offsets[name] = int(parts[1].partition(":")[2])


@dataclass(slots=True)
class _Task:
    """A thread, as the host numbers it."""

    inside: bool  # of the container; otherwise the runtime's
    thread: int  # in its own namespace, if that could be learnt before it ended
    process: int  # likewise, or 0
    compatible: bool


@dataclass(slots=True)
class _Call:
    time_ns: int
    number: int
    arguments: tuple[int, ...]


@dataclass(slots=True)
class _Seen:
    """Events that were read, by time: those of one CPU may be read before earlier ones of another."""

    time_ns: int
    event: int
    thread: int
    number: int
    words: tuple[int, ...]


class _Guest:
    """One container's instance."""

    def __init__(self, root: Path, uid: str, formats: dict[str, _Event], wanted: bytes) -> None:
        self._uid = uid
        self._directory = root / "instances" / f"{_PREFIX}{os.getpid()}-{process_start_time(os.getpid())}-{uid}"
        self._numbers = {formats[name].number: name for name in formats}
        self._tasks: dict[int, _Task] = {}
        self._calls: dict[int, _Call] = {}
        self._waiting: list[_Seen] = []
        self._scanned = 0.0
        # Processes of the host that are about to start a program in the container, since when, and the programs: whose a thread is that has
        # ended before it was looked at, only its starter can tell, so that nothing is told meanwhile.
        self.starting: dict[int, float] = {}
        self._programs: set[int] = set()
        self._wanted = wanted
        self.pipes: list[int] = []
        enter, leave, fork = (formats[name].offsets for name in (_ENTER, _LEAVE, _FORK))
        self._places = (enter["common_pid"], enter["id"], enter["args"], leave["id"], leave["ret"], fork["parent_pid"], fork["child_pid"])
        os.mkdir(self._directory)
        try:
            cpus = sorted((self._directory / "per_cpu").glob("cpu*"))
            self._write("buffer_size_kb", max(LEAST_KIB, BUFFER_KIB // max(1, len(cpus))))
            self._write("trace_clock", "mono")
            self._write("options/overwrite", 0)  # what does not fit is lost, and not what was there before
            self._write("options/event-fork", 1)
            with contextlib.suppress(OSError):  # wake whoever waits with the first event (Linux 5.0)
                self._write("buffer_percent", 0)
            self._statistics = [cpu / "stats" for cpu in cpus]
            for cpu in cpus:
                self.pipes.append(os.open(cpu / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            self._filter()
        except BaseException:
            self.close()
            raise

    def _write(self, name: str, value: object) -> None:
        descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)

    def close(self) -> None:
        while self.pipes:
            os.close(self.pipes.pop())
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._directory)

    # ---- what is traced

    def switch(self, on: bool) -> None:
        for name in (_FORK, _LEAVE, _ENTER):
            self._write(f"events/{name}/enable", int(on))

    def add(self, threads: Collection[int]) -> None:
        """These, and what they fork, from now on."""
        descriptor = os.open(self._directory / "set_event_pid", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):
                    os.write(descriptor, f"{thread}\n".encode())
        finally:
            os.close(descriptor)

    def found(self, pid: int, program: int) -> None:
        """What that process has started; 0 = nothing."""
        if program:
            self._programs.add(program)
            if (task := self._tasks.get(program)) is not None:
                task.inside = True
        self.starting.pop(pid, None)

    def scan(self) -> None:
        """Those of its threads that are not known: of a container that ran before, and what came into it in another way than by fork."""
        self._scanned = time.monotonic()
        for _ in range(3):  # they fork meanwhile
            found = {thread for group in hierarchy().directories(self._uid) for thread in _threads(group)}
            new = found - self._tasks.keys()
            if not new:
                return
            self.add(new)
            for thread in new:
                self._look(thread, inside=True)
        if len(self._tasks) > _MOST_TASKS:
            self._tasks = {thread: task for thread, task in self._tasks.items() if thread in found}

    def choose(self, wanted: bytes) -> None:
        self._wanted = wanted
        self._filter()

    def _filter(self) -> None:
        keys = {key for key in range(KEYS) if self._wanted[key >> 3] >> (key & 7) & 1}
        text = "0"  # none
        if len(keys) <= MOST_CHOSEN:
            numbers = {key & ~COMPATIBLE for key in keys | _EXECS | _ENDS}
            text = " || ".join(f"id == {number}" for number in sorted(numbers))
        for name in (_ENTER, _LEAVE):
            self._write(f"events/{name}/filter", text)

    # ---- what they did

    def collect(self, most: int) -> tuple[int, bool]:
        """Reads what happened, up to about so many calls. Until when all is known (0 = nothing is to be told yet), and whether there may be more."""
        now = time.monotonic()
        starts = any(now - since < STARTING_SECONDS for since in list(self.starting.values()))
        # Not meanwhile: the kernel takes a list of threads for a whole, and forgets who was forked while it was changed.
        if now - self._scanned > SCAN_SECONDS and not starts:
            self.scan()
        until = time.monotonic_ns()
        more = False
        pages = max(1, most // (len(self.pipes) * 32))
        for pipe in self.pipes:
            last = until
            for _ in range(pages):
                try:
                    page = os.read(pipe, PAGE_BYTES)
                except BlockingIOError:
                    break
                if not page:
                    break
                last = self._take(page)
            else:
                more = True
                until = min(until, last)  # later ones of this CPU are still to come
        return (0 if starts and len(self._waiting) < _MOST_WAITING else until), more

    def tell(self, writer: RecordWriter, until: int) -> None:
        self._waiting.sort(key=lambda seen: seen.time_ns)
        known = bisect_right(self._waiting, until, key=lambda seen: seen.time_ns)
        for seen in self._waiting[:known]:
            self._happen(writer, seen)
        del self._waiting[:known]

    def _take(self, page: bytes) -> int:
        """The time of the page's last event."""
        pid_at, number_at, arguments_at, left_at, result_at, parent_at, child_at = self._places
        unpack, last = struct.unpack_from, 0
        for last, at in events(page):
            name = self._numbers.get(unpack("<H", page, at)[0])
            (thread,) = unpack("<i", page, at + pid_at)
            if name == _ENTER:
                seen = _Seen(last, 0, thread, unpack("<q", page, at + number_at)[0], unpack("<6Q", page, at + arguments_at))
            elif name == _LEAVE:
                seen = _Seen(last, 1, thread, unpack("<q", page, at + left_at)[0], unpack("<q", page, at + result_at))
            elif name == _FORK:
                seen = _Seen(last, 2, unpack("<i", page, at + parent_at)[0], unpack("<i", page, at + child_at)[0], ())
            else:
                continue
            self._waiting.append(seen)
        return last

    def _happen(self, writer: RecordWriter, seen: _Seen) -> None:
        task = self._tasks.get(seen.thread) or self._look(seen.thread)
        if seen.event == 2:
            self._look(seen.number, inside=task.inside, parent=task)
        elif seen.event == 0:
            number = seen.number & 0xFFFFFFFF
            key = key_of(number, task.compatible)
            if key in _ENDS:
                self._tell(writer, task, key, number, _Call(seen.time_ns, number, seen.words), seen.time_ns, 0)
                self._tasks.pop(seen.thread, None)
                self._programs.discard(seen.thread)
            else:
                self._calls[seen.thread] = _Call(seen.time_ns, number, seen.words)
        elif (call := self._calls.pop(seen.thread, None)) is not None:
            key = key_of(call.number, task.compatible)
            self._tell(writer, task, key, call.number, call, seen.time_ns, seen.words[0])
            if key in _EXECS and seen.words[0] == 0:
                task.compatible = _is_compatible(seen.thread, task.compatible)

    def _tell(self, writer: RecordWriter, task: _Task, key: int, number: int, call: _Call, end_ns: int, result: int) -> None:
        if task.inside and self._wanted[key >> 3] >> (key & 7) & 1:
            tell(writer, key, number, call.time_ns, end_ns - call.time_ns, 0, result & _MASK, task.thread, task.process, call.arguments)

    def _look(self, thread: int, *, inside: bool = False, parent: _Task | None = None) -> _Task:
        """What this thread is; it may have ended."""
        threads: list[int] = []
        processes: list[int] = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            status = Path(f"/proc/{thread}/status").read_text("utf-8", "replace")
            rows = dict(line.split(":", 1) for line in status.splitlines())
            threads, processes = ([int(word) for word in rows[row].split()] for row in ("NSpid", "NStgid"))
        own = len(_OWN_NUMBERS)
        inside = inside or len(threads) > own or thread in self._programs
        number = threads[own] if len(threads) > own else thread
        process = processes[own] if len(processes) > own else 0
        before = parent is not None and parent.compatible
        task = _Task(inside, number, process, _is_compatible(thread, before))
        self._tasks[thread] = task
        return task

    def losses(self) -> int:
        """A call has two events, and one record or more: at least so many."""
        lost = 0
        for path in self._statistics:
            for line in path.read_text("ascii").splitlines():
                name, _, count = line.partition(":")
                if name in ("overrun", "dropped events"):
                    lost += int(count)
        return (lost + 1) // 2


def _threads(group: Path) -> set[int]:
    found: set[int] = set()
    for directory in (group, *group.rglob("*/")) if group.is_dir() else ():
        for name in ("tasks", "cgroup.threads"):
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (directory / name).read_text("ascii").split()}
    return found


def _own_numbers() -> list[int]:
    """This process in its own and the namespaces above it: a container's threads have one more."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return [os.getpid()]
    return [int(word) for line in lines if line.startswith("NSpid:") for word in line.split()[1:]]


_OWN_NUMBERS = _own_numbers()


def _is_compatible(thread: int, otherwise: bool) -> bool:
    """Is its program one of 32 bits (e_ident[EI_CLASS] of its ELF file)?"""
    try:
        with open(f"/proc/{thread}/exe", "rb") as file:
            identity = file.read(5)
    except OSError:
        return otherwise
    return identity == b"\x7fELF\x01"


def _sweep(root: Path) -> None:
    """Instances that a daemon which is gone has left."""
    for directory in (root / "instances").glob(f"{_PREFIX}*"):
        pid, _, rest = directory.name.removeprefix(_PREFIX).partition("-")
        started = rest.partition("-")[0]
        if not pid.isdecimal() or str(process_start_time(int(pid))) == started:
            continue
        with contextlib.suppress(OSError):  # somebody looks into it
            os.rmdir(directory)


def reason() -> str:
    """Why containers cannot be traced by trace files here; empty = they can."""
    if os.geteuid() != 0:
        return "it needs root, for tracefs"
    if os.uname().machine != "x86_64":
        return "the table of calls is that of x86-64"
    try:
        Tracefs().close()
    except (OSError, StopIteration, KeyError) as error:
        return f"the kernel has no trace files for it: {error}"
    return ""

