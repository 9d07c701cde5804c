"""A machine that is made before its guest is known: a spare runner (hvd.runner.spare) makes one like the last that was started, with so much memory
and no disks and cards, since making devices takes longer than telling them whose they are. It is one guest's from then on, or nobody's: a guest that
needs another one gets it made at once."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from hvd.board.machine import CreateVcpu
from hvd.board.memory import check_size
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError
from hvd.runner.inheritance import ABOVE
from hvd.runner.runner import Ram, Runner

_DESCRIPTORS: Final = "/proc/self/fd"


class _Made(NamedTuple):
    runner: Runner
    spec: MachineSpec
    descriptors: frozenset[int]


_made: _Made | None = None


def make(backend: str, memory_bytes: int, create_vcpu: CreateVcpu) -> None:
    """None is made where the host has not so much memory now. Raises HvdError, OSError."""
    global _made
    spec = _bare(MachineSpec("", backend, "", memory_bytes, ""))
    with contextlib.suppress(HvdError):
        check_size(memory_bytes)
        with _low_numbers_taken():
            before = open_descriptors()
            runner = Runner(spec, create_vcpu, Ram.of(spec), files=False)
            _made = _Made(runner, spec, frozenset(open_descriptors() - before))
        gc.freeze()


def take(spec: MachineSpec) -> Runner | None:
    """None: there is none, or it is not such a machine. Raises HvdError MEMORY_TOO_LARGE."""
    if _made is None or _bare(spec) != _made.spec:
        return None
    check_size(spec.memory_bytes)  # it has been a while
    return _made.runner


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
