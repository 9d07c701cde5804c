"""Loading a kernel before anybody waits for it: in a thread of its own, while the vcpu is made; or when its guest is not known yet, since who starts
a guest often starts another with the same kernel."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from hvd.board.loaders import Copies, Loaded, begin
from hvd.board.loaders.soon import soon_taken
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


class Preloaded(NamedTuple):
    """A kernel and initrd that were loaded when it was not known whose they would be."""

    kernel: str
    initrd: str
    command_line: str
    flat_load_address: int
    versions: tuple[_Version, ...]  # of both
    loaded: Loaded

    def is_of(self, spec: MachineSpec) -> bool:
        """Is that what this guest needs?"""
        if self[:4] != (spec.kernel, spec.initrd, spec.command_line, spec.flat_load_address):
            return False
        try:
            return self.versions == _versions(spec)
        except OSError:  # told by whoever loads it
            return False


class _Version(NamedTuple):
    """A file that has other contents has another one."""

    device: int
    inode: int
    size: int
    changed_ns: int
    modified_ns: int


def _versions(spec: MachineSpec) -> tuple[_Version, ...]:
    found = (os.stat(path) for path in (spec.kernel, spec.initrd) if path)
    return tuple(_Version(about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns, about.st_mtime_ns) for about in found)


def preload(memory: GuestMemory, spec: MachineSpec) -> Preloaded | None:
    """A kernel and initrd that are worth it, into memory that is zero, and the host's pages for what it takes first. None: it is zero still. What
    keeps them from being loaded is told to whoever needs them."""
    if not (is_worth_it(spec) and _bytes(spec) <= MOST_BYTES):
        return None
    with contextlib.suppress(HvdError, OSError):
        versions = _versions(spec)
        loaded = load_kernel(memory, spec)
        settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
        if _versions(spec) == versions and all(max(file.changed_ns, file.modified_ns) < settled for file in versions):
            for address, length in soon_taken(memory, loaded, bool(spec.initrd)):
                memory.take(address, length)
            return Preloaded(spec.kernel, spec.initrd, spec.command_line, spec.flat_load_address, versions, loaded)
    memory.clear_all()
    return None


class LoadAhead:
    """The thread does nothing but copying, nearly all of it in the host's kernel: two threads that both have many small things to do would wait for
    the interpreter's lock all the time."""

    def __init__(self, memory: GuestMemory, spec: MachineSpec, there: Preloaded | None = None) -> None:
        """there: what the memory has; without, it is zero."""
        self._loaded: Loaded | None = None
        self._problem: Exception | None = None
        self._copies = Copies()
        self._thread: threading.Thread | None = None
        try:
            if there is not None and there.is_of(spec):
                self._loaded = there.loaded
                return
            if there is not None:
                memory.clear_all()
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
