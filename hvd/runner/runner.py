"""The process that owns one virtual machine: a thread for the vcpu, and the main thread, which serves everybody else.

The main thread never waits for the vcpu thread, and the vcpu thread waits for the main thread only where the guest
produces output faster than it can be taken away. Nothing here imports protobuf: hvd.runner.control does, when the
first connection comes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hvd.board import firmware
from hvd.board.end import End, failure
from hvd.board.hot import HotBoard
from hvd.board.loaders.ahead import LoadAhead, Preloaded, is_worth_it, loads_kernel
from hvd.board.machine import CreateVcpu, Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError
from hvd.runner import last_screen
from hvd.runner.attach import AttachServer
from hvd.runner.directory import ATTACH, CONTROL, COUNTERS, DEBUG, LOG, TRACE, TRACE_RECORDS, ExitRecord, LogPosition
from hvd.runner.log import ConsoleLog
from hvd.runner.watch import Watches
from hvd.trace.points import BackendId

if TYPE_CHECKING:
    from hvd.runner.census import CensusWatch
    from hvd.runner.control import ControlServer
    from hvd.runner.debug import DebugServer

# Typed input that waits for the guest; beyond it the viewers wait.
INPUT_BYTES = 64 << 10
INPUT_RETRY_SECONDS = (0.01, 0.25)
# Turns of 64 KiB that a guest's console gets before the others are served.
CONSOLE_TURNS = 8
CONSOLE_LARGE = 16 << 10
# From one look at the console to the next, at least; and where little comes from a guest that goes on without waiting.
CONSOLE_PAUSE_SECONDS = 0.002
CONSOLE_TRICKLE_SECONDS = 0.01
CONSOLE_TRICKLE = 1 << 10
# How long a killed vcpu may take to notice, and viewers to read what is left.
KILL_SECONDS = 2.0
FAREWELL_SECONDS = 0.5
# Hypercall logs that wait for the main thread; with more the guest waits.
LOG_MESSAGES = 64


# eventfd(3), without giving the interpreter's lock up: os.eventfd_write() does, and then whoever is woken has it.
_eventfd_write = ctypes.PyDLL(None).eventfd_write
_eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)


class Ram(NamedTuple):
    """Of a machine to come."""

    memory: GuestMemory
    ahead: LoadAhead | None  # its kernel on its way there

    @classmethod
    def of(cls, spec: MachineSpec, memory: GuestMemory | None = None, there: Preloaded | None = None) -> Ram:
        """memory: of a machine that was made ahead; there: what is in it (hvd.board.loaders.ahead). Raises HvdError MEMORY_*; OSError."""
        memory = memory or GuestMemory(spec.memory_bytes, firmware.read_bios() if spec.boot != "kernel" else b"")
        if there is not None and not loads_kernel(spec):
            memory.clear_all()
            there = None
        return cls(memory, LoadAhead(memory, spec, there) if there is not None or is_worth_it(spec) else None)


class Ready(Protocol):
    """Called once: with the machine's state when its guest runs or is paused at its beginning, or with what went wrong."""

    def __call__(self, error: HvdError | None, state: str = "") -> None: ...


