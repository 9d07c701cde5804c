"""Loading a kernel in a thread of its own, while the vcpu is made."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from hvd.board.loaders import load
from hvd.board.loaders.kernel import Loaded
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec

LEAST_BYTES: Final = 1 << 20


def load_kernel(memory: GuestMemory, spec: MachineSpec) -> Loaded:
    """The machine's kernel and initrd. Raises what load() raises."""
    return load(memory, Path(spec.kernel), Path(spec.initrd) if spec.initrd else None, spec.command_line, spec.flat_load_address)


def is_worth_it(spec: MachineSpec) -> bool:
    """Is there anything to load that takes longer than a thread does?"""
    if spec.boot != "kernel" or spec.snapshot:
        return False
    try:
        return sum(os.stat(path).st_size for path in (spec.kernel, spec.initrd) if path) >= LEAST_BYTES
    except OSError:  # told by whoever loads it
        return False


class LoadAhead:
    """It begins at once. Nearly all of it is copying by the host's kernel, which nobody else here waits for."""

    def __init__(self, memory: GuestMemory, spec: MachineSpec) -> None:
        self._outcome: Loaded | Exception | None = None
        self._thread = threading.Thread(target=self._load, args=(memory, spec), name="loader", daemon=True)
        self._thread.start()

    def _load(self, memory: GuestMemory, spec: MachineSpec) -> None:
        try:
            self._outcome = load_kernel(memory, spec)
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self._outcome = error

    def loaded(self) -> Loaded:
        """When it is done. Raises what load() raises."""
        self._thread.join()
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome
