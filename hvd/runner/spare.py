"""A spare: a runner that the template has forked ahead and that waits for a guest, so that a start waits neither for the fork nor for what every
runner does alike: unsharing the pages of its first turns from the template. Of its jail there are the PID namespace, and an empty network and a root
without a guest's directories, into which it does not go yet: the kernel is read, and the programs of user-mode networks are started, outside.

It takes one start and is that guest's runner from then on. Until then it has no guest, no thread and nothing of a guest's; it ends when its template
does. A template keeps as many as the daemon's settings say, of themselves more than one, since who starts one guest often starts another. They are
made when nothing has been asked of the template for a moment: many starts at once do without.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from hvd.board import cpuid
from hvd.board.loaders.ahead import LoadAhead
from hvd.board.loaders.kernel import Loaded
from hvd.board.machine import CreateVcpu, Machine
from hvd.board.spec import MachineSpec
from hvd.jail import root
from hvd.jail.enter import libraries
from hvd.jail.namespaces import MOUNTS, NETWORK
from hvd.jail.pids import children, is_stopped, own_pids
from hvd.runner.ahead import open_descriptors
from hvd.runner.directory import MACHINE, PID, ExitRecord, own_pid, process_identity, read_json, write_json
from hvd.runner.inheritance import ABOVE, MOST_DESCRIPTORS
from hvd.runner.likeness import Likeness
from hvd.runner.runner import Ram, Runner

# After the last request to the template.
IDLE_SECONDS: Final = 0.3
PACKET_BYTES: Final = 8192
# Of a rehearsal.
MEMORY_BYTES: Final = 4 << 20
LOAD_ADDRESS: Final = 1 << 20
KERNEL: Final = "kernel"
_HALT: Final = b"\xfa\xf4"  # cli; hlt
_READY: Final = b"ready"

# linux/mount.h: a file system in memory that is mounted nowhere (fsopen(2), fsmount(2)).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CREATE = 1, 6


class Part(NamedTuple):
    """What the template has it do."""

    rehearse: Callable[[], None]
    introduce: Callable[[], None]  # once it is ready
    become: Callable[[str, Sequence[int]], NoReturn]  # the runner of this directory with these descriptors, the first of which is its log
    closed: Sequence[int]  # descriptors of the template's own


class Spare:
    """The template's side."""

    def __init__(self, own: bool, likeness: Likeness, part: Part) -> None:
        """own: in a PID namespace of its own; likeness: of the machine that it makes. Raises OSError."""
        self.own = own
        self.likeness = likeness
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with own_pids(own), theirs:
                self._pid = os.fork()
                if self._pid == 0:
                    _wait(theirs, self._connection.detach(), own, part)
        except BaseException:
            self._connection.close()
            raise

    def fileno(self) -> int:
        """Readable once is_ready() knows."""
        return self._connection.fileno()

    def is_ready(self) -> bool | None:
        """None = not yet; False = it has ended. Once for each spare."""
        try:
            return self._connection.recv(PACKET_BYTES, socket.MSG_DONTWAIT) == _READY
        except BlockingIOError:
            return None
        except OSError:
            return False

    def start(self, directory: str, descriptors: Sequence[int]) -> int | None:
        """The pid of one that is ready: it is that directory's runner now. None: it has ended, or somebody has stopped it or its cell; it is no
        more."""
        if any(map(is_stopped, (self._pid, *children(self._pid)))):
            self.end()
            return None
        try:
            socket.send_fds(self._connection, [directory.encode()], descriptors, socket.MSG_NOSIGNAL)
        except OSError:
            self.end()
            return None
        self._connection.close()
        return self._pid

    def end(self) -> None:
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _wait(connection: socket.socket, other_end: int, own: bool, part: Part) -> NoReturn:
    """In the new process."""
    code = 1
    try:
        for descriptor in (*part.closed, other_end):
            os.close(descriptor)
        with contextlib.suppress(PermissionError):  # it leads a group already
            os.setsid()  # a session of its own, before it has a child
        NETWORK.make(ABOVE)
        if own:
            MOUNTS.make(ABOVE, lambda: root.furnish(libraries()))
        part.rehearse()
        connection.send(_READY)
        part.introduce()
        data, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES, 2 + MOST_DESCRIPTORS)
        if data:
            connection.detach()  # the runner closes what is not its own
            part.become(os.fsdecode(data), descriptors)
        code = 0  # the template has ended, or does without
    finally:
        os._exit(code)


def rehearse(backend: str, create_vcpu: CreateVcpu) -> None:
    """Do what a start does up to the jail, in a directory that nobody else has, and undo it. What that takes is mostly unsharing pages. Without the
    privileges for such a directory nothing is done. Raises AssertionError when something of it would be left."""
    directory = _nowhere()
    if directory < 0:
        return
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = open_descriptors()
    os.fchdir(directory)
    try:
        Path(KERNEL).write_bytes(_HALT)
        document = MachineSpec("spare", backend, "", MEMORY_BYTES, KERNEL, flat_load_address=LOAD_ADDRESS).document()
        write_json(MACHINE, json.loads(json.dumps(document)))
        spec = MachineSpec.of(read_json(MACHINE) or {})
        ram = Ram.of(spec)
        loaded = LoadAhead(ram.memory, spec).loaded()
        write_json(PID, process_identity(own_pid()))
        runner = Runner(spec, create_vcpu, ram)
        runner.begin(spec, ExitRecord("."), lambda error, state="": None, ram.ahead)
        del ram
        if getattr(sys.modules[create_vcpu.__module__], "REHEARSED", False):
            _rehearse_vcpu(runner.machine, create_vcpu, loaded)
        gone = weakref.ref(runner)
        del runner
        gc.collect()
        # An object that closed its descriptor later would close one of the guest's.
        assert gone() is None, "a rehearsal is not over"
        for descriptor in open_descriptors() - before:  # numbers that no object has
            os.close(descriptor)
    finally:
        os.fchdir(home)
        os.close(home)
        os.close(directory)
    gc.freeze()


def _rehearse_vcpu(machine: Machine, create_vcpu: CreateVcpu, loaded: Loaded) -> None:
    """Up to a kernel's first instruction. Raises HvdError where it does not run."""
    vcpu = create_vcpu(board=machine.board, memory=machine.memory, cpuid=cpuid.leaves, engine="")
    try:
        vcpu.enter(loaded.entry)
    finally:
        vcpu.close()


def _nowhere() -> int:
    """An empty directory, gone with its last descriptor; -1 = none can be made."""
    syscall: Any = ctypes.CDLL(None, use_errno=True).syscall
    context = syscall(_FSOPEN, b"tmpfs", _CLOEXEC)
    if context < 0:
        return -1
    try:
        if syscall(_FSCONFIG, context, _CREATE, None, None, 0) < 0:
            return -1
        return int(syscall(_FSMOUNT, context, _CLOEXEC, 0))
    finally:
        os.close(context)
