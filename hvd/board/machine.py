"""One virtual machine: memory, devices, bus and vcpu put together, and the loop that runs it.

The thread that calls run() is the vcpu thread; everything here belongs to it except what says otherwise. Other
threads reach the machine through call(), whose function runs in the vcpu thread at the next point at which the vcpu's
state is whole.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from hvapi.record import FLAG_LONG

from hvd.board import cpuid, firmware
from hvd.board.block import close_disks, open_disks
from hvd.board.bus import Bus, floating
from hvd.board.devices import DEVICES
from hvd.board.end import End, failure
from hvd.board.hot import MMIO, HotBoard, PortResult
from hvd.board.loaders.ahead import LoadAhead, load_kernel
from hvd.board.memory import GuestMemory
from hvd.board.net.port import NobodyWatches, Watcher
from hvd.board.paging import AddressSpace
from hvd.board.spec import MachineSpec
from hvd.board.vcpu import Exit, ExitReason, Vcpu
from hvd.board.verbs import Holder, Verbs
from hvd.errors import HvdError
from hvd.trace.points import BY_NAME

# In bytes.
LONGEST_INSTRUCTION: Final = 15
PAGE: Final = 4096
CONSOLE_SECONDS: Final = 0.1

PORT_IN: Final = BY_NAME["port-in"].id
PORT_OUT: Final = BY_NAME["port-out"].id
MMIO_READ: Final = BY_NAME["mmio-read"].id
MMIO_WRITE: Final = BY_NAME["mmio-write"].id
HALT: Final = BY_NAME["halt"].id
TRIPLE_FAULT: Final = BY_NAME["triple-fault"].id
RESET: Final = BY_NAME["reset"].id


class CreateVcpu(Protocol):
    """`create` of the module hvd.backends.NAME.vcpu; called in the vcpu thread.

    cpuid is hvd.board.cpuid.leaves: call it with what the way of executing reports by itself and with the frequency
    of the TSC that the guest will see. Raises HvdError when it cannot run here (BACKEND_UNAVAILABLE, ENGINE_UNKNOWN).
    """

    def __call__(
        self, board: HotBoard, memory: GuestMemory, cpuid: Callable[..., dict[Any, Any]], engine: str
    ) -> Vcpu: ...


Done = Callable[[Any, HvdError | None], None]
D = TypeVar("D")


class Machine(Verbs):
    """Made in any thread; then run() in one, to the end."""

    def __init__(
        self,
        spec: MachineSpec,
        board: HotBoard,
        memory: GuestMemory,
        create_vcpu: CreateVcpu,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_log: Callable[[bytes], None] = lambda text: None,
        watcher: Watcher | None = None,
        ahead: LoadAhead | None = None,
    ) -> None:
        """on_change (the state changed) and on_log (the guest logged a text, at most 1 KiB) are called in the vcpu
        thread; on_log may block. watcher: who waits for descriptors of devices; None = nobody. ahead: its kernel on
        its way into memory."""
        self.board = board
        self.memory = memory
        self.watcher = watcher or NobodyWatches()
        self.console_size = (0, 0)  # rows, columns; 0 = nobody said
        self.vcpu: Vcpu = None  # type: ignore[assignment]  # made by run(): it belongs to the vcpu thread
        self.vcpu_ahead: Vcpu | None = None  # the one that run() takes instead of making it
        # STARTING, RUNNING, PAUSED, then that of the end. Any thread may read these four.
        self.state = "STARTING"
        self.end: End | None = None
        self.start_error: HvdError | None = None
        self.resets = 0
        self.debugger: Holder | None = None  # the one that is attached
        self.before_close: Callable[[], None] | None = None  # in the vcpu thread, when there is an end and the vcpu is still open

        self._create_vcpu = create_vcpu
        self._on_change = on_change
        self._on_log = on_log
        self.neglected = ""  # what the vcpu said of that; any thread
        self._exit = Exit(ExitReason.INTERRUPTED)
        self._record: tuple[int, int, int, int, int] | None = None
        self._reset_cause = ""
        self._calls: SimpleQueue[tuple[Callable[[], Any], Done]] = SimpleQueue()
        self._lock = threading.Lock()  # guards _open and the use of vcpu by other threads
        self._open = True
        self._ahead: LoadAhead | None = None
        self._console_drained = threading.Event()
        self._tell(spec, ahead)
        self.disks = open_disks(spec.disks, board)
        self._kick_listeners: list[Callable[[], None]] = []
        self.devices = [make(self) for make in DEVICES.values()]
        self.bus = Bus(self.devices, self._read_board_port, self._write_board_port)
        for device in self.devices:
            for ports in device.ports:
                board.claim(ports)
        for start, stop, name in self.bus.mmio_claims:
            memory.add_mmio(start, stop - start, name)
        for name, where in MMIO.items():
            memory.add_mmio(where.start, len(where), name, hot=True)

    def begin(self, spec: MachineSpec, ahead: LoadAhead | None) -> None:
        """Before run(), of a machine that was made when its guest was not known: spec has the same devices and memory as the one that it was made
        with."""
        self._tell(spec, ahead)
        for device in self.devices:
            if (begin := getattr(device, "begin", None)) is not None:
                begin()

    def _tell(self, spec: MachineSpec, ahead: LoadAhead | None) -> None:
        self.spec = spec
        self.start_wall_ns = time.time_ns()
        self._paused = spec.start_paused
        self._ahead = ahead

    def _read_board_port(self, port: int) -> int:
        result, value = self.board.port_in(port, 1)
        return value if result is PortResult.DONE else floating(1)

    def _write_board_port(self, port: int, value: int) -> None:
        self.board.port_out(port, 1, value)

    # ---- for devices and hypercalls

    @property
    def memory_bytes(self) -> int:
        """RAM of the guest."""
        return self.memory.size

    @property
    def in_long_mode(self) -> bool:
        """Was the vcpu in 64-bit mode at the present exit?"""
        return bool(self._exit.flags & FLAG_LONG)

    def clock_ns(self) -> int:
        """The guest's virtual clock."""
        return self.board.now()

    def set_irq(self, gsi: int, level: bool) -> None:
        """Assert or drop the line of a global system interrupt, 0-23 (HotBoard.set_irq)."""
        self.board.set_irq(gsi, level)

    def msi(self, address: int, data: int) -> None:
        """A message-signalled interrupt: a write of four bytes that a device makes."""
        self.board.msi(address, data)

    def on_kick(self, listener: Callable[[], None]) -> None:
        """Call it in the vcpu thread whenever another thread kicked the vcpu, e.g. because somebody typed."""
        self._kick_listeners.append(listener)

    def console_write(self, data: bytes) -> None:
        """Output for the guest's console, beside COM1's. Waits while the console is full."""
        while data := data[self.board.console_write(data) :]:
            self._console_drained.wait()
            self._console_drained.clear()

    def reset_line(self, cause: str) -> None:
        """The guest pulled the reset line; it takes effect when the present access is done."""
        self._reset_cause = self._reset_cause or cause

    def exit(self, code: int) -> None:
        """The guest ends itself with a code of 32 bits, kept as a signed number."""
        self.finish(End("EXITED", f"the guest exited with code {code}", code - (1 << 32) if code >> 31 else code))

    def power_off(self, cause: str) -> None:
        """The guest switched itself off."""
        self.finish(End("POWEROFF", f"the guest powered off ({cause})"))

    def finish(self, end: End) -> None:
        """The machine ends after the present exit; the first end counts."""
        if self.end is None:
            self.end = end

    def record_as(self, point: int, a0: int, a1: int, a2: int, a3: int) -> None:
        """The present exit is another trace point than its port or address says; negative arguments are recorded as
        64-bit ones."""
        mask = (1 << 64) - 1
        self._record = (point, a0 & mask, a1 & mask, a2 & mask, a3 & mask)

    def log(self, text: bytes) -> None:
        """A text of the guest for the hypervisor's log."""
        self._on_log(text)

    def device(self, kind: type[D]) -> D:
        """The board's device of a class. Its methods belong to the vcpu thread."""
        return next(device for device in self.devices if isinstance(device, kind))

    # ---- for other threads

    def call(self, function: Callable[[], Any], done: Done) -> None:
        """Any thread: run a function in the vcpu thread, then done(result, None) or done(None, error) there. An ended
        machine answers RUNNER_GONE, in the caller's thread."""
        with self._lock:
            if self._open:
                self._calls.put((function, done))
                if self.vcpu is not None:
                    self.vcpu.kick()
                return
        done(None, HvdError("RUNNER_GONE", problem="the guest has ended"))

    def kick(self) -> None:
        """Any thread: make the vcpu look at its devices, e.g. because somebody typed."""
        with self._lock:
            if self._open and self.vcpu is not None:
                self.vcpu.kick()

    def console_drained(self) -> None:
        """Any thread: the console's output ring has room again."""
        self._console_drained.set()

    # ---- the vcpu thread

    def run(self) -> End:
        """The machine's life. Never raises: what goes wrong is the End."""
        try:
            self._start()
            self._loop()
        except Exception as error:  # noqa: BLE001  a bug must end this guest with a record, not without one
            self._report_bug(error)
            self.finish(failure("EXECUTION_ERROR", f"a bug in the hypervisor: {error!r}", rip=hex(self._exit.rip)))
        if self.end is None:
            raise AssertionError("the loop ends only with an end")
        self._close()
        return self.end

    def _start(self) -> None:
        try:
            vcpu, self.vcpu_ahead = self.vcpu_ahead, None
            if vcpu is None:
                vcpu = self._create_vcpu(board=self.board, memory=self.memory, cpuid=cpuid.leaves, engine=self.spec.engine)
            try:
                if self.spec.snapshot:
                    from hvd.snapshot.machine import restore  # not needed by a guest that boots

                    restore(self, vcpu, Path(self.spec.snapshot))
                else:
                    self._load(vcpu)
            except BaseException:
                vcpu.close()  # the board has its console
                raise
        except HvdError as error:
            self._start_failed(error)
            return
        except OSError as error:
            self._start_failed(
                HvdError("RUNNER_START_FAILED", problem=str(error), log="runner.log in the guest's directory")
            )
            return
        with self._lock:
            self.vcpu = vcpu
        if not self._paused:
            self.board.start_clock()
        self._set_state("PAUSED" if self._paused else "RUNNING")

    def _start_failed(self, error: HvdError) -> None:
        self.start_error = error
        self.finish(failure("LOAD_FAILED", str(error), error=error.reason, **error.metadata))

    def _load(self, vcpu: Vcpu) -> None:
        if self.spec.boot != "kernel":
            vcpu.enter(firmware.load(self.memory))
            return
        ahead, self._ahead = self._ahead, None
        loaded = ahead.loaded() if ahead is not None else load_kernel(self.memory, self.spec)
        if loaded.paravirt is not None:
            vcpu.paravirtualise(self.memory, loaded.paravirt)
        vcpu.enter(loaded.entry)

    def _loop(self) -> None:
        handlers: dict[ExitReason, Callable[[Exit], None]] = {
            ExitReason.INTERRUPTED: self._interrupted,
            ExitReason.PORT_IN: self._port_in,
            ExitReason.PORT_OUT: self._port_out,
            ExitReason.MMIO_READ: self._mmio_read,
            ExitReason.MMIO_WRITE: self._mmio_write,
            ExitReason.HALT: self._halt,
            ExitReason.SHUTDOWN: self._shutdown,
            ExitReason.DEBUG: self._debug,
            ExitReason.ERROR: self._error,
            ExitReason.CONSOLE_FULL: self._console_full,
        }
        # Calls that came before there was a vcpu to kick.
        self._run_calls()
        while self.end is None:
            if self._paused:
                self._run_call(*self._calls.get())
                continue
            self._exit = exit_ = self.vcpu.run()
            if (neglected := self.vcpu.neglected()) != self.neglected:
                self.neglected = neglected
                self._on_change()
            handler = handlers.get(exit_.reason)
            if handler is None:
                self._unhandled(exit_)
                return
            handler(exit_)
            if self._reset_cause:
                self._pull_reset()

    def _close(self) -> None:
        self.board.stop_clock()
        with self._lock:
            self._open = False
            vcpu = self.vcpu
        while True:
            try:
                _, done = self._calls.get_nowait()
            except Empty:
                break
            done(None, HvdError("RUNNER_GONE", problem="the guest has ended"))
        if vcpu is not None:
            if self.before_close is not None:
                self.before_close()
            vcpu.close()
        for device in self.devices:
            if (close := getattr(device, "close", None)) is not None:
                close()
        close_disks(self.disks)

    def _set_state(self, state: str) -> None:
        self.state = state
        self._on_change()

    # ---- exits

    def _interrupted(self, exit_: Exit) -> None:
        self._run_calls()
        for listener in self._kick_listeners:
            listener()

    def _run_calls(self) -> None:
        while self.end is None:
            try:
                function, done = self._calls.get_nowait()
            except Empty:
                return
            self._run_call(function, done)

    def _run_call(self, function: Callable[[], Any], done: Done) -> None:
        try:
            result = function()
        except HvdError as error:
            done(None, error)
        except Exception as error:  # noqa: BLE001  the caller gets it; the guest is not to blame
            self._report_bug(error)
            done(None, HvdError("INTERNAL", problem=repr(error)))
        else:
            done(result, None)

    def _cross(self, point: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0) -> None:
        exit_ = self._exit
        if self._record is not None:
            point, a0, a1, a2, a3 = self._record
            self._record = None
        self.board.cross(point, exit_.start_ns, exit_.rip, exit_.flags, a0, a1, a2, a3)

    def _port_in(self, exit_: Exit) -> None:
        try:
            exit_.value = self.bus.read_port(exit_.address, exit_.size)
        except Exception as error:  # noqa: BLE001  a bug of a device ends this guest only
            self._device_failed(f"port {exit_.address:#x}", "read", error)
        self._cross(PORT_IN, exit_.address, exit_.size, exit_.value)

    def _port_out(self, exit_: Exit) -> None:
        try:
            self.bus.write_port(exit_.address, exit_.size, exit_.value)
        except Exception as error:  # noqa: BLE001
            self._device_failed(f"port {exit_.address:#x}", f"write of {exit_.value:#x}", error)
        self._cross(PORT_OUT, exit_.address, exit_.size, exit_.value)

    def _mmio_read(self, exit_: Exit) -> None:
        try:
            exit_.value = self.bus.read_mmio(exit_.address, exit_.size)
        except Exception as error:  # noqa: BLE001
            self._device_failed(f"address {exit_.address:#x}", "read", error)
        self._cross(MMIO_READ, exit_.address, exit_.size, exit_.value)

    def _mmio_write(self, exit_: Exit) -> None:
        try:
            self.bus.write_mmio(exit_.address, exit_.size, exit_.value)
        except Exception as error:  # noqa: BLE001
            self._device_failed(f"address {exit_.address:#x}", f"write of {exit_.value:#x}", error)
        self._cross(MMIO_WRITE, exit_.address, exit_.size, exit_.value)

    def _device_failed(self, where: str, access: str, error: Exception) -> None:
        self._report_bug(error)
        message = f"the device at {where} failed at a {access} by the instruction at {self._exit.rip:#x}: {error!r}"
        self.finish(
            failure("DEVICE_ERROR", message, where=where, access=access, rip=hex(self._exit.rip), error=repr(error))
        )

    def _halt(self, exit_: Exit) -> None:
        self._cross(HALT, 0)
        self.finish(End("HALTED", f"HLT with interrupts off at {exit_.rip:#x}"))

    def _shutdown(self, exit_: Exit) -> None:
        self._cross(TRIPLE_FAULT)
        if self.spec.restart_on_reset:
            self._reset_cause = "triple fault"
        else:
            self.finish(End("TRIPLE_FAULT", f"triple fault at {exit_.rip:#x}", 0, {"address": hex(exit_.rip)}))

    def _debug(self, exit_: Exit) -> None:
        if self.debugger is None:
            self._unhandled(exit_)
        else:
            self.debugger.exited(exit_)

    def _unhandled(self, exit_: Exit) -> None:
        message = f"exit {exit_.reason.name} at {exit_.rip:#x} is not one that this board can handle"
        self.finish(failure("EXECUTION_ERROR", message, address=hex(exit_.rip)))

    def _error(self, exit_: Exit) -> None:
        about = {"address": hex(exit_.rip), "bytes": self._code_at(exit_.rip)} | exit_.metadata
        found = f" (bytes {about['bytes']})" if about["bytes"] else " (no memory is there)"
        message = f"the backend cannot go on at {exit_.rip:#x}{found}: {exit_.detail}"
        self.finish(failure("EXECUTION_ERROR", message, **about))

    def _code_at(self, rip: int) -> str:
        """What stands there, as far as an instruction may reach (SDM vol. 2A, 2.3.11), within its page; empty = no RAM."""
        registers = self.vcpu.registers()
        width = (1 << 64) - 1 if self.in_long_mode else (1 << 32) - 1
        address = (registers.get("cs.base", 0) + rip) & width
        try:
            code = AddressSpace(self.memory, registers).read(address, min(LONGEST_INSTRUCTION, PAGE - address % PAGE))
        except HvdError:
            return ""
        return code.hex(" ")

    def _console_full(self, exit_: Exit) -> None:
        # Set after every drain and cleared only here, so a drain between the exit and this wait is not missed. A vcpu that says so of a
        # console which is not full would wait for ever, and nobody could speak to it.
        self._console_drained.wait(CONSOLE_SECONDS)
        self._console_drained.clear()

    def _pull_reset(self) -> None:
        cause, self._reset_cause = self._reset_cause, ""
        if self.end is not None:
            return
        if self.spec.restart_on_reset:
            self.reset()
        else:
            self._cross(RESET)
            self.finish(End("RESET", f"the guest reset itself ({cause})"))

    def _report_bug(self, error: Exception) -> None:
        import traceback  # not needed by a guest that runs well

        traceback.print_exception(error, file=sys.stderr)

    def start_paused(self) -> None:
        """Be PAUSED when the start is done: what is restored was."""
        self._paused = True

    def reset(self) -> None:
        """The reset button: devices as after power-on, the image loaded anew into clean memory, the vcpu at its
        entry. The virtual clock goes on, and a paused machine stays paused. An image that cannot be loaded any more
        ends the machine."""
        start_ns = time.monotonic_ns()
        self.board.reset()
        for device in self.devices:
            device.reset()
        self.memory.clear_all()
        try:
            self._load(self.vcpu)
        except HvdError as error:
            self.finish(failure("LOAD_FAILED", str(error), error=error.reason, **error.metadata))
            return
        except OSError as error:
            self.finish(failure("LOAD_FAILED", f"the image is gone: {error}", error="OSError"))
            return
        for address, length, _ in self.memory.ram_spans():
            self.vcpu.memory_changed(address, length)
        self.resets += 1
        self.board.cross(RESET, start_ns, self._exit.rip, 0, 0, 0, 0, 0)
        self._on_change()
