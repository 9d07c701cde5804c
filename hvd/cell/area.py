"""What C and Python share of a cell: area.h, cpu.h and host.h for ctypes. tests/cell/test_area.py compares every offset."""

from __future__ import annotations

import ctypes
import enum
import functools
from pathlib import Path
from typing import Any, Final

from hvd.board.libhv import LIBRARY
from hvd.board.vcpu import FPU_BYTES
from hvd.errors import HvdError

PROGRAM: Final = Path(__file__).resolve().parent.parent / "hvd-cell"

_u8, _u16, _u32, _u64, _size = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
_pointer, _bool, _int = ctypes.c_void_p, ctypes.c_bool, ctypes.c_int


class Mode(enum.IntEnum):
    """enum hv_cell_mode."""

    TRAP = 0
    REWRITING = 1
    BREAKPOINT = 2  # rewriting, engine breakpoint
    PARAVIRT = 3


class Fd(enum.IntEnum):
    """enum hv_cell_fd: the cell's descriptors by number."""

    WORD = 0
    AREA = 3
    MEMORY = 4
    GO = 5
    LEFT = 6
    CONSOLE = 7
    COUNTERS = 8
    TRACE = 9


class Ahead(enum.IntEnum):
    """enum hv_ahead_of."""

    NOT = 0
    YES = 1
    OF_MUCH = 2


class Sandbox(enum.IntFlag):
    """enum hv_sandbox: which of its layers a cell has."""

    NAMESPACES = 1
    ROOT = 2
    CAPABILITIES = 4
    RAWIO = 8
    SECCOMP = 16


BREAKPOINTS: Final = 64
WATCHPOINTS: Final = 16
CPUID_ROWS: Final = 96
CODE_PAGES: Final = 8192
DETAIL_BYTES: Final = 160


class CellExit(ctypes.Structure):
    """struct hv_cell_exit."""

    _fields_ = (
        ("reason", _u32), ("size", _u32), ("address", _u64), ("value", _u64), ("rip", _u64), ("start_ns", _u64), ("flags", _u32),
        ("count", _u32), ("detail", ctypes.c_char * DETAIL_BYTES),
    )  # fmt: skip


class CellSegment(ctypes.Structure):
    """struct hv_segment."""

    _fields_ = (("base", _u32), ("limit", _u32), ("attributes", _u32), ("selector", _u16), ("reserved", _u16))


class CellTable(ctypes.Structure):
    """struct hv_table."""

    _fields_ = (("base", _u32), ("limit", _u16), ("reserved", _u16))


GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")


class CellCpu(ctypes.Structure):
    """struct hv_cpu."""

    _fields_ = (
        ("r", _u32 * len(GENERAL)), ("eip", _u32), ("eflags", _u32), ("segment", CellSegment * len(SEGMENTS)),
        ("cr0", _u32), ("cr2", _u32), ("cr3", _u32), ("cr4", _u32), ("dr", _u32 * 8), ("gdt", CellTable), ("idt", CellTable),
        ("cpl", _u8), ("halted", _u8), ("interrupt_shadow", _u8), ("nmi_blocked", _u8), ("nmi_pending", _u8), ("injected", _u8),
        ("injected_vector", _u8), ("reserved", _u8), ("sysenter_cs", _u32), ("sysenter_esp", _u32), ("sysenter_eip", _u32), ("user_limit", _u32),
        ("pat", _u64), ("mtrr_default", _u64), ("misc_enable", _u64), ("efer", _u64), ("tsc_offset", _u64), ("_aligned", _u64),
        ("fxsave", _u8 * FPU_BYTES),
    )  # fmt: skip


class CellCpuid(ctypes.Structure):
    """struct hv_cell_cpuid."""

    _fields_ = (
        ("leaf", _u32), ("subleaf", _u32), ("any_subleaf", _u32), ("eax", _u32), ("ebx", _u32), ("ecx", _u32), ("edx", _u32),
        ("reserved", _u32),
    )  # fmt: skip


class CellWatchpoint(ctypes.Structure):
    """One of struct hv_cell_debug."""

    _fields_ = (("address", _u32), ("length", _u32), ("read", _u32), ("write", _u32))


class CellDebug(ctypes.Structure):
    """struct hv_cell_debug."""

    _fields_ = (
        ("step", _u32), ("breakpoint_count", _u32), ("watchpoint_count", _u32), ("reserved", _u32),
        ("breakpoints", _u32 * BREAKPOINTS), ("watchpoints", CellWatchpoint * WATCHPOINTS),
    )  # fmt: skip


