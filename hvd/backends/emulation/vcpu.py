"""The vcpu of emulation: `native` (the C shim around Unicorn, the default) or `public` (Unicorn's public API alone)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import struct
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from hvd.backends.emulation import saving
from hvd.board import ia32
from hvd.board.hot import HotBoard
from hvd.board.libhv import LIBRARY
from hvd.board.memory import HIGH_RAM_START, GuestMemory, RegionKind
from hvd.board.vcpu import FPU_BYTES, EntryState, Exit, ExitReason, Segment, Vcpu, Watchpoint
from hvd.errors import HvdError

# All is in this process, at addresses of its own choosing.
KEPT_CAPABILITIES: Final[frozenset[int]] = frozenset()
TSC_HZ: Final = 1_000_000_000  # the guest's TSC is its virtual clock in nanoseconds
# Family 6, model 28, stepping 10: an in-order Atom. A translator does not speculate, and this tells kernels so: they leave out the
# mitigations (page-table isolation, retpolines, ...) that Unicorn's own Haswell would cost them.
IN_ORDER_MODEL: Final = 0x000106CA
# CPUID.7:EBX of BMI2 and ADX: Unicorn raises #UD for those of their instructions that have a 66 prefix while CR4.OSFXSR is clear, though they
# use no SSE state; Linux 6.12 unpacks itself with SHLX before it sets that bit.
NEED_OSFXSR: Final = 1 << 8 | 1 << 19
# CPUID.7:EBX of ERMS, "REP MOVSB and STOSB are fast": a translator makes one turn of its loop for each element, whatever its size, so that
# Linux copies and clears several times faster with eight bytes at once.
FAST_BYTE_STRINGS: Final = 1 << 9
ADDRESS_SPACE: Final = 1 << 40  # what CPUID 0x80000008 reports; beyond it nothing can be mapped

_u8, _u32, _u64, _pointer, _bool = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_bool


class _Exit(ctypes.Structure):
    """struct hv_exit (shim.h)."""

    _fields_ = (
        ("reason", _u32), ("size", _u32), ("address", _u64), ("value", _u64), ("rip", _u64), ("start_ns", _u64), ("flags", _u32),
        ("error", ctypes.c_int32), ("detail", ctypes.c_char * 112),
    )  # fmt: skip


class _Segment(ctypes.Structure):
    """struct segment_cache (unicorn_abi.h)."""

    _fields_ = (("selector", _u32), ("base", _u64), ("limit", _u32), ("flags", _u32))


class _State(ctypes.Structure):
    """struct hv_state (state.c)."""

    _fields_ = (
        ("regs", _u64 * 16), ("rip", _u64), ("rflags", _u64), ("cr0", _u64), ("cr2", _u64), ("cr3", _u64), ("cr4", _u64), ("cr8", _u64),
        ("efer", _u64), ("segs", _Segment * 8), ("gdt_base", _u64), ("idt_base", _u64), ("gdt_limit", _u32), ("idt_limit", _u32),
    )  # fmt: skip


class _CpuidEntry(ctypes.Structure):
    """struct hv_cpuid_entry (shim.h)."""

    _fields_ = (
        ("leaf", _u32),
        ("subleaf", _u32),
        ("any_subleaf", _u32),
        ("eax", _u32),
        ("ebx", _u32),
        ("ecx", _u32),
        ("edx", _u32),
    )


GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
SETTABLE: Final = {name: index for index, name in enumerate((*GENERAL, "rip", "rflags"))}
# Leaf -> feature word (FeatureWord of QEMU's cpu.h) and register: what is not reported must not work either.
FEATURE_WORDS: Final = (
    (0, 1, "edx"),
    (1, 1, "ecx"),
    (2, 7, "ebx"),
    (3, 7, "ecx"),
    (4, 7, "edx"),
    (6, 0x8000_0001, "edx"),
    (7, 0x8000_0001, "ecx"),
)

_PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "hv_emulator_create": (_pointer, [ctypes.c_char_p, _pointer, ctypes.c_char_p, ctypes.c_size_t]),
    "hv_emulator_close": (None, [_pointer]),
    "hv_emulator_map_ram": (_bool, [_pointer, _u64, _u64, _pointer]),
    "hv_emulator_map_rom": (_bool, [_pointer, _u64, _u64, _pointer]),
    "hv_emulator_map_hole": (_bool, [_pointer, _u64, _u64]),
    "hv_emulator_map_device": (_bool, [_pointer, _u64, _u64]),
    "hv_emulator_map_board": (_bool, [_pointer, _u64, _u64]),
    "hv_emulator_set_cpuid": (_bool, [_pointer, _pointer, _u32]),
    "hv_emulator_native_cpuid": (None, [_pointer, _u32, _u32, _pointer]),
    "hv_emulator_mask_feature": (None, [_pointer, _u32, _u32]),
    "hv_emulator_kick": (None, [_pointer]),
    "hv_emulator_inject": (None, [_pointer, _u8]),
    "hv_emulator_memory_changed": (None, [_pointer, _u64, _u64]),
    "hv_emulator_run": (ctypes.c_int, [_pointer]),
    "hv_emulator_abandon": (None, [_pointer]),
    "hv_emulator_exit": (ctypes.POINTER(_Exit), [_pointer]),
    "hv_emulator_set_state": (None, [_pointer, _pointer]),
    "hv_emulator_get_state": (None, [_pointer, _pointer]),
    "hv_emulator_set_register": (_bool, [_pointer, _u32, _u64]),
    "hv_emulator_set_step": (None, [_pointer, _bool]),
    "hv_emulator_set_breakpoint": (_bool, [_pointer, _u64, _bool]),
    "hv_emulator_set_watchpoint": (_bool, [_pointer, _u64, _u64, _bool, _bool, _bool]),
    "hv_emulator_get_fpu": (None, [_pointer, _pointer]),
    "hv_emulator_set_fpu": (None, [_pointer, _pointer]),
    **saving.PROTOTYPES,
}


@functools.cache
def _library() -> ctypes.CDLL:
    """libhv.so, through CDLL: run() gives the interpreter's lock up while the guest runs. Raises HvdError NATIVE_MISSING."""
    try:
        lib = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise HvdError("NATIVE_MISSING", path=LIBRARY, problem=error) from error
    return lib


