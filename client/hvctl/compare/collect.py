"""Runs everything in turns (A B C A B C ..), so that whatever else the machine does hits all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from hvapi.v1 import system_pb2

from hvctl.compare import images
from hvctl.compare.kernels import KernelGuest, KernelRun, KernelUnderQemu
from hvctl.compare.kinds import NO_KERNEL, WHY
from hvctl.compare.places import (
    Container,
    Crossings,
    LinuxGuest,
    Native,
    Place,
    Qemu,
    Root,
    Session,
    backend_id,
    qemu_program,
)
from hvctl.compare.result import NATIVE, QEMU, Table
from hvctl.compare.workloads import COMMAND, KERNEL, KERNELS, NANO, PROGRAM, PROGRAMS, Workload, cost
from hvctl.sdk import Client
from hvctl.sdk.errors import HvctlError

# Of what a container crosses, more is run: there is more beside the work that is counted with it, the runtime's.
COUNTED_TIMES: Final = 4
CONTAINER: Final = "container"  # the capability that tells programs from machines


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done."""

    turns: int
    seconds: float  # in all: later nothing is measured anew, but once
    sample: float  # seconds that the operations of one measurement are to take
    kernel_ms: int


FULL: Final = Effort(9, 240.0, 0.25, 20)
QUICK: Final = Effort(3, 45.0, 0.06, 5)
# The programs' share of the time; the kernels have the rest.
PROGRAMS_SHARE: Final = 0.7


class Say(Protocol):
    def __call__(self, text: str, /) -> None: ...


