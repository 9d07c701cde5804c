"""Reads what each guest has used so far: its counters page, its process in /proc.

The guests are copied into views in the event loop; the reading is plain file access and may run in a worker thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hvapi.v1 import guest_pb2

from hvd.backends.usage import Usage
from hvd.errors import HvdError
from hvd.guests.records import read_process
from hvd.runner import directory as names
from hvd.trace.counters import Counters, read_counters

# (backend, directory of the guest) -> what it has used, if that backend measures it.
UsageSource = Callable[[str, Path], Usage | None]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class GuestView:
    """What of a guest the metrics need, at one moment."""

    name: str  # without "guests/"
    uid: str
    backend: str
    image: str  # without "images/"; empty = none
    state: str
    pid: int
    start_seconds: float  # since the epoch; 0 = never started
    memory_limit: int  # bytes; 0 = none
    directory: Path


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """CPU time of the guest's process: executing the guest, in the hypervisor's user code, in the host kernel."""

    guest: float = 0.0
    vmm: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        return self.guest + self.vmm + self.system


@dataclass(frozen=True, slots=True)
class Reading:
    """One guest, read."""

    guest: GuestView
    counters: Counters | None  # None = it has no page yet, or none that can be read
    cpu: CpuSeconds
    resident: int | None  # bytes; None = no process
    usage: Usage | None = None  # of a guest whose backend measures it; the last of its run when that has ended

    @property
    def memory_limit(self) -> int:
        """Bytes; 0 = none."""
        return self.usage.memory_limit_bytes if self.usage else self.guest.memory_limit


@dataclass(frozen=True, slots=True)
class _ProcessTimes:
    user: float
    system: float
    resident: int


@dataclass(slots=True)
class _Life:
    """One run of one guest: which process, and how its CPU time was divided so far."""

    pid: int
    start_time: int  # ticks since boot, from the pid file: tells a reused pid apart
    run_seconds: float = 0.0
    unaccounted: float = 0.0  # of run_seconds, not yet found in user
    user: float = 0.0
    cpu: CpuSeconds = CpuSeconds()


def view_of(guest: guest_pb2.Guest, directory: Path) -> GuestView:
    """Call it in the event loop: the guest changes there."""
    return GuestView(
        name=guest.name.removeprefix("guests/"),
        uid=guest.uid,
        backend=guest.backend,
        image=guest.image.removeprefix("images/"),
        state=guest_pb2.Guest.State.Name(guest.state),
        pid=guest.host_pid,
        start_seconds=guest.start_time.seconds + guest.start_time.nanos / 1e9,
        memory_limit=guest.machine.memory_bytes or guest.limits.memory_bytes,
        directory=directory,
    )


class Meter:
    """Reads guests, and remembers of each what makes its counters only ever grow. Thread-safe."""

    def __init__(self, usage: UsageSource = lambda backend, directory: None) -> None:
        """usage: of a backend's guest (Backend.usage)."""
        self._usage = usage
        self._used: dict[str, Usage] = {}
        self._lives: dict[str, _Life] = {}
        self._lock = threading.Lock()

    def read(self, guests: Iterable[GuestView]) -> list[Reading]:
        with self._lock:
            return [self._read(guest) for guest in guests]

    def forget_all_but(self, uids: set[str]) -> None:
        """Guests that are gone need no memory."""
        with self._lock:
            for known in (self._lives, self._used):
                for uid in known.keys() - uids:
                    del known[uid]

    def _read(self, guest: GuestView) -> Reading:
        counters = _counters_of(guest)
        used = self._usage(guest.backend, guest.directory) if guest.pid else None
        if used is not None:
            self._used[guest.uid] = used
            return Reading(guest, counters, _cpu_of(used), used.resident_bytes, used)
        if (last := self._used.get(guest.uid)) is not None:
            # It has ended: what it used, and nothing that it has no more.
            return Reading(guest, counters, _cpu_of(last), None, replace(last, charged_bytes=None, pids=None))
        life = self._lives.get(guest.uid)
        if guest.pid and (life is None or life.pid != guest.pid):
            process = read_process(guest.directory)
            if process is not None and process.pid == guest.pid:
                life = self._lives[guest.uid] = _Life(process.pid, process.start_time)
        if life is None:
            return Reading(guest, counters, CpuSeconds(), None)
        times = _process_times(life) if guest.pid else None
        if times is not None:
            _divide(life, times, counters.run_ns / 1e9 if counters else 0.0)
        return Reading(guest, counters, life.cpu, times.resident if times else None)


def _cpu_of(used: Usage) -> CpuSeconds:
    return CpuSeconds(guest=used.user_seconds, system=used.system_seconds)


def _divide(life: _Life, times: _ProcessTimes, run_seconds: float) -> None:
    """User time is the guest's as far as the board says that the guest ran, the rest the VMM's. Divided by what came
    in since the last reading, so that neither part ever shrinks: the board counts wall-clock time, which runs ahead of
    CPU time on a busy host.
    """
    new_user = max(0.0, times.user - life.user)
    ran = life.unaccounted + max(0.0, run_seconds - life.run_seconds)
    new_guest = min(new_user, ran)
    # /proc counts in ticks: up to one of them may not have been told yet.
    life.unaccounted = min(ran - new_guest, 1 / _TICKS)
    life.user = max(life.user, times.user)
    life.run_seconds = run_seconds
    life.cpu = CpuSeconds(
        guest=life.cpu.guest + new_guest,
        vmm=life.cpu.vmm + new_user - new_guest,
        system=max(life.cpu.system, times.system),
    )


def _counters_of(guest: GuestView) -> Counters | None:
    try:
        descriptor = os.open(guest.directory / names.COUNTERS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # not started yet, or being deleted
    try:
        return read_counters(descriptor)
    except HvdError:
        return None  # not written yet, or not ours: the guest has no counters
    finally:
        os.close(descriptor)


def _process_times(life: _Life) -> _ProcessTimes | None:
    """Of the process and of those that it has made: a guest of trap or rewriting runs in a child of its runner's. None when the process is
    gone. Memory is the process's own: a child's is the guest's, which it maps, too."""
    stat = _stat(life.pid)
    if stat is None or stat[22] != life.start_time:
        return None
    # With the times of children that were waited for.
    user, system = stat[14] + stat[16], stat[15] + stat[17]
    for child in _children(life.pid):
        times = _stat(child)
        if times is not None:
            user, system = user + times[14], system + times[15]
    return _ProcessTimes(user / _TICKS, system / _TICKS, stat[24] * _PAGE)


def _stat(pid: int) -> dict[int, int] | None:
    """Fields of proc(5), /proc/PID/stat, by number; None when the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything, parentheses and blanks too.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return {number: int(fields[number - 3]) for number in (14, 15, 16, 17, 22, 24)}


def _children(pid: int) -> list[int]:
    """Of all its threads; none on a kernel without CONFIG_PROC_CHILDREN."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_bytes().split())
        except OSError:  # a thread that has ended meanwhile
            continue
    return found
