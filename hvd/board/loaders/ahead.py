"""Loading a kernel in a thread of its own, while the vcpu is made."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from hvd.board.loaders import Copies, Loaded, begin
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec

LEAST_BYTES: Final = 1 << 20


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
    if spec.boot != "kernel" or spec.snapshot:
        return False
    try:
        return sum(os.stat(path).st_size for path in (spec.kernel, spec.initrd) if path) >= LEAST_BYTES
    except OSError:  # told by whoever loads it
        return False


class LoadAhead:
    """The thread does nothing but copying, nearly all of it in the host's kernel: two threads that both have many small things to do would wait for
    the interpreter's lock all the time."""

    def __init__(self, memory: GuestMemory, spec: MachineSpec) -> None:
        self._loaded: Loaded | None = None
        self._problem: Exception | None = None
        self._copies = Copies()
        self._thread = threading.Thread(target=self._copy, name="loader", daemon=True)
        try:
            self._loaded = _begin(self._copies, memory, spec)
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self._problem = error
        self._thread.start()

    def _copy(self) -> None:
        with self._copies:
            try:
                if self._problem is None:
                    self._copies.run()
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                self._problem = error

    def loaded(self) -> Loaded:
        """When it is done. Raises what hvd.board.loaders.load() raises."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        assert self._loaded is not None
        return self._loaded