@functools.cache
def _quick_library() -> ctypes.PyDLL:
    """The same for what takes less time than giving the interpreter's lock up and getting it back."""
    lib = ctypes.PyDLL(str(LIBRARY))
    function = lib.hv_emulator_memory_changed_at
    function.restype, function.argtypes = None, [_pointer, ctypes.c_char_p, _u32]
    return lib


def unicorn_library() -> Path:
    """Unicorn's shared library, found without importing its Python package (50 ms). Raises HvdError BACKEND_UNAVAILABLE."""
    spec = importlib.util.find_spec("unicorn")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("lib/libunicorn.so*")):
            return path
    raise HvdError(
        "BACKEND_UNAVAILABLE",
        backend="emulation",
        problem="Unicorn is not installed",
        remedy="pip install unicorn==2.1.4",
    )


class NativeVcpu(Vcpu):
    """Unicorn with its translator only: delivery of exceptions and interrupts is QEMU's own, driven by the shim.

    Raises HvdError BACKEND_UNAVAILABLE when the library is another build than the shim knows.
    """

    def __init__(self, board: HotBoard, memory: GuestMemory, cpuid: Callable[..., dict[Any, Any]]) -> None:
        self._lib = _library()
        why = ctypes.create_string_buffer(256)
        library = unicorn_library()
        self._emulator: int | None = self._lib.hv_emulator_create(str(library).encode(), board.address, why, len(why))
        if not self._emulator:
            raise HvdError(
                "BACKEND_UNAVAILABLE",
                backend="emulation",
                problem=f"{library}: {why.value.decode(errors='replace')}",
                remedy="pip install unicorn==2.1.4, or use --engine public",
            )
        self._exit = self._lib.hv_emulator_exit(self._emulator).contents
        self._answered: Exit | None = None
        self._breakpoints: frozenset[int] = frozenset()
        self._watchpoints: frozenset[Watchpoint] = frozenset()
        self._map(memory)
        self._set_cpuid(cpuid)

    def _map(self, memory: GuestMemory) -> None:
        for address, length, offset in memory.ram_spans():
            self._require(
                self._lib.hv_emulator_map_ram(self._emulator, address, length, memory.host_address + offset), address
            )
        at = 0
        for region in sorted(memory.regions(), key=lambda region: region.start):
            if region.kind is RegionKind.HOLE:
                continue
            if region.start > at:
                self._require(self._lib.hv_emulator_map_hole(self._emulator, at, region.start - at), at)
            if region.kind is RegionKind.ROM:
                host = memory.host_address + region.file_offset
                self._require(
                    self._lib.hv_emulator_map_rom(self._emulator, region.start, region.length, host), region.start
                )
            if region.kind is RegionKind.MMIO:
                map_mmio = self._lib.hv_emulator_map_board if region.hot else self._lib.hv_emulator_map_device
                self._require(map_mmio(self._emulator, region.start, region.length), region.start)
            at = max(at, region.end)
        at = max(at, 0)
        for start, end in ((at, HIGH_RAM_START), (max(at, HIGH_RAM_START), ADDRESS_SPACE)):
            if start < end:
                self._require(self._lib.hv_emulator_map_hole(self._emulator, start, end - start), start)

    def _require(self, mapped: bool, address: int) -> None:
        if not mapped:
            raise HvdError("INTERNAL", problem=f"Unicorn cannot map guest-physical {address:#x}")

    def _native_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        out = (_u32 * 4)()
        self._lib.hv_emulator_native_cpuid(self._emulator, leaf, subleaf, out)
        eax, ebx, ecx, edx = out
        if leaf == 1:
            eax = IN_ORDER_MODEL
        elif (leaf, subleaf) == (7, 0):
            # IA32_TSC_ADJUST reads 0, as after power-on; with it, and an invariant TSC, Linux trusts the TSC without a watchdog.
            ebx |= 1 << 1
            ebx &= ~(NEED_OSFXSR | FAST_BYTE_STRINGS)
        return eax, ebx, ecx, edx

    def _set_cpuid(self, cpuid: Callable[..., dict[Any, Any]]) -> None:
        # Leaf 0xD follows XCR0 and CR4, which Unicorn keeps: not in the table means that Unicorn answers.
        leaves = cpuid(self._native_cpuid, TSC_HZ, follows_cr4=True, tsc_deadline=True)
        offered = {key: tuple(leaf) for key, leaf in leaves.items() if key[0] != 0xD}
        self.cpuid: dict[tuple[int, int], tuple[int, ...]] = offered
        self.tsc_at_zero = 0
        self.apply_cpuid(offered)

    def apply_cpuid(self, table: dict[tuple[int, int], tuple[int, ...]]) -> None:
        """What the guest is told from now on, and no more than that works. Raises HvdError SNAPSHOT_MISMATCH when it is
        more than there was, or another frequency."""
        saving.check_cpuid(table, self.cpuid, FEATURE_WORDS)
        for word, leaf, register in FEATURE_WORDS:
            index = ("eax", "ebx", "ecx", "edx").index(register)
            reported = table.get((leaf, 0), (0, 0, 0, 0))[index]
            native = self._native_cpuid(leaf, 0)[index]
            self._lib.hv_emulator_mask_feature(self._emulator, word, native & ~reported)
        entries = (_CpuidEntry * len(table))(*(
            _CpuidEntry(leaf, subleaf, leaf != 4 and subleaf == 0, *registers) for (leaf, subleaf), registers in table.items()
        ))  # fmt: skip
        if not self._lib.hv_emulator_set_cpuid(self._emulator, entries, len(entries)):
            raise MemoryError
        self.cpuid = table

    def set_tsc(self, at_zero: int) -> None:
        """Its frequency is what the guest was told. With a TSC deadline it is the virtual clock, to which that refers."""
        self.tsc_at_zero = 0 if self.cpuid.get((1, 0), (0, 0, 0, 0))[2] & saving.TSC_DEADLINE else at_zero
        self._lib.hv_emulator_set_tsc(self._emulator, ia32.tsc_hz(self.cpuid), self.tsc_at_zero)

    def enter(self, state: EntryState) -> None:
        raw = _State(cr0=state.cr0, cr3=state.cr3, cr4=state.cr4, efer=state.efer, rflags=2)
        raw.gdt_base, raw.gdt_limit = state.gdt
        raw.idt_base, raw.idt_limit = state.idt
        for name, value in state.registers.items():
            index = SETTABLE[_wide(name)]
            if index < 16:
                raw.regs[index] = value
            elif _wide(name) == "rip":
                raw.rip = value
            else:
                raw.rflags = value
        for index, name in enumerate(SEGMENTS):
            raw.segs[index] = _segment(state.segments, name)
        self.set_state(raw)

    # ---- for snapshots (saving.py)

    @property
    def library(self) -> ctypes.CDLL:
        return self._lib

    @property
    def emulator(self) -> int | None:
        """struct hv_emulator *."""
        return self._emulator

    def new_state(self) -> _State:
        """An empty one, for set_state()."""
        return _State()

    def set_state(self, raw: _State) -> None:
        """Everything is as after a reset but what is in it."""
        self._answered = None
        self._lib.hv_emulator_abandon(self._emulator)
        self._lib.hv_emulator_set_state(self._emulator, ctypes.byref(raw))

    def save(self) -> dict[str, Any]:
        return saving.save(self)

    def restore(self, state: dict[str, Any]) -> None:
        saving.restore(self, state)

    def run(self) -> Exit:
        if self._answered is not None:
            self._exit.value = self._answered.value & 0xFFFF_FFFF_FFFF_FFFF
            self._answered = None
        reason = ExitReason(self._lib.hv_emulator_run(self._emulator))
        raw = self._exit
        result = Exit(reason, raw.address, raw.size, raw.value, raw.rip, raw.start_ns, raw.flags)
        if reason is ExitReason.ERROR:
            result.detail = raw.detail.decode(errors="replace")
            result.metadata = {"address": f"{raw.rip:#x}"}
        elif reason in (ExitReason.PORT_IN, ExitReason.MMIO_READ):
            self._answered = result
        return result

    def kick(self) -> None:
        self._lib.hv_emulator_kick(self._emulator)

    def registers(self) -> dict[str, int]:
        raw = _State()
        self._lib.hv_emulator_get_state(self._emulator, ctypes.byref(raw))
        found: dict[str, int] = dict(zip(GENERAL, raw.regs, strict=True))
        for name in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            found[name] = getattr(raw, name)
        for index, name in enumerate(SEGMENTS):
            segment = raw.segs[index]
            found |= {
                name: segment.selector,
                f"{name}.base": segment.base,
                f"{name}.limit": segment.limit,
                f"{name}.attributes": segment.flags,
            }
        found |= {
            "gdtr.base": raw.gdt_base,
            "gdtr.limit": raw.gdt_limit,
            "idtr.base": raw.idt_base,
            "idtr.limit": raw.idt_limit,
        }
        return found

    def set_register(self, name: str, value: int) -> None:
        self._lib.hv_emulator_set_register(self._emulator, SETTABLE[name], value & 0xFFFF_FFFF_FFFF_FFFF)

    def set_debug(self, breakpoints: Set[int], watchpoints: Set[Watchpoint], step: bool) -> None:
        for set_, before, after in ((False, breakpoints, self._breakpoints), (True, self._breakpoints, breakpoints)):
            for address in after - before:
                if not self._lib.hv_emulator_set_breakpoint(self._emulator, address, set_):
                    raise MemoryError
        for set_, old, new in ((False, watchpoints, self._watchpoints), (True, self._watchpoints, watchpoints)):
            for watch in new - old:
                if not self._lib.hv_emulator_set_watchpoint(
                    self._emulator, watch.address, watch.length, watch.read, watch.write, set_
                ):
                    raise MemoryError
        self._breakpoints, self._watchpoints = frozenset(breakpoints), frozenset(watchpoints)
        self._lib.hv_emulator_set_step(self._emulator, step)

    def fpu(self) -> bytes:
        image = ctypes.create_string_buffer(FPU_BYTES)
        self._lib.hv_emulator_get_fpu(self._emulator, image)
        return image.raw

    def set_fpu(self, image: bytes) -> None:
        if len(image) != FPU_BYTES:
            raise ValueError(f"an image of {len(image)} bytes")
        self._lib.hv_emulator_set_fpu(self._emulator, ctypes.create_string_buffer(image, FPU_BYTES))

    def inject(self, vector: int) -> None:
        self._lib.hv_emulator_inject(self._emulator, vector)

    def memory_changed(self, address: int, length: int) -> None:
        self._lib.hv_emulator_memory_changed(self._emulator, address, length)

    def memory_changed_at(self, ranges: Sequence[int]) -> None:
        count = len(ranges)
        _quick_library().hv_emulator_memory_changed_at(self._emulator, struct.pack(f"{count}Q", *ranges), count // 2)

    def close(self) -> None:
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            self._lib.hv_emulator_close(emulator)


def _wide(name: str) -> str:
    """eax -> rax, eip -> rip, eflags -> rflags: the loaders use the names of their protocol."""
    return f"r{name[1:]}" if name.startswith("e") else name


def _segment(segments: Mapping[str, Segment], name: str) -> _Segment:
    segment = segments.get(name)
    return (
        _Segment() if segment is None else _Segment(segment.selector, segment.base, segment.limit, segment.attributes)
    )


def preload() -> None:
    """What every vcpu of this backend loads, ahead of the first (hvd.runner.template). What fails here fails there too,
    and is told then."""
    with contextlib.suppress(HvdError, OSError):
        _library()
        ctypes.CDLL(str(unicorn_library()))


def create(board: HotBoard, memory: GuestMemory, cpuid: Callable[..., dict[Any, Any]], engine: str) -> Vcpu:
    """The vcpu of one machine. Raises HvdError ENGINE_UNKNOWN, BACKEND_UNAVAILABLE, NATIVE_MISSING."""
    if engine in ("", "native"):
        return NativeVcpu(board, memory, cpuid)
    if engine == "public":
        from hvd.backends.emulation.public import PublicVcpu  # imports Unicorn's Python package

        return PublicVcpu(board, memory, cpuid)
    raise HvdError("ENGINE_UNKNOWN", backend="emulation", engine=engine, known="native, public")
