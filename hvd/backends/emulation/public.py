"""Emulation on Unicorn's public API alone: any Unicorn 2.x build on any processor, for small kernels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from hvapi.record import FLAG_USER
from unicorn import (
    UC_HOOK_BLOCK,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_PROT_ALL,
)

from unicorn import UcError  # type: ignore[attr-defined]  # isort: skip
from unicorn import x86_const as x86

from hvd.backends.emulation.public_cpuid import cpuid_table, open_unicorn
from hvd.backends.emulation.public_delivery import (
    IF,
    REMEDY,
    Cause,
    Delivery,
    TripleFault,
    Unsupported,
    error_code,
)
from hvd.backends.emulation.public_registers import (
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    GENERAL,
    SEGMENTS,
    TABLES,
    read_registers,
    refusal,
    wide,
)
from hvd.backends.emulation.public_state import KEEPS_EXCEPTION, forget_exception
from hvd.board.bus import floating
from hvd.board.hot import HotBoard, MmioResult, PortResult
from hvd.board.memory import HIGH_RAM_START, GuestMemory, RegionKind
from hvd.board.vcpu import EntryState, Exit, ExitReason, Vcpu
from hvd.trace.points import BY_NAME, EXCEPTION_BASE

BLOCKS_PER_LOOK: Final = 64  # how often the clock is looked at; some 25 us
MOV_TO_CR: Final = b"\x0f\x22"  # and a ModRM byte; ends a block
STI, POP_SS, MOV_SS, HLT, INT, INT3, INTO = 0xFB, 0x17, 0x8E, 0xF4, 0xCD, 0xCC, 0xCE
POINT = {name: BY_NAME[name].id for name in ("port-in", "port-out", "mmio-read", "mmio-write", "virtio-notify", "halt", "interrupt")}
SOFTWARE_INTERRUPT: Final = BY_NAME["software-interrupt"].id


class _Abandon(Exception):
    """The instruction whose hook waits is given up: reset or close."""


class PublicVcpu(Vcpu):
    """32-bit protected mode with flat segments, exceptions, interrupts and rings by gates and one TSS, all delivered in Python.

    Its limits, each answered with ERROR and a text that says so: a guest that begins or goes on in 64-bit mode or uses PAE; an exception or
    interrupt while paging is on (paging itself works); LDT, task gates, 16-bit gates, virtual-8086 mode; a fault whose error code is a
    selector. Not seen by it: SYSENTER and SYSCALL (CPUID says that they are absent); INT n with the number of an exception, which is taken
    for the exception (INT3 and INTO are right); the shadow of MOV SS from memory and LSS. RAM above 4 GiB is out of reach, and RDTSC gives
    the host's counter (CPUID says that there is none). A block hook in Python limits it to some ten million instructions a second.

    It never stops Unicorn from another thread, which would leave instructions half done: the block hook looks whether there is a reason to.
    Unicorn runs in a thread of its own, which waits in the hook while run()'s caller serves an exit.
    """

    def __init__(self, board: HotBoard, memory: GuestMemory, cpuid: Callable[..., dict[Any, Any]]) -> None:
        self._board = board
        self._pci = board.pci()
        self._memory = memory
        self._cpuid = cpuid_table(cpuid)
        self._uc = self._make_unicorn()
        self._pristine = self._uc.context_save()
        self._delivery = Delivery(self._uc, memory, self._count_delivery)
        self._refusal = "the vcpu was not entered"
        self._stale: list[tuple[int, int]] = []  # guest memory that was changed behind Unicorn's back
        self._injected: list[int] = []
        self._halted_at = 0  # nanoseconds at which HLT began; 0 = not halted

        self._look = True  # the block hook has something to look at
        self._kicked = threading.Event()
        self._stopping = False  # emu_start returns because a hook wanted it
        self._entered_at = 0
        self._blocks = 0
        self._deadline = 0
        self._block_end = 0  # where the last block ended
        self._known_blocks: set[int] = set()
        self._mode_ends: set[int] = set()  # where blocks end that write a control register
        self._trap: tuple[int, int, bool] | None = None  # vector, length of INT, software

        self._exit: Exit | BaseException = Exit(ExitReason.INTERRUPTED)
        self._resume, self._left = threading.Semaphore(0), threading.Semaphore(0)
        self._in_hook = self._abandoned = self._closing = False
        self._thread = threading.Thread(target=self._work, name="unicorn", daemon=True)
        self._thread.start()

    # ---- Vcpu

    def enter(self, state: EntryState) -> None:
        self._abandon_instruction()
        self._refusal = refusal(state)
        self._halted_at = 0
        self._injected.clear()
        self._stale.clear()
        self._trap = None
        self._block_end = 0
        self._known_blocks.clear()
        self._mode_ends.clear()
        if self._refusal:
            return
        self._uc = uc = self._make_unicorn()
        self._pristine = uc.context_save()
        self._delivery = Delivery(uc, self._memory, self._count_delivery)
        for name, value in state.registers.items():
            uc.reg_write(GENERAL[wide(name)], value & 0xFFFF_FFFF)
        for name, (base, limit) in (("gdtr", state.gdt), ("idtr", state.idt)):
            uc.reg_write(TABLES[name], (0, base, limit, 0))
        try:
            # Hidden parts come from the descriptors in guest memory, where the loaders put them.
            for name, register in (SEGMENTS if state.gdt[1] else {}).items():
                if name in state.segments:
                    uc.reg_write(register, state.segments[name].selector)
        except UcError as error:
            self._refusal = f"the entry's segments are not those of its GDT ({error})"
        uc.reg_write(x86.UC_X86_REG_CR4, state.cr4)
        uc.reg_write(x86.UC_X86_REG_CR0, state.cr0)

    def run(self) -> Exit:
        self._look = True
        self._resume.release()
        self._left.acquire()
        if isinstance(self._exit, BaseException):
            raise self._exit
        return self._exit

    def kick(self) -> None:
        self._kicked.set()
        self._look = True

    def registers(self) -> dict[str, int]:
        return read_registers(self._uc, self._code)

    def set_register(self, name: str, value: int) -> None:
        self._uc.reg_write(GENERAL[name], value & 0xFFFF_FFFF)

    def inject(self, vector: int) -> None:
        self._injected.append(vector)
        self._look = True

    def memory_changed(self, address: int, length: int) -> None:
        self._stale.append((address, length))
        self._look = True

    def close(self) -> None:
        if self._thread.is_alive():
            self._abandon_instruction()
            self._closing = True
            self._resume.release()
            self._thread.join()

    # ---- the worker thread

    def _work(self) -> None:
        while True:
            self._resume.acquire()
            if self._closing:
                return
            try:
                self._exit = self._execute()
            except _Abandon:
                self._exit = Exit(ExitReason.INTERRUPTED)
            except (Unsupported, UcError) as error:
                self._exit = self._error(str(error))
            except BaseException as error:  # noqa: BLE001  run() raises it in the caller's thread
                self._exit = error
            self._left.release()

    def _leave(self, exit_: Exit) -> Exit:
        """In a hook: let run() return; back when it is called again. Does nothing once the instruction is abandoned."""
        if self._abandoned:
            return exit_
        self._count_run()
        self._exit = exit_
        self._in_hook = True
        self._left.release()
        self._resume.acquire()
        self._in_hook = False
        self._entered_at = self._board.host_ns()
        if self._abandoned:
            self._stop()
            # That takes effect at the end of the block, whose stores must not reach a memory that was loaded anew.
            for address, length, _ in self._memory.ram_spans():
                if address < HIGH_RAM_START:
                    self._uc.mem_unmap(address, length)
        return exit_

    def _abandon_instruction(self) -> None:
        if self._in_hook:
            self._abandoned = True
            self._resume.release()
            self._left.acquire()
            self._abandoned = False

    def _execute(self) -> Exit:
        """Until there is an exit outside of hooks."""
        while True:
            if self._refusal:
                return self._error(f"{self._refusal}; {REMEDY}")
            if self._kicked.is_set():
                self._kicked.clear()
                return self._describe_exit(ExitReason.INTERRUPTED)
            if self._halted_at and not self._wait():
                continue
            try:
                self._deliver_pending()
                self._drop_stale()
                self._start()
                if self._trap is not None:
                    self._deliver_trap()
            except TripleFault:
                return self._describe_exit(ExitReason.SHUTDOWN)
            if not self._stopping:  # emu_start returned by itself: HLT
                if not self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & IF:
                    return self._describe_exit(ExitReason.HALT)
                self._halted_at = self._board.host_ns()

    def _start(self) -> None:
        self._stopping = False
        self._entered_at = self._board.host_ns()
        try:
            self._uc.emu_start(self._uc.reg_read(x86.UC_X86_REG_EIP), 0xFFFF_FFFF)
        except UcError:
            if not self._abandoned:  # else: the rest of the block met the memory that is gone
                raise
        finally:
            self._count_run()
        if self._abandoned:
            raise _Abandon

    def _count_run(self) -> None:
        self._board.account(run_ns=self._board.host_ns() - self._entered_at)

    def _stop(self) -> None:
        """In a hook: emu_start returns before the block that begins, or behind the instruction."""
        self._stopping = True
        self._uc.emu_stop()

    def _wait(self) -> bool:
        """HLT: until an interrupt comes. False when a kick came first."""
        board = self._board
        while not board.advance() and not self._injected:
            deadline = board.deadline()
            timeout = None if deadline is None else max(0, deadline - board.host_ns()) / 1e9
            board.console_rest()
            if self._kicked.wait(timeout):
                return False
        board.account(halted_ns=board.host_ns() - self._halted_at)
        board.cross(POINT["halt"], self._halted_at, self._rip(), 0, 1)
        self._halted_at = 0
        return True

    def _deliver_pending(self) -> None:
        if self._in_shadow() or not self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & IF:
            return
        if self._injected:
            self._delivery.deliver(self._injected.pop(0), None, Cause.EXTERNAL)
        elif self._board.advance():
            self._delivery.deliver(self._board.acknowledge(), None, Cause.EXTERNAL)
        self._deadline = self._board.deadline() or 0

    def _deliver_trap(self) -> None:
        assert self._trap is not None
        vector, length, software = self._trap
        self._trap = None
        if not software and vector in KEEPS_EXCEPTION:
            forget_exception(self._uc, self._pristine)
        self._block_end = 0
        if software:
            self._delivery.deliver(vector, None, Cause.SOFTWARE, length)
        else:
            self._delivery.deliver(vector, error_code(self._code(self._rip(), 15), vector), Cause.FAULT)

    def _drop_stale(self) -> None:
        if self._stale:
            self._stale.clear()
            self._known_blocks.clear()
            self._mode_ends.clear()
            self._uc.ctl_flush_tb()  # by virtual address one at a time would miss aliases

    # ---- hooks

    def _make_unicorn(self) -> Any:
        uc = open_unicorn()
        uc.ctl_exits_enabled(True)  # no "until" address: looking it up faults in the guest's MMU
        uc.ctl_set_exits([])
        for address, length, offset in self._memory.ram_spans():
            if address < HIGH_RAM_START:
                uc.mem_map_ptr(address, length, UC_PROT_ALL, self._memory.host_address + offset)
        for region in self._memory.regions():
            if region.kind in (RegionKind.MMIO, RegionKind.HOLE) and region.start < HIGH_RAM_START:
                device = region.kind is RegionKind.MMIO
                length = min(region.end, HIGH_RAM_START) - region.start
                where = (region.start, device)
                uc.mmio_map(region.start, length, self._mmio_read, where, self._mmio_write, where)
        uc.hook_add(UC_HOOK_BLOCK, self._on_block)
        uc.hook_add(UC_HOOK_INTR, self._on_interrupt)
        uc.hook_add(UC_HOOK_INSN_INVALID, self._on_invalid)
        for instruction, hook in (
            (x86.UC_X86_INS_IN, self._on_in),
            (x86.UC_X86_INS_OUT, self._on_out),
            (x86.UC_X86_INS_CPUID, self._on_cpuid),
        ):
            uc.hook_add(UC_HOOK_INSN, hook, None, 1, 0, instruction)
        return uc

    def _on_block(self, uc: Any, address: int, size: int, user: object) -> None:
        self._blocks += 1
        if (
            self._look
            or self._block_end in self._mode_ends
            or (not self._blocks % BLOCKS_PER_LOOK and time.monotonic_ns() >= self._deadline)
        ):
            self._look_around(address)
        self._block_end = address + size
        if self._block_end not in self._known_blocks:
            self._learn(self._block_end)

    def _learn(self, end: int) -> None:
        """A mode that is not supported must be refused before the first block that runs in it, not whenever one looks around."""
        self._known_blocks.add(end)
        if self._code(end - 3, 2) == MOV_TO_CR:
            self._mode_ends.add(end)

    def _look_around(self, address: int) -> None:
        """Is there a reason to stop before this block?"""
        if self._refuses_mode():
            self._stop()
            return
        if self._in_shadow(address):
            return
        deliverable = (self._injected or self._board.advance()) and self._uc.reg_read(x86.UC_X86_REG_EFLAGS) & IF
        if deliverable or self._kicked.is_set() or self._stale:
            self._stop()
            return
        # With interrupts off, look again at every block: they may come on anywhere.
        self._look = bool(self._injected) or self._board.pending()
        self._deadline = self._board.deadline() or time.monotonic_ns() + 1_000_000

    def _in_shadow(self, address: int | None = None) -> bool:
        """Does the instruction at EIP follow an STI, POP SS or MOV SS, reg? Those end a block, and so does the one behind them."""
        if address is None:
            address = self._rip()
        if not self._block_end or self._block_end != address:
            return False
        before = self._code(address - 2, 2)
        return len(before) == 2 and (before[1] in (STI, POP_SS) or (before[0] == MOV_SS and before[1] & 0xF8 == 0xD0))

    def _refuses_mode(self) -> bool:
        uc = self._uc
        if uc.reg_read(x86.UC_X86_REG_CR0) & CR0_PG and uc.reg_read(x86.UC_X86_REG_CR4) & CR4_PAE:
            self._refusal = "the guest turned PAE paging or 64-bit mode on"
        elif not uc.reg_read(x86.UC_X86_REG_CR0) & CR0_PE:
            self._refusal = "the guest went to real mode"
        return bool(self._refusal)

    def _on_interrupt(self, uc: Any, vector: int, user: object) -> None:
        eip = uc.reg_read(x86.UC_X86_REG_EIP)
        before = self._code(eip - 2, 2)
        software, length = False, 0
        if vector >= 32 or (len(before) == 2 and before[1] == {3: INT3, 4: INTO}.get(vector)):
            software, length = True, 2 if vector >= 32 else 1
        self._trap = (vector, length, software)
        self._stop()

    def _on_invalid(self, uc: Any, user: object) -> bool:
        self._trap = (6, 0, False)
        self._stop()
        return True

    def _on_in(self, uc: Any, port: int, size: int, user: object) -> int:
        if self._abandoned:
            return 0
        start = self._board.host_ns()
        result, value = self._board.port_in(port, size)
        rip = self._rip()
        if result is PortResult.LEAVE:
            value = self._leave(Exit(ExitReason.PORT_IN, port, size, 0, rip, start, self._flags())).value
        else:
            self._board.cross(POINT["port-in"], start, rip, self._flags(), port, size, value)
        self._look = True
        return value

    def _on_out(self, uc: Any, port: int, size: int, value: int, user: object) -> None:
        if self._abandoned:
            return
        start = self._board.host_ns()
        rip, flags = self._rip(), self._flags()
        while (result := self._board.port_out(port, size, value)) is PortResult.WAIT and not self._abandoned:
            self._leave(Exit(ExitReason.CONSOLE_FULL, port, size, value, rip, start, flags))
        if result is PortResult.LEAVE:
            self._leave(Exit(ExitReason.PORT_OUT, port, size, value, rip, start, flags))
        else:
            self._board.cross(POINT["port-out"], start, rip, flags, port, size, value)
        self._look = True

    def _mmio_read(self, uc: Any, offset: int, size: int, user: tuple[int, bool]) -> int:
        base, device = user
        start, rip, flags = self._board.host_ns(), self._rip(), self._flags()
        hot = self._board.mmio_read(base + offset, size)
        if hot is not None:
            self._board.cross(POINT["mmio-read"], start, rip, flags, base + offset, size, hot)
            self._look = True
            return hot
        if device:
            return self._leave(Exit(ExitReason.MMIO_READ, base + offset, size, 0, rip, start, flags)).value
        self._board.cross(POINT["mmio-read"], start, rip, flags, base + offset, size, floating(size))
        return floating(size)

    def _mmio_write(self, uc: Any, offset: int, size: int, value: int, user: tuple[int, bool]) -> None:
        base, device = user
        start, rip, flags = self._board.host_ns(), self._rip(), self._flags()
        result = self._board.mmio_write(base + offset, size, value)
        if result is MmioResult.NOTIFIED:
            self._board.cross(POINT["virtio-notify"], start, rip, flags, *self._pci.notification(base + offset))
        elif result is MmioResult.DONE:
            self._board.cross(POINT["mmio-write"], start, rip, flags, base + offset, size, value)
            self._look = True
        elif device:
            self._leave(Exit(ExitReason.MMIO_WRITE, base + offset, size, value, rip, start, flags))
        else:
            self._board.cross(POINT["mmio-write"], start, rip, flags, base + offset, size, value)

    def _on_cpuid(self, uc: Any, user: object) -> int:
        leaf, subleaf = uc.reg_read(x86.UC_X86_REG_EAX), uc.reg_read(x86.UC_X86_REG_ECX)
        registers = self._cpuid.get((leaf, subleaf)) or self._cpuid.get((leaf, 0)) or (0, 0, 0, 0)
        for name, value in zip(("EAX", "EBX", "ECX", "EDX"), registers, strict=True):
            uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), value)
        return 1

    # ---- what the guest looks like

    def _rip(self) -> int:
        return int(self._uc.reg_read(x86.UC_X86_REG_EIP))

    def _flags(self) -> int:
        return FLAG_USER if self._uc.reg_read(x86.UC_X86_REG_CS) & 3 == 3 else 0

    def _code(self, address: int, length: int) -> bytes:
        """Bytes of code, fewer at the end of memory. Linear is physical here, or nothing that needs it is delivered."""
        end = min(address + length, self._memory.low_ram_end)
        return self._memory.read(address, end - address) if 0 <= address < end else b""

    def _describe_exit(self, reason: ExitReason) -> Exit:
        return Exit(reason, rip=self._rip(), start_ns=self._board.host_ns(), flags=self._flags())

    def _error(self, detail: str) -> Exit:
        exit_ = self._describe_exit(ExitReason.ERROR)
        exit_.detail = detail
        exit_.metadata = {"address": f"{exit_.rip:#x}", "bytes": self._code(exit_.rip, 15).hex()}
        return exit_

    def _count_delivery(self, vector: int, error: int | None, cause: Cause) -> None:
        rip, flags = self._rip(), self._flags()
        if cause is Cause.EXTERNAL:
            self._board.cross(POINT["interrupt"], 0, rip, flags, vector)
        elif cause is Cause.SOFTWARE:
            accumulator = self._uc.reg_read(x86.UC_X86_REG_EAX)
            self._board.cross(SOFTWARE_INTERRUPT, 0, rip, flags, vector, accumulator)
        else:
            self._board.cross(EXCEPTION_BASE + vector, 0, rip, flags, error or 0)
