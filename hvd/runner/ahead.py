"""A machine that is made before its guest is known: a spare runner (hvd.runner.spare) makes one like the last that was started, with so much memory,
its kernel, initrd and command line in there and no disks and cards, since making devices takes longer than telling them whose they are. It is one
guest's from then on, or nobody's: a guest that needs another one gets it made at once, and one with another kernel or command line gets the memory
cleared."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from hvd.board import cpuid
from hvd.board.loaders.ahead import Preloaded, preload
from hvd.board.machine import CreateVcpu, Machine
from hvd.board.memory import check_size
from hvd.board.spec import MachineSpec
from hvd.board.vcpu import Vcpu
from hvd.errors import HvdError
from hvd.jail import landlock, namespaces
from hvd.jail.enter import CALLS
from hvd.runner.inheritance import ABOVE
from hvd.runner.likeness import Likeness
from hvd.runner.runner import Ram, Runner

_DESCRIPTORS: Final = "/proc/self/fd"


class _Made(NamedTuple):
    runner: Runner
    spec: MachineSpec
    descriptors: frozenset[int]
    engine: str  # of its vcpu
    there: Preloaded | None  # in its memory


_made: _Made | None = None


def make(backend: str, likeness: Likeness, create_vcpu: CreateVcpu) -> None:
    """None is made where the host has not so much memory now. Raises HvdError, OSError."""
    global _made
    spec = likeness.spec(backend)
    bare = _bare(spec)
    with contextlib.suppress(HvdError):
        check_size(spec.memory_bytes)
        with _low_numbers_taken():
            before = open_descriptors()
            runner = Runner(bare, create_vcpu, Ram.of(bare), files=False)
            there = preload(runner.machine.memory, spec)
            runner.machine.vcpu_ahead = _make_vcpu(runner.machine, spec.engine, create_vcpu)
            _made = _Made(runner, bare, frozenset(open_descriptors() - before), spec.engine, there)
        gc.freeze()


def take(spec: MachineSpec) -> tuple[Runner | None, Ram]:
    """A runner that is not yet whole; None: there is none, or it is not such a machine. And the memory, which this guest's kernel is on its way to.
    Raises HvdError MEMORY_*; OSError."""
    if _made is None:
        return None, Ram.of(spec)
    machine = _made.runner.machine
    fits = _bare(spec) == _made.spec
    if machine.vcpu_ahead is not None and not (fits and spec.engine == _made.engine):
        machine.vcpu_ahead.close()
        machine.vcpu_ahead = None
    if not fits:
        if _made.there is not None:
            _made.runner.machine.memory.clear_all()
        return None, Ram.of(spec)
    check_size(spec.memory_bytes)  # it has been a while
    return _made.runner, Ram.of(spec, _made.runner.machine.memory, _made.there)


def _make_vcpu(machine: Machine, engine: str, create_vcpu: CreateVcpu) -> Vcpu | None:
    """For a machine that will have a jail whose namespaces there are already: its vcpu goes in there by itself. None: it is made when its guest is
    known. Raises HvdError, OSError."""
    create = getattr(sys.modules[create_vcpu.__module__], "create_ahead", None)
    if create is None or not all(each.descriptor >= 0 for each in namespaces.ALL):
        return None
    landlock.close_signals()
    vcpu: Vcpu | None = create(board=machine.board, memory=machine.memory, cpuid=cpuid.leaves, engine=engine)
    return vcpu


def settle(machine: Machine, user: int | None) -> bool:
    """Tell the machine's vcpu whose it is, just before the jail. False: it has none, or that has ended; it is made in the jail."""
    if (vcpu := machine.vcpu_ahead) is None:
        return False
    try:
        if user is not None:
            vcpu.settle(user, CALLS, namespaces.NETWORK.descriptor, namespaces.MOUNTS.descriptor)
            return True
    except OSError:
        pass  # whoever makes the next one is told when that does not work either
    vcpu.close()
    machine.vcpu_ahead = None
    return False


def descriptors() -> frozenset[int]:
    """Of the machine, none of them below ABOVE. Of one that is not taken they stay open, too: nothing is behind them."""
    return frozenset() if _made is None else _made.descriptors


def open_descriptors() -> set[int]:
    return {number for number in map(int, os.listdir(_DESCRIPTORS)) if os.path.exists(f"{_DESCRIPTORS}/{number}")}


def _bare(spec: MachineSpec) -> MachineSpec:
    """What the machine is made of; the rest is told by Runner.begin()."""
    return replace(
        spec, name="", engine="", kernel="", initrd="", command_line="", flat_load_address=0, restart_on_reset=False, start_paused=False,
        log_max_bytes=0, log_files=0, uid="", symbols="", snapshot="",
    )  # fmt: skip


@contextlib.contextmanager
def _low_numbers_taken() -> Iterator[None]:
    """A runner puts what it inherits there (hvd.runner.inheritance)."""
    with contextlib.ExitStack() as taken:
        while (number := os.dup(0)) < ABOVE:
            taken.callback(os.close, number)
        os.close(number)
        yield