class Collector:
    """backends: names of those to compare; empty = all. guests: where the guest programs are."""

    def __init__(self, client: Client, effort: Effort, guests: Path, scratch: Path, say: Say, backends: Sequence[str] = ()) -> None:
        self._client, self.effort, self._guests, self._scratch, self._say = client, effort, guests, scratch, say
        self._began = time.monotonic()
        self._name = f"compare-{os.getpid()}-{time.monotonic_ns() % 1_000_000:06}"
        found = [each for each in client.list_backends().backends if not backends or backend_id(each) in backends]
        if unknown := set(backends) - {backend_id(each) for each in found}:
            raise HvctlError.local("NOT_EXPLAINED", problem=f"there is no backend {', '.join(sorted(unknown))}: `hvctl backends`")
        self._backends = {backend_id(each): each for each in found}
        self.table = Table({NATIVE: {"kind": "native", "reason": ""}})
        for name, backend in self._backends.items():
            reason = "" if backend.available else f"{backend.reason}; {backend.remedy}".rstrip("; ")
            self.table.places[name] = {"kind": backend.kind, "reason": reason, "description": backend.description}
        self.table.places[QEMU] = {"kind": "emulation (yardstick)", "reason": ""}

    def _available(self) -> Iterator[tuple[str, system_pb2.Backend]]:
        for name, backend in self._backends.items():
            if backend.available:
                yield name, backend

    def cannot(self, workloads: Sequence[Workload], place: str, error: HvctlError) -> None:
        text = f"{error.message}; {error.help}" if error.help and error.reason != "NOT_EXPLAINED" else error.message
        if why := WHY.get(self.table.places[place]["kind"]):
            text = f"{text}; {why}"
        for workload in workloads:
            measured = self.table.of(workload.name, place)
            measured.reason, measured.seconds = text, {}

    # --- programs ---

    def programs(self) -> None:
        """PROGRAMS, everywhere."""
        self._in_a_root(PROGRAMS, None, "")

    def command(self, image: str, words: Sequence[str]) -> None:
        """The user's own, in an image's root file system."""
        self.table.reference = next((name for name, each in self._available() if CONTAINER in each.capabilities), NATIVE)
        del self.table.places[NATIVE]  # whose root file system is another one
        self._in_a_root((COMMAND,), words, image)

    def _in_a_root(self, workloads: Sequence[Workload], command: Sequence[str] | None, image: str) -> None:
        program = images.guest_file(self._guests, PROGRAM)
        with contextlib.ExitStack() as stack:
            made = images.user_root(self._client, self._name, image, program, self._scratch) if command else images.work_root(
                self._client, self._name, program, self._scratch)  # fmt: skip
            root = stack.enter_context(made)
            sessions: dict[str, Session] = {}
            for name, place in self._places(root, program, workloads).items():
                self._say(f"starting {name}")
                try:
                    sessions[name] = stack.enter_context(place.opened())
                except HvctlError as error:
                    self.cannot(workloads, name, error)
            runs = _Runs(self, sessions, root.program, command)
            for turn in self._turns("programs", PROGRAMS_SHARE):
                for workload in workloads:
                    for name in list(sessions):
                        runs.measure(turn, workload, name)
            self._count(workloads, root, runs)

    def _places(self, root: Root, program: Path, workloads: Sequence[Workload]) -> dict[str, Place]:
        """Raises nothing: what cannot be is told in the table."""
        places: dict[str, Place] = {}
        if NATIVE in self.table.places:
            # A copy beside what it writes, as it is everywhere else.
            places[NATIVE] = Native(Path(shutil.copy2(program, self._scratch)), self._scratch)
        usual = ""
        for name, backend in self._available():
            guest = f"{self._name}-{name}"
            if CONTAINER in backend.capabilities:
                places[name] = Container(self._client, backend, root, guest)
                continue
            try:
                image = images.linux_image(self._client, name, self._say)
            except HvctlError as error:
                self.cannot(workloads, name, error)
                continue
            usual = usual or (image if name not in images.RECIPES else "")
            places[name] = LinuxGuest(self._client, backend, root, guest, image)
        try:
            usual = usual or images.linux_image(self._client, "", self._say)
            places[QEMU] = Qemu(qemu_program(), *images.linux_files(self._client, usual, self._scratch), root)
        except HvctlError as error:
            self.cannot(workloads, QEMU, error)
        return places

    def _count(self, workloads: Sequence[Workload], root: Root, runs: _Runs) -> None:
        """Containers once more: what they cross is seen only by tracing, which costs time."""
        for name, backend in self._available():
            if CONTAINER in backend.capabilities and name in runs.sessions:
                self._say(f"counting what {name} crosses")
                try:
                    with Container(self._client, backend, root, f"{self._name}-counted", True).opened() as session:
                        runs.count(workloads, name, session)
                except HvctlError as error:
                    self._say(f"the system calls of {name} are not counted: {error.message}")

    # --- the kernel ---

    def kernels(self) -> None:
        """NANO, wherever a kernel can run."""
        ways: dict[str, Callable[[str], KernelRun]] = {}
        for name, backend in self._available():
            if CONTAINER in backend.capabilities:
                self.cannot(NANO, name, HvctlError.local("NOT_EXPLAINED", problem=NO_KERNEL))
                continue
            try:
                kernel = images.guest_file(self._guests, *KERNELS.get(name, (KERNEL,)))
            except HvctlError as error:
                self.cannot(NANO, name, error)
                continue
            ways[name] = KernelGuest(self._client, backend, kernel, f"{self._name}-{name}").run
        try:
            ways[QEMU] = KernelUnderQemu(qemu_program(), images.guest_file(self._guests, KERNEL)).run
        except HvctlError as error:
            self.cannot(NANO, QEMU, error)
        for turn in self._turns("the nanobenchmark", 1.0):
            for name, run in list(ways.items()):
                try:
                    found = run(f"ms={self.effort.kernel_ms}")
                except HvctlError as error:
                    self.cannot(NANO, name, error)
                    del ways[name]
                    continue
                for workload in NANO:
                    self._note_kernel(turn, workload, name, found)

    def _note_kernel(self, turn: int, workload: Workload, place: str, found: KernelRun) -> None:
        measured = self.table.of(workload.name, place)
        measured.memory_bytes = max(measured.memory_bytes, found.memory_bytes)
        if turn >= 0 and workload.name in found.costs:
            measured.seconds[turn] = found.costs[workload.name].seconds

    # --- all ---

    def _turns(self, what: str, share: float) -> Iterator[int]:
        """The first one, -1, warms up and counts for nothing. As many as time allows until `share` of it is over, and at least one that counts."""
        until = self._began + self.effort.seconds * share
        began = time.monotonic()
        for turn in range(-1, self.effort.turns):
            now = time.monotonic()
            if turn >= 1 and now + (now - began) / (turn + 1) > until:
                self._say(f"{what}: {turn} of {self.effort.turns} turns, since time is up")
                return
            self._say(f"{what}, turn {turn + 1} of {self.effort.turns}" if turn >= 0 else f"{what}: warming up")
            yield turn


