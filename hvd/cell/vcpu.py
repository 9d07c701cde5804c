"""The vcpu of trap, rewriting and paravirt: the guest runs in a cell, a process of its own."""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from hvd.board import ia32
from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory, RegionKind
from hvd.board.paravirt import PAGE, Paravirt
from hvd.board.vcpu import (
    FPU_BYTES,
    CensusCommand,
    EntryState,
    Exit,
    ExitReason,
    Rewritten,
    Segment,
    Shadow,
    Vcpu,
    Watchpoint,
)
from hvd.cell import area, paravirt, process
from hvd.cell.area import GENERAL, SEGMENTS, Mode
from hvd.cell.saving import restore, save
from hvd.cell.shadows import shadows
from hvd.errors import HvdError
from hvd.trace.points import BackendId

MASK: Final = 0xFFFF_FFFF
LONG_MODE_ENABLE: Final = 0x100  # EFER.LME
# After a reset (SDM vol. 3A, table 9-1; PAT: 11.12.4): x87 as FNINIT leaves it.
FCW, MXCSR = 0x37F, 0x1F80
PAT: Final = 0x0007_0406_0007_0406
DR6, DR7 = 0xFFFF_0FF0, 0x400
FAST_STRINGS: Final = 1  # IA32_MISC_ENABLE
# What native code does not do though the kernel asks for it, by the bits of enum hv_neglected.
NEGLECTED: Final = (
    "the kernel sets CR0.TS or CR0.EM, which stops its programs' x87 and SSE instructions here, but not its own",
)
_SETTABLE: Final = {name: index for index, name in enumerate(GENERAL)}

Cpuid = Callable[..., dict[tuple[int, int], tuple[int, int, int, int]]]