COUNTERS: Final = (
    "signals", "shadow_fills", "shadow_upgrades", "shadow_drops", "address_space_loads", "ldt_writes", "mode_switches",
    "translated_blocks", "translated_instructions", "translated_bytes", "cache_flushes", "code_writes",
    "neglected",
)  # fmt: skip


class CellCounters(ctypes.Structure):
    """struct hv_cell_counters."""

    _fields_ = (*((name, _u64) for name in COUNTERS), ("reserved", _u64 * 19))


class CellCode(ctypes.Structure):
    """struct hv_cell_code."""

    _fields_ = (("count", _u32), ("entry", _u32 * CODE_PAGES))


SITES: Final = 1 << 17


class CellSite(ctypes.Structure):
    """struct hv_cell_site."""

    _fields_ = (
        ("executions", _u64), ("address", _u32), ("replacement", _u8), ("length", _u8), ("code", _u8 * 15), ("reserved", _u8 * 3),
    )  # fmt: skip


class CellCensus(ctypes.Structure):
    """struct hv_cell_census."""

    _fields_ = (
        ("command", _u32), ("count", _u32), ("full", _u32), ("blocks", _u32), ("pages", _u32), ("reserved", _u32), ("instructions", _u64),
        ("site", CellSite * SITES),
    )  # fmt: skip


_PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "hv_cell_create": (_pointer, [_pointer, _int, ctypes.c_uint, _pointer, _u64]),
    "hv_cell_add_region": (_bool, [_pointer, _u64, _u64, _u64, _u32, _bool]),
    "hv_cell_forget_taken": (None, [_pointer]),
    "hv_cell_add_taken": (None, [_pointer, _u64, _u64]),
    "hv_cell_set_cpuid": (_bool, [_pointer, _pointer, _u32]),
    "hv_cell_tell_tsc": (None, [_pointer, _u64]),
    "hv_cell_count_tsc": (None, [_pointer, _u64]),
    "hv_cell_tsc_stands": (ctypes.c_bool, [_pointer]),
    "hv_cell_tsc_at_zero": (_u64, [_pointer]),
    "hv_cell_descriptor": (_int, [_pointer, _int]),
    "hv_cell_counters": (_pointer, [_pointer]),
    "hv_cell_code": (_pointer, [_pointer]),
    "hv_cell_sandbox": (_u32, [_pointer]),
    "hv_cell_console": (_pointer, [_pointer]),
    "hv_cell_make_ahead": (None, [_pointer, _int]),
    "hv_cell_started": (None, [_pointer, _int]),
    "hv_cell_run": (_int, [_pointer]),
    "hv_cell_exit": (_pointer, [_pointer]),
    "hv_cell_cpu": (_pointer, [_pointer]),
    "hv_cell_change_cpu": (None, [_pointer]),
    "hv_cell_set_cpu": (None, [_pointer]),
    "hv_cell_debug": (_pointer, [_pointer]),
    "hv_cell_change_debug": (None, [_pointer]),
    "hv_cell_memory_changed": (None, [_pointer, ctypes.c_char_p, _u32]),
    "hv_cell_ask_census": (_bool, [_pointer, _int]),
    "hv_cell_census": (_pointer, [_pointer]),
    "hv_cell_kick": (None, [_pointer]),
    "hv_cell_end": (None, [_pointer]),
    "hv_cell_free": (None, [_pointer]),
    "hv_host_cpuid": (_bool, [_u32, _u32, _pointer]),
    "hv_host_tsc": (_u64, []),
    "hv_host_ns": (_u64, []),
}


def _loaded(kind: type[ctypes.CDLL]) -> Any:
    try:
        lib = kind(str(LIBRARY))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise HvdError("NATIVE_MISSING", path=LIBRARY, problem=error) from error
    return lib


@functools.cache
def library() -> Any:
    """libhv.so for what takes less time than giving the interpreter's lock up and getting it back. Raises HvdError NATIVE_MISSING."""
    return _loaded(ctypes.PyDLL)


@functools.cache
def blocking_library() -> Any:
    """The same for hv_cell_run, hv_cell_end and hv_cell_free, which take as long as they take."""
    return _loaded(ctypes.CDLL)