class _Runs:
    """Programs in the sessions that are open."""

    def __init__(self, collector: Collector, sessions: dict[str, Session], program: str, command: Sequence[str] | None) -> None:
        self._table, self._effort, self._cannot = collector.table, collector.effort, collector.cannot
        self.sessions, self._program, self._command = sessions, program, command
        # What starting any program crosses, which is none of the workload's: from the turn that warms up.
        self._starting: dict[str, Crossings] = {}
        self._costs: dict[tuple[str, str], float] = {}  # seconds of an operation, of the turn that warmed up

    def _words(self, workload: Workload, number: int) -> list[str]:
        if self._command is not None:
            return [self._program, "run", *self._command]
        return [self._program, f"n={number}", workload.name]

    def _number(self, workload: Workload, place: str, times: int = 1) -> int:
        """So many operations fill the time of a measurement."""
        cost = self._costs.get((workload.name, place))
        if cost is None:
            return workload.first
        return min(max(int(self._effort.sample * times / cost), workload.first), workload.most)

    def measure(self, turn: int, workload: Workload, place: str) -> None:
        session = self.sessions[place]
        try:
            if place not in self._starting and self._command is None:
                self._starting[place] = self._start(session)
            seconds, count, crossings = self._run(workload, place, session, self._number(workload, place))
            memory = session.usage().memory_bytes
        except HvctlError as error:
            self._cannot((workload,), place, error)
            return
        measured = self._table.of(workload.name, place)
        if turn < 0 and seconds:
            self._costs[workload.name, place] = seconds
        if turn < 0 or not seconds:  # a clock that stood still, as it may in a guest when it finds a better one
            return
        measured.seconds[turn] = seconds
        measured.memory_bytes = max(measured.memory_bytes, memory)
        if crossings is not None:
            measured.crossings.append(crossings)
            measured.operations += count

    def count(self, workloads: Sequence[Workload], place: str, session: Session) -> None:
        """The crossings alone. Raises HvctlError."""
        self._starting[place] = self._start(session)
        for workload in workloads:
            _, count, crossings = self._run(workload, place, session, self._number(workload, place, COUNTED_TIMES))
            if crossings is not None:
                measured = self._table.of(workload.name, place)
                measured.crossings.append(crossings)
                measured.operations += count

    def _start(self, session: Session) -> Crossings:
        before = session.usage().crossings
        session.run([self._program, "n=1000", "nothing"])
        after = session.usage().crossings
        return _less(after, before) if before is not None and after is not None else {}

    def _run(self, workload: Workload, place: str, session: Session, number: int) -> tuple[float, int, Crossings | None]:
        """Seconds of an operation, how many were made, what all of them crossed."""
        before = session.usage().crossings
        found = cost(session.run(self._words(workload, number)), workload.name)
        after = session.usage().crossings
        if before is None or after is None:
            return found.seconds, found.operations, None
        return found.seconds, found.operations, _less(_less(after, before), self._starting.get(place, {}))


def _less(after: Crossings, before: Crossings) -> Crossings:
    return {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}
