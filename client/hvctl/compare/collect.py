"""Runs everything in turns (A B C A B C ..), so that whatever else the machine does hits all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from hvapi.v1 import system_pb2

from hvctl.compare import images
from hvctl.compare.budget import Budget, Effort
from hvctl.compare.kernels import KernelGuest, KernelNatively, KernelRun, KernelUnderQemu
from hvctl.compare.kinds import NO_KERNEL, WHY
from hvctl.compare.places import (
    Container,
    LinuxGuest,
    Native,
    Patience,
    Place,
    Qemu,
    Root,
    Session,
    backend_id,
    qemu_program,
)
from hvctl.compare.result import NATIVE, QEMU, Table
from hvctl.compare.runs import Runs
from hvctl.compare.workloads import COMMAND, KERNEL, KERNEL_NATIVE, KERNELS, NANO, PROGRAM, PROGRAMS, Workload
from hvctl.sdk import Client
from hvctl.sdk.errors import HvctlError

CONTAINER: Final = "container"  # the capability that tells programs from machines
# Shares of the time that are over when the guests have booted, and when the programs have run; the kernels have the rest.
BOOTED_SHARE, PROGRAMS_SHARE = 0.5, 0.72
COMMAND_SECONDS: Final = 300.0
# A run may take this share of the time, if it hangs.
RUN_SHARE: Final = 0.2


class Say(Protocol):
    def __call__(self, text: str, /) -> None: ...


class Collector:
    """backends: names of those to compare; empty = all. guests: where the guest programs are."""

    def __init__(self, client: Client, effort: Effort, guests: Path, scratch: Path, say: Say, backends: Sequence[str] = ()) -> None:
        self._client, self.effort, self._guests, self._scratch, self._say = client, effort, guests, scratch, say
        self.budget = Budget(effort.seconds)
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
        """What was measured before stays, if anything was."""
        text = f"{error.message}; {error.help}" if error.help and error.reason != "NOT_EXPLAINED" else error.message
        if any(self.table.of(workload.name, place).seconds for workload in workloads):
            self.budget.cuts.append(f"{', '.join(workload.name for workload in workloads)} in {place}: failed later ({text})")
            return
        if why := WHY.get(self.table.places[place]["kind"]):
            text = f"{text}; {why}"
        for workload in workloads:
            self.table.of(workload.name, place).reason = text

    def _limit(self) -> float:
        return self.budget.limit(RUN_SHARE * self.budget.seconds)

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
                if self.budget.left(BOOTED_SHARE) <= 0:
                    self.cannot(workloads, name, HvctlError.local("NOT_EXPLAINED", problem="there was no time left to start it"))
                    continue
                patience = Patience(self.budget.limit(self.effort.boot, BOOTED_SHARE), self.effort.doubtful_boot)
                try:
                    sessions[name] = stack.enter_context(place.opened(patience))
                except HvctlError as error:
                    self.cannot(workloads, name, error)
            # A command of the user's takes what it takes.
            limit = self._limit if command is None else lambda: COMMAND_SECONDS
            runs = Runs(self.table, self.cannot, limit, sessions, root.program, command)
            self._say("programs: warming up")
            began = time.monotonic()
            self._turn(runs, workloads, -1)
            measurements = len(workloads) * len(sessions)
            if measurements:
                overhead = (time.monotonic() - began) / measurements
                runs.sample = self.budget.sample(self.effort, measurements, overhead, PROGRAMS_SHARE)
            self._count(workloads, root, runs)
            for turn in self.budget.turns(self.effort.turns, PROGRAMS_SHARE, "programs", self._say):
                self._turn(runs, workloads, turn)
            self.table.settle(workloads)

    def _turn(self, runs: Runs, workloads: Sequence[Workload], turn: int) -> None:
        for workload in workloads:
            for name in list(runs.sessions):
                if turn >= 0 and self.budget.left(PROGRAMS_SHARE) <= 0:
                    return
                runs.measure(turn, workload, name)

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
                with self.budget.stopped():
                    image = images.linux_image(self._client, name, self._say)
            except HvctlError as error:
                self.cannot(workloads, name, error)
                continue
            usual = usual or (image if name not in images.RECIPES else "")
            places[name] = LinuxGuest(self._client, backend, root, guest, image)
        try:
            with self.budget.stopped():
                usual = usual or images.linux_image(self._client, "", self._say)
            places[QEMU] = Qemu(qemu_program(), *images.linux_files(self._client, usual, self._scratch), root)
        except HvctlError as error:
            self.cannot(workloads, QEMU, error)
        return places

    def _count(self, workloads: Sequence[Workload], root: Root, runs: Runs) -> None:
        """Containers once more: what they cross is seen only by tracing, which costs time."""
        patience = Patience(self.effort.boot, self.effort.doubtful_boot)
        for name, backend in self._available():
            if CONTAINER in backend.capabilities and name in runs.sessions:
                self._say(f"counting what {name} crosses")
                try:
                    with Container(self._client, backend, root, f"{self._name}-counted", True).opened(patience) as session:
                        lost = runs.count(workloads, name, session)
                    if lost:
                        self._say(f"what {name} crosses is not told of {', '.join(each.name for each in lost)}: some of it was lost each time")
                except HvctlError as error:
                    self._say(f"the system calls of {name} are not counted: {error.message}")

    # --- the kernel ---

    def kernels(self) -> None:
        """NANO, wherever a kernel can run."""
        ways: dict[str, KernelGuest | KernelUnderQemu | KernelNatively] = {}
        for name, backend in self._available():
            if CONTAINER in backend.capabilities:
                self.cannot(NANO, name, HvctlError.local("NOT_EXPLAINED", problem=NO_KERNEL))
                continue
            try:
                kernel = images.guest_file(self._guests, *KERNELS.get(name, (KERNEL,)))
            except HvctlError as error:
                self.cannot(NANO, name, error)
                continue
            ways[name] = KernelGuest(self._client, backend, kernel, f"{self._name}-{name}")
        try:
            ways[QEMU] = KernelUnderQemu(qemu_program(), images.guest_file(self._guests, KERNEL))
        except HvctlError as error:
            self.cannot(NANO, QEMU, error)
        ways = {NATIVE: KernelNatively(images.guest_file(self._guests, KERNEL_NATIVE)), **ways}
        for workload in NANO:
            self.table.of(workload.name, NATIVE).reason = workload.not_natively
        for turn in self.budget.turns(self.effort.turns, 1.0, "the nanobenchmark", self._say):
            for name, way in list(ways.items()):
                if turn and self.budget.left() <= 0:
                    return
                try:
                    found = way.run(f"ms={self.effort.kernel_ms}", self._limit())
                except HvctlError as error:
                    if self.budget.left() <= 0:
                        error = HvctlError.local("NOT_EXPLAINED", problem=f"there was no time left for it ({error.message})")
                    self.cannot([workload for workload in NANO if not self.table.of(workload.name, name).reason], name, error)
                    del ways[name]
                    continue
                for workload in NANO:
                    self._note_kernel(turn, workload, name, found)

    def _note_kernel(self, turn: int, workload: Workload, place: str, found: KernelRun) -> None:
        measured = self.table.of(workload.name, place)
        measured.memory_bytes = max(measured.memory_bytes, found.memory_bytes)
        if workload.name in found.costs:
            measured.seconds[turn] = found.costs[workload.name].seconds
        elif not measured.seconds and not measured.reason:
            measured.reason = "the program did not report it here"