class CellVcpu(Vcpu):
    """One cell. It runs while the thread that made it does."""

    most_breakpoints = area.BREAKPOINTS
    most_watchpoints = area.WATCHPOINTS

    def __init__(
        self, board: HotBoard, memory: GuestMemory, backend: BackendId, mode: Mode, cpuid: Mapping[tuple[int, int], Sequence[int]],
        program: str = str(area.PROGRAM), word: int = -1,
    ) -> None:  # fmt: skip
        """cpuid: what the guest is told, and goes on to be told. word: see process.start(). Raises HvdError NATIVE_MISSING, RUNNER_START_FAILED."""
        self._lib, self._blocking = area.library(), area.blocking_library()
        self._board = board
        self._name = backend.name.lower()
        self._mode = mode
        self.rewrites = mode in (Mode.REWRITING, Mode.BREAKPOINT)
        self.cpuid: dict[tuple[int, int], tuple[int, ...]] = {}
        host: int | None = self._lib.hv_cell_create(board.address, int(mode), int(backend), memory.host_address, memory.whole.nbytes)
        if host is None:
            raise HvdError("RUNNER_START_FAILED", problem="no memory for a cell's run area", log="runner.log in the guest's directory")
        self._host = host
        self._neglected = 0
        self._free = weakref.finalize(self, self._blocking.hv_cell_free, host)
        self._exit = area.CellExit.from_address(self._lib.hv_cell_exit(host))
        self.cpu = area.CellCpu.from_address(self._lib.hv_cell_cpu(host))
        self._debug = area.CellDebug.from_address(self._lib.hv_cell_debug(host))
        self._code = area.CellCode.from_address(self._lib.hv_cell_code(host))
        self._census = area.CellCensus.from_address(self._lib.hv_cell_census(host))
        self._counters = area.CellCounters.from_address(self._lib.hv_cell_counters(host))
        self._answered: Exit | None = None
        self._user_limit = 0
        self._debugging = (frozenset[int](), frozenset[Watchpoint](), False)
        for region in memory.regions():
            if region.kind is not RegionKind.HOLE and not self._lib.hv_cell_add_region(
                host, region.start, region.length, region.file_offset, int(region.kind), region.hot
            ):
                raise HvdError("INTERNAL", problem="this machine has more regions than a cell knows")
        self.tell_taken(memory)
        self.set_cpuid(cpuid)
        board.use_console(self._lib.hv_cell_console(host))
        try:
            self.pid = process.start(host, board, memory, program, word)
        except OSError as error:
            raise HvdError(
                "RUNNER_START_FAILED", problem=f"the cell cannot be started: {error}", log="runner.log in the guest's directory"
            ) from error
        self.process = os.pidfd_open(self.pid)
        weakref.finalize(self, os.close, self.process)

    def tell_taken(self, memory: GuestMemory) -> None:
        """Before it runs."""
        self._lib.hv_cell_forget_taken(self._host)
        for offset, length in memory.taken:
            self._lib.hv_cell_add_taken(self._host, offset, length)

    @property
    def paravirtual(self) -> bool:
        return self._mode is Mode.PARAVIRT

    def paravirtualise(self, memory: GuestMemory, kernel: Paravirt) -> None:
        if self.paravirtual:
            paravirt.prepare(memory, kernel)
            self._user_limit = kernel.user_limit
            # Before paging they are at their physical addresses.
            offsets = range(0, kernel.page_bytes, PAGE)
            self.census_pages = frozenset(start + offset for start in (kernel.page, kernel.page_physical) for offset in offsets)
            self.census_native = frozenset({"rdtsc"})

    def set_cpuid(self, table: Mapping[tuple[int, int], Sequence[int]]) -> None:
        """(leaf, subleaf) -> registers. Leaves with one row answer any subleaf."""
        leaves = [leaf for leaf, _ in table]
        rows = (area.CellCpuid * len(table))()
        for index, ((leaf, subleaf), row) in enumerate(sorted(table.items())):
            rows[index] = area.CellCpuid(leaf, subleaf, leaves.count(leaf) == 1, *row)
        if not self._lib.hv_cell_set_cpuid(self._host, rows, len(rows)):
            raise HvdError("INTERNAL", problem=f"{len(rows)} rows of CPUID are more than a cell knows")
        self.cpuid = {key: tuple(row) for key, row in table.items()}
        self._lib.hv_cell_tell_tsc(self._host, ia32.tsc_hz(self.cpuid))

    def new_state(self) -> area.CellCpu:
        """As after a reset, without segments."""
        cpu = area.CellCpu(eflags=2, pat=PAT, misc_enable=FAST_STRINGS)
        cpu.dr[6], cpu.dr[7] = DR6, DR7
        struct.pack_into("<H", cpu.fxsave, 0, FCW)
        struct.pack_into("<I", cpu.fxsave, 24, MXCSR)
        return cpu

    def set_state(self, cpu: area.CellCpu) -> None:
        """Everything is as in it."""
        self._answered = None
        ctypes.memmove(ctypes.addressof(self.cpu), ctypes.addressof(cpu), ctypes.sizeof(cpu))
        self._lib.hv_cell_set_cpu(self._host)

    def enter(self, state: EntryState) -> None:
        cpu = self.new_state()
        if state.efer & LONG_MODE_ENABLE:
            raise HvdError(
                "BACKEND_UNAVAILABLE", backend=self._name, problem="it runs 32-bit guests", remedy="use emulation, or a 32-bit kernel"
            )
        cpu.user_limit = self._user_limit
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = state.cr0, state.cr3, state.cr4, state.efer
        cpu.gdt.base, cpu.gdt.limit = state.gdt
        cpu.idt.base, cpu.idt.limit = state.idt
        for name, value in state.registers.items():
            self._put(cpu, f"r{name[1:]}" if name.startswith("e") else name, value)
        for index, name in enumerate(SEGMENTS):
            segment = state.segments.get(name, Segment(0, 0, 0, 0))
            cpu.segment[index] = area.CellSegment(segment.base & MASK, segment.limit, segment.attributes, segment.selector)
        cpu.cpl = cpu.segment[SEGMENTS.index("cs")].selector & 3
        self.set_state(cpu)

    @staticmethod
    def _put(cpu: area.CellCpu, name: str, value: int) -> None:
        if name in _SETTABLE:
            cpu.r[_SETTABLE[name]] = value & MASK
        elif name == "rip":
            cpu.eip = value & MASK
        elif name == "rflags":
            cpu.eflags = value & MASK | 2
        else:
            raise KeyError(name)

    def run(self) -> Exit:
        raw = self._exit
        if self._answered is not None:
            raw.value = self._answered.value & 0xFFFF_FFFF_FFFF_FFFF
            self._answered = None
        reason = ExitReason(self._blocking.hv_cell_run(self._host))
        result = Exit(reason, raw.address, raw.size, raw.value, raw.rip, raw.start_ns, raw.flags)
        if reason is ExitReason.ERROR:
            result.detail = raw.detail.decode("ascii", errors="replace")
            result.metadata = {"address": f"{raw.rip:#x}"}
        elif reason in (ExitReason.PORT_IN, ExitReason.MMIO_READ):
            self._answered = result
        return result

    def neglected(self) -> str:
        self._neglected |= self._counters.neglected & (1 << len(NEGLECTED)) - 1  # whatever else a cell may say, then or later
        if not self._neglected:
            return ""
        return "; ".join([*(text for bit, text in enumerate(NEGLECTED) if self._neglected >> bit & 1), "use emulation"])

    def kick(self) -> None:
        self._lib.hv_cell_kick(self._host)

    def registers(self) -> dict[str, int]:
        cpu = self.cpu
        found: dict[str, int] = dict(zip(GENERAL, cpu.r, strict=True)) | {f"r{n}": 0 for n in range(8, 16)}
        found |= {"rip": cpu.eip, "rflags": cpu.eflags, "cr8": self._board.cr8}
        for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
            found[name] = getattr(cpu, name)
        for index, name in enumerate(SEGMENTS):
            segment = cpu.segment[index]
            found |= {
                name: segment.selector,
                f"{name}.base": segment.base,
                f"{name}.limit": segment.limit,
                f"{name}.attributes": segment.attributes,
            }
        return found | {
            "gdtr.base": cpu.gdt.base, "gdtr.limit": cpu.gdt.limit, "idtr.base": cpu.idt.base, "idtr.limit": cpu.idt.limit
        }  # fmt: skip

    def set_register(self, name: str, value: int) -> None:
        if name not in ia32.REGISTERS:
            raise KeyError(name)
        if name not in {f"r{n}" for n in range(8, 16)}:  # which 32-bit code has not
            self._put(self.cpu, name, value)
            if name == "rip":  # it goes on there, whatever it waited for
                self.cpu.halted = self.cpu.interrupt_shadow = 0
            self._lib.hv_cell_change_cpu(self._host)

    def set_debug(self, breakpoints: Set[int], watchpoints: Set[Watchpoint], step: bool) -> None:
        for what, count, most in (("breakpoints", len(breakpoints), area.BREAKPOINTS), ("watchpoints", len(watchpoints), area.WATCHPOINTS)):
            if count > most:
                raise HvdError("CAPABILITY_MISSING", backend=self._name, capability=f"keep {count} {what}, only {most}")
        wanted = (frozenset(breakpoints), frozenset(watchpoints), step)
        if wanted == self._debugging:
            return
        self._debugging = wanted
        debug = self._debug
        debug.step, debug.breakpoint_count, debug.watchpoint_count = step, len(breakpoints), len(watchpoints)
        for index, address in enumerate(sorted(breakpoints)):
            debug.breakpoints[index] = address & MASK
        for index, watch in enumerate(sorted(watchpoints, key=lambda watch: watch.address)):
            debug.watchpoints[index] = area.CellWatchpoint(watch.address & MASK, watch.length & MASK, watch.read, watch.write)
        self._lib.hv_cell_change_debug(self._host)

    def fpu(self) -> bytes:
        return bytes(self.cpu.fxsave)

    def set_fpu(self, image: bytes) -> None:
        if len(image) != FPU_BYTES:
            raise ValueError(f"an image of {len(image)} bytes")
        ctypes.memmove(self.cpu.fxsave, image, FPU_BYTES)
        self._lib.hv_cell_change_cpu(self._host)

    def shadows(self, linear: int) -> Sequence[Shadow]:
        return shadows(self.mappings(), self._mode, linear & MASK)

    def mappings(self) -> str:
        """Of its process, as in /proc/PID/maps. Raises OSError."""
        return Path(f"/proc/{self.pid}/maps").read_text("utf-8", "replace")

    def inject(self, vector: int) -> None:
        self.cpu.injected, self.cpu.injected_vector = 1, vector
        self._lib.hv_cell_change_cpu(self._host)

    def memory_changed(self, address: int, length: int) -> None:
        self.memory_changed_at((address, length))

    def memory_changed_at(self, ranges: Sequence[int]) -> None:
        count = len(ranges)
        self._lib.hv_cell_memory_changed(self._host, struct.pack(f"{count}Q", *ranges), count // 2)

    def executed_code(self) -> Sequence[int] | None:
        if self.rewrites:  # what is sensitive is replaced, whether it traps or not
            return None
        return list(self._code.entry[: min(self._code.count, area.CODE_PAGES)])

    def rewritten(self, command: CensusCommand) -> Rewritten:
        if not self.rewrites:
            return super().rewritten(command)
        self._blocking.hv_cell_ask_census(self._host, int(command))  # false: the next run says why
        census = self._census
        count, instructions = min(census.count, area.SITES), min(census.instructions, 1 << 32)
        sites = ctypes.string_at(ctypes.addressof(census) + area.CellCensus.site.offset, count * ctypes.sizeof(area.CellSite))
        return Rewritten(sites, census.blocks, census.pages, instructions, complete=not census.full)

    def figures(self) -> dict[str, int]:
        """The cell's own counters, as it says. Any thread."""
        return {name: getattr(self._counters, name) for name in area.COUNTERS}

    @property
    def sandbox(self) -> area.Sandbox:
        """As the cell says: meaningful once it ran."""
        return area.Sandbox(self._lib.hv_cell_sandbox(self._host) & 0x1F)

    def tsc_at_zero(self) -> int:
        """What the time stamp counter was when the virtual clock was 0, had it always had the frequency that the guest was told."""
        return int(self._lib.hv_cell_tsc_at_zero(self._host))

    def count_tsc(self, at_zero: int) -> None:
        """From there on, by the virtual clock."""
        self._lib.hv_cell_count_tsc(self._host, at_zero)

    @property
    def tsc_stands(self) -> bool:
        return bool(self._lib.hv_cell_tsc_stands(self._host))

    def save(self) -> dict[str, Any]:
        return save(self)

    def restore(self, state: dict[str, Any]) -> None:
        restore(self, state)

    def close(self) -> None:
        """The process ends; its memory stays until nobody has this object any more."""
        self._blocking.hv_cell_end(self._host)
        self._board.use_console(None)