class Runner:
    """One machine and its sockets. Relative to the current directory, which is the guest's."""

    def __init__(self, spec: MachineSpec, create_vcpu: CreateVcpu, ram: Ram, *, files: bool = True) -> None:
        """begin() tells whose it is. files: its directory is the present one already. Raises HvdError NATIVE_MISSING; OSError when the files of the
        directory cannot be made."""
        self._ready: Ready | None = None
        self._selector = selectors.DefaultSelector()
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_event = self._event(self._run_posted)
        self._console_event = self._event(self._console_woken)
        self._console_busy = False
        self._console_looked = 0.0  # time.monotonic()
        self._messages = threading.Semaphore(LOG_MESSAGES)
        self._input = bytearray()
        self._input_delay = INPUT_RETRY_SECONDS[0]
        self._deadlines: dict[Callable[[], None], float] = {}
        self._ended: SimpleQueue[End] = SimpleQueue()
        self._finishing = self._done = False
        self._attach: AttachServer | None = None  # and the other sockets, once the machine runs
        self._control: ControlServer | None = None
        self._debug: DebugServer | None = None
        self._census: CensusWatch | None = None
        self._process = -1  # Vcpu.process, once it is watched
        self._log_failing = False
        self._board = board = HotBoard(BackendId.of(spec.backend), out_event=self._console_event)
        if files:
            self._share()
        self._watches = Watches(lambda function, done: self.machine.call(function, done))
        self._selector.register(self._watches, selectors.EVENT_READ, lambda events: self._watches.serve())
        self.machine = Machine(
            spec,
            board,
            ram.memory,
            create_vcpu,
            on_change=lambda: self.post(self._changed),
            on_log=self._guest_logs,
            watcher=self._watches,
        )
        self.machine.before_close = self._last_look

    def begin(self, spec: MachineSpec, record: ExitRecord, ready: Ready, ahead: LoadAhead | None) -> None:
        """Of that guest, in its directory. ahead: its kernel on its way into memory. Raises OSError."""
        self._record, self._ready = record, ready
        self._log = ConsoleLog(LOG, spec.log_max_bytes, spec.log_files)
        if not self._board.is_shared:
            self._share()
        self.machine.begin(spec, ahead)

    def _share(self) -> None:
        self._board.share(Path(COUNTERS), Path(TRACE), TRACE_RECORDS)

    def _event(self, handler: Callable[[], None]) -> int:
        """An eventfd whose writing runs a function of the main thread."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        def ready(events: int) -> None:
            os.eventfd_read(fd)
            handler()

        self._selector.register(fd, selectors.EVENT_READ, ready)
        return fd

    # ---- any thread

    def post(self, function: Callable[[], None]) -> None:
        """Run a function in the main thread, soon: when the caller waits for something, not at once, or a guest would begin only when the main thread
        has told everybody that it runs."""
        self._posted.append(function)
        _eventfd_write(self._wake_event, 1)

    def _guest_logs(self, text: bytes) -> None:
        """In the vcpu thread, which waits when it logs faster than the main thread writes."""
        self._messages.acquire()

        def write() -> None:
            self._messages.release()
            self._log.message(text)
            self._check_log()

        self.post(write)

    def _last_look(self) -> None:
        """In the vcpu thread."""
        if self.machine.neglected and (end := self.machine.end) is not None:
            self.machine.end = dataclasses.replace(end, metadata=end.metadata | {"neglected": self.machine.neglected})
        if self.machine.vcpu.executed_code() is not None:
            from hvd.runner.census import last_look

            last_look(self.machine)
        elif self.machine.vcpu.rewrites:
            from hvd.runner import rewritten

            rewritten.last_look(self.machine)

    # ---- main thread

    def run(self) -> None:
        """To the machine's end and the writing of its record. Raises OSError when the sockets cannot be made."""
        self._drain_console()
        # From here on it has the interpreter to itself until the guest runs: two threads that both have much to do take the lock from each other
        # every few milliseconds.
        self._thread = threading.Thread(target=self._run_machine, name="vcpu", daemon=True)
        self._thread.start()
        while not self._done:
            self._turn()

    def _listen(self) -> None:
        """Nobody asks before the ready pipe has said that the guest runs; a cell that begins takes longer than this. Raises OSError."""
        self._attach = AttachServer(
            self._selector, _listener(ATTACH, socket.SOCK_SEQPACKET), self._type, self._log_position
        )
        control = _listener(CONTROL, socket.SOCK_STREAM)
        control.setblocking(False)
        self._selector.register(control, selectors.EVENT_READ, lambda events: self._accept_control(control))
        debug = _listener(DEBUG, socket.SOCK_STREAM)
        debug.setblocking(False)
        self._selector.register(debug, selectors.EVENT_READ, lambda events: self._accept_debugger(debug))

    def _run_machine(self) -> None:
        try:
            end = self.machine.run()
        except Exception as error:  # noqa: BLE001  a bug, or a host that has nothing left: the guest ends, and it is said why
            sys.excepthook(type(error), error, error.__traceback__)
            end = failure("EXECUTION_ERROR", f"the runner cannot go on: {error!r}")
        self._ended.put(end)
        self.post(self._machine_ended)

    def _turn(self) -> None:
        """Wait for the next events and serve them."""
        for key, events in self._selector.select(self._timeout()):
            # An earlier event of this turn may have closed it.
            if self._selector.get_map().get(key.fd) is key:
                key.data(events)
        if self._console_busy:
            self._drain_console()
        now = time.monotonic()
        for function in [function for function, deadline in self._deadlines.items() if deadline <= now]:
            # One that ran before may have settled this one's business.
            if self._deadlines.pop(function, None) is not None:
                function()

    def _timeout(self) -> float | None:
        if self._console_busy or self._posted:
            return 0
        if not self._deadlines:
            return None
        return max(0.0, min(self._deadlines.values()) - time.monotonic())

    def _run_posted(self) -> None:
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def kill(self) -> None:
        """End the guest; the runner goes on until its record is written."""
        self.machine.call(self.machine.kill, lambda result, error: None)
        self._deadlines.setdefault(self._force_end, time.monotonic() + KILL_SECONDS)

    def _force_end(self) -> None:
        """The vcpu does not listen: the record is written without it, and the process takes its thread along."""
        if not self._finishing:
            self._finish(End("KILLED", "killed; the vcpu did not stop by itself"))

    # ---- state

    def _changed(self) -> None:
        machine = self.machine
        if machine.state != "STARTING" and self._attach is None:
            self._listen()
        if machine.state != "STARTING" and machine.end is None:
            self._watch_process()
        if self._ready is not None and machine.state != "STARTING":
            ready, self._ready = self._ready, None
            ready(None, machine.state)
        if machine.state == "PAUSED":  # whoever hears of that finds what was written before
            self._take_console()
        if machine.state == "RUNNING":
            self._watches.wake()
            if self._census is None and machine.vcpu.executed_code() is not None:
                from hvd.runner.census import CensusWatch  # most ways of executing miss no instruction

                self._census = CensusWatch(machine, self.post, self._changed)
                self._look_at_code()
        if self._control is not None:
            self._control.status_changed()

    def _watch_process(self) -> None:
        """Of the guest's cell: while the guest is paused, nobody else would notice its end."""
        found = self.machine.vcpu.process
        if self._process < 0 <= found:
            self._process = found

            def ended(events: int) -> None:
                self._selector.unregister(self._process)
                self.machine.call(self.machine.process_ended, lambda result, error: None)

            self._selector.register(self._process, selectors.EVENT_READ, ended)

    def _look_at_code(self) -> None:
        if self._census is not None and self.machine.end is None and (delay := self._census.look()) is not None:
            self._deadlines[self._look_at_code] = time.monotonic() + delay

    def _machine_ended(self) -> None:
        if not self._finishing:
            self._finish(self._ended.get())

    def _finish(self, end: End) -> None:
        """Everything that the guest wrote goes to log and viewers; then the record; then the process ends."""
        self._finishing = True
        machine = self.machine
        if machine.end is None:
            machine.end = end
        self._take_console()
        self._run_posted()
        self._log.close()
        last_screen.keep(machine)
        if self._debug is not None:
            self._debug.ended(end)
        if self._control is not None:
            self._control.status_changed()
        until = time.monotonic() + FAREWELL_SECONDS
        while self._unread() and (left := until - time.monotonic()) > 0:
            for key, events in self._selector.select(left):
                if (
                    key.fd not in (self._wake_event, self._console_event)
                    and self._selector.get_map().get(key.fd) is key
                ):
                    key.data(events & selectors.EVENT_WRITE)
        if self._log.error:
            print(self._log.error, file=sys.stderr)
        self._record.write(end.reason, end.message, end.exit_code, end.metadata)
        if self._ready is not None:
            error = machine.start_error or HvdError("RUNNER_START_FAILED", problem=end.message, log="runner.log")
            self._ready(error)
            self._ready = None
        self._done = True

    def _unread(self) -> bool:
        servers = (self._attach, self._control, self._debug)
        return any(server is not None and server.waiting for server in servers)

    # ---- console

    def _console_woken(self) -> None:
        """The guest has written to a console that was empty and slept; or it waits after it has written, as behind a prompt: that is shown at
        once, unless the last look was a moment ago."""
        soon = self._console_looked + CONSOLE_PAUSE_SECONDS
        if self._drain_console in self._deadlines and time.monotonic() < soon:
            self._deadlines[self._drain_console] = soon
        else:
            self._drain_console()

    def _drain_console(self) -> None:
        """Take what the guest wrote. While it writes it is looked at now and then, so that a kernel that prints byte by byte does not cost a turn
        for each: every turn takes time from a vcpu that needs the interpreter, too. Only when it pauses is the wake-up asked for."""
        self._console_busy = False
        self._deadlines.pop(self._drain_console, None)
        for _ in range(CONSOLE_TURNS):
            data = self._board.console_take()
            if data:
                self.machine.console_drained()
                self._log.console(data)
                self._show(data)
                if len(data) < CONSOLE_LARGE:
                    pause = CONSOLE_TRICKLE_SECONDS if len(data) < CONSOLE_TRICKLE else CONSOLE_PAUSE_SECONDS
                    self._console_looked = time.monotonic()
                    self._deadlines[self._drain_console] = self._console_looked + pause
                    self._board.console_doze()
                    break
            elif self._board.console_sleep():
                break
        else:
            self._console_busy = True
        self._check_log()

    def _take_console(self) -> None:
        """Of a guest that stands still: all that it wrote."""
        # More than this does not fit in. (A vcpu that did not stop may go on writing.)
        for _ in range(CONSOLE_TURNS):
            data = self._board.console_take()
            if not data:
                break
            self.machine.console_drained()
            self._log.console(data)
            self._show(data)
        self._flush_log()

    def _show(self, data: bytes) -> None:
        if self._attach is not None:
            self._attach.output(data)

    def _check_log(self) -> None:
        if self._log.deadline is None:
            self._deadlines.pop(self._flush_log, None)
        else:
            self._deadlines[self._flush_log] = self._log.deadline
        failing = bool(self._log.error)
        if failing != self._log_failing:
            self._log_failing = failing
            self._changed()

    def _flush_log(self) -> None:
        self._log.flush()
        self._check_log()

    def _log_position(self) -> LogPosition:
        position = self._log.position()
        self._check_log()
        return position

    def _type(self, data: bytes) -> None:
        self._input += data
        self._input_delay = INPUT_RETRY_SECONDS[0]
        self._pass_input()

    def _pass_input(self) -> None:
        """As much of what was typed as the guest has room for. Nothing tells when it has read: ask again, more and
        more rarely."""
        taken = self._board.console_put(bytes(self._input))
        if taken:
            del self._input[:taken]
            self._input_delay = INPUT_RETRY_SECONDS[0]
            self.machine.kick()
        if self._attach is not None:
            self._attach.accept_input(len(self._input) < INPUT_BYTES)
        if self._input:
            self._deadlines[self._pass_input] = time.monotonic() + self._input_delay
            self._input_delay = min(self._input_delay * 2, INPUT_RETRY_SECONDS[1])
        else:
            self._deadlines.pop(self._pass_input, None)

    # ---- control

    def _accept_control(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # it has gone again, or there are no descriptors left
            return
        if self._control is None:
            from hvd.runner.control import ControlServer  # protobuf: see above

            self._control = ControlServer(
                self._selector,
                self.machine,
                self.post,
                lambda: self._log.error,
                lambda: self.post(self.kill),
                lambda: self._census.count if self._census is not None else 0,
            )
        self._control.accept(sock)

    # ---- debugger

    def _accept_debugger(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if self._debug is None:
            from hvd.runner.debug import DebugServer  # most guests never see a debugger

            self._debug = DebugServer(self._selector, self.machine, self.post, self.kill)
        self._debug.accept(sock)


def _listener(name: str, kind: socket.SocketKind) -> socket.socket:
    """A socket in the current directory, whose path may be longer than a socket's name can be."""
    listener = socket.socket(socket.AF_UNIX, kind)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
    listener.bind(name)
    listener.listen(128)
    return listener
