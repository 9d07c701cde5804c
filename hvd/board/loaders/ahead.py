"""Loading a kernel before anybody waits for it: in a thread of its own, while the vcpu is made; or, but for what is this guest's own, when its guest
is not known yet, since who starts a guest often starts another with the same kernel."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

from hvd.board.loaders import Copies, Loaded, begin
from hvd.board.loaders.image import Piece
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError

LEAST_BYTES: Final = 1 << 20
# Of what is loaded when it is not known whether it will be needed.
MOST_BYTES: Final = 32 << 20
# A file that was changed since may be changed once more without that being seen: the kernel's clock for that ticks a hundred times a second.
SETTLED_SECONDS: Final = 1.0


def load_kernel(memory: GuestMemory, spec: MachineSpec) -> Loaded:
    """The machine's kernel and initrd. Raises what hvd.board.loaders.load() raises."""
    with Copies() as copies:
        loaded = _begin(copies, memory, spec)
        copies.run()
        return loaded


def _begin(copies: Copies, memory: GuestMemory, spec: MachineSpec) -> Loaded:
    return begin(copies, memory, Path(spec.kernel), Path(spec.initrd) if spec.initrd else None, spec.command_line, spec.flat_load_address)


def is_worth_it(spec: MachineSpec) -> bool:
    """Is there anything to load that takes longer than a thread does?"""
    return loads_kernel(spec) and _bytes(spec) >= LEAST_BYTES


def loads_kernel(spec: MachineSpec) -> bool:
    """Or else a firmware, or what a snapshot has, is in its memory."""
    return spec.boot == "kernel" and not spec.snapshot


def _bytes(spec: MachineSpec) -> int:
    try:
        return sum(os.stat(path).st_size for path in (spec.kernel, spec.initrd) if path)
    except OSError:  # told by whoever loads it
        return 0


def preload(memory: GuestMemory, spec: MachineSpec) -> frozenset[Piece]:
    """Of a kernel and initrd that are worth it, what will be the same for every guest that has them, into memory that is zero; nothing else is in it
    then. Nothing is loaded where that fails: whoever needs it is told why."""
    if not (is_worth_it(spec) and _bytes(spec) <= MOST_BYTES):
        return frozenset()
    pieces: frozenset[Piece] = frozenset()
    with contextlib.suppress(HvdError, OSError), Copies() as copies:
        _begin(copies, memory, spec)
        memory.clear_all()  # the rest is each guest's own
        before = copies.pieces()
        copies.run()
        settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
        if copies.pieces() == before and all(max(piece.changed_ns, piece.modified_ns) < settled for piece in before):
            pieces = before
    if not pieces:
        memory.clear_all()
    return pieces


class LoadAhead:
    """The thread does nothing but copying, nearly all of it in the host's kernel: two threads that both have many small things to do would wait for
    the interpreter's lock all the time."""

    def __init__(self, memory: GuestMemory, spec: MachineSpec, there: frozenset[Piece] = frozenset()) -> None:
        """there: what preload() has put into the memory, for whatever guest; without, the memory is zero."""
        self._loaded: Loaded | None = None
        self._problem: Exception | None = None
        self._copies = Copies()
        self._thread: threading.Thread | None = None
        try:
            self._loaded = _begin(self._copies, memory, spec)
            if there and self._copies.pieces() == there:
                self._copies.drop()
            elif there:  # another kernel than this guest's
                memory.clear_all()
                self._copies.drop()
                self._loaded = _begin(self._copies, memory, spec)
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self._problem = error
        if self._problem is None and self._copies.waiting:
            self._thread = threading.Thread(target=self._copy, name="loader", daemon=True)
            self._thread.start()
        else:
            self._copies.close()

    def _copy(self) -> None:
        with self._copies:
            try:
                self._copies.run()
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                self._problem = error

    def loaded(self) -> Loaded:
        """When it is done. Raises what hvd.board.loaders.load() raises."""
        if self._thread is not None:
            self._thread.join()
        if self._problem is not None:
            raise self._problem
        assert self._loaded is not None
        return self._loaded
