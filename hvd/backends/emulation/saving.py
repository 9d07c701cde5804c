"""The native vcpu's whole state in the form of hvd.board.ia32, and back (save.c)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

from hvd.board import ia32
from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.backends.emulation.vcpu import NativeVcpu

_u8, _u32, _u64, _pointer = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
ATTRIBUTES: Final = 0x00FF_FF00
DEBUG_REGISTERS: Final = {name: int(name[2:]) for name in ia32.DEBUG}
X87_AND_SSE: Final = 3
TSC: Final = 0x10
TSC_DEADLINE: Final = 1 << 24  # of CPUID.1:ECX: it counts ticks of the guest's own counter


class _More(ctypes.Structure):
    """struct hv_more_state (save.c)."""

    _fields_ = (
        ("dr", _u64 * 8), ("xcr0", _u64), ("pkru", _u32), ("halted", _u8), ("interrupt_shadow", _u8), ("nmi_blocked", _u8),
        ("nmi_pending", _u8), ("injected", _u8), ("injected_vector", _u8), ("xsave", _u8 * ia32.XSAVE_BYTES),
    )  # fmt: skip


PROTOTYPES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "hv_emulator_get_more": (None, [_pointer, _pointer]),
    "hv_emulator_set_more": (None, [_pointer, _pointer]),
    "hv_emulator_get_msr": (ctypes.c_bool, [_pointer, _u32, _pointer, _pointer]),
    "hv_emulator_set_msr": (ctypes.c_bool, [_pointer, _u32, _u64]),
    "hv_emulator_set_tsc": (None, [_pointer, _u64, _u64]),
}


def _msrs(vcpu: NativeVcpu) -> dict[str, int]:
    found: dict[str, int] = {}
    number, value = _u32(), _u64()
    while vcpu.library.hv_emulator_get_msr(vcpu.emulator, len(found), ctypes.byref(number), ctypes.byref(value)):
        found[hex(number.value)] = value.value
    return found


def save(vcpu: NativeVcpu) -> dict[str, Any]:
    """At an INTERRUPTED exit."""
    more = _More()
    vcpu.library.hv_emulator_get_more(vcpu.emulator, ctypes.byref(more))
    registers = vcpu.registers()
    control = registers | {"xcr0": more.xcr0, "pkru": more.pkru}
    segments = {
        name: [
            registers[name], registers[f"{name}.base"], registers[f"{name}.limit"], registers[f"{name}.attributes"] & ATTRIBUTES
        ]
        for name in ia32.SEGMENTS
    }  # fmt: skip
    return {
        "format": ia32.FORMAT,
        "registers": {name: registers[name] for name in ia32.REGISTERS},
        "control": {name: control[name] for name in ia32.CONTROL},
        "segments": segments,
        "tables": {name: [registers[f"{name}.base"], registers[f"{name}.limit"]] for name in ia32.TABLES},
        "debug": {name: more.dr[index] for name, index in DEBUG_REGISTERS.items()},
        "msrs": _msrs(vcpu),
        "xsave": bytes(more.xsave).hex(),
        "halted": bool(more.halted),
        "interrupt_shadow": bool(more.interrupt_shadow),
        "nmi_blocked": bool(more.nmi_blocked),
        "nmi_pending": bool(more.nmi_pending),
        "interrupt": more.injected_vector if more.injected else None,
        "tsc_at_zero": vcpu.tsc_at_zero,
        "cpuid": [[leaf, subleaf, *row] for (leaf, subleaf), row in sorted(vcpu.cpuid.items())],
    }


def restore(vcpu: NativeVcpu, document: dict[str, Any]) -> None:
    """Raises as Vcpu.restore."""
    state = ia32.parse(document)
    if len(state.xsave) > ia32.XSAVE_BYTES and state.control["xcr0"] & ~X87_AND_SSE:
        raise _mismatch("XCR0", hex(state.control["xcr0"]), "x87 and SSE only")
    vcpu.apply_cpuid({(row.leaf, row.subleaf): row[2:] for row in state.cpuid})
    vcpu.set_tsc(state.tsc_at_zero)
    raw = vcpu.new_state()
    for index, name in enumerate(ia32.GENERAL):
        raw.regs[index] = state.registers[name]
    raw.rip, raw.rflags = state.registers["rip"], state.registers["rflags"]
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        setattr(raw, name, state.control[name])
    for index, name in enumerate(ia32.SEGMENTS):
        segment = raw.segs[index]
        segment.selector, segment.base, segment.limit, segment.flags = state.segments[name]
    raw.gdt_base, raw.gdt_limit = state.tables["gdtr"]
    raw.idt_base, raw.idt_limit = state.tables["idtr"]
    more = _More(
        xcr0=state.control["xcr0"],
        pkru=state.control["pkru"],
        halted=state.halted,
        interrupt_shadow=state.interrupt_shadow,
        nmi_blocked=state.nmi_blocked,
        nmi_pending=state.nmi_pending,
        injected=state.interrupt is not None,
        injected_vector=state.interrupt or 0,
    )
    for name, index in DEBUG_REGISTERS.items():
        more.dr[index] = state.debug[name]
    ctypes.memmove(more.xsave, state.xsave, ia32.XSAVE_BYTES)
    vcpu.set_state(raw)
    for number, value in state.msrs.items():
        if number == TSC:  # tsc_at_zero says it
            continue
        if not vcpu.library.hv_emulator_set_msr(vcpu.emulator, number, value) and value:
            raise _mismatch(f"MSR {number:#x}", hex(value), "0, since this backend has not that MSR")
    vcpu.library.hv_emulator_set_more(vcpu.emulator, ctypes.byref(more))


def _mismatch(what: str, found: str, needed: str) -> HvdError:
    return HvdError("SNAPSHOT_MISMATCH", name="of the vcpu", what=what, found=found, needed=needed)


# What a guest may have been told of a backend and does not need here. IA32_ARCH_CAPABILITIES (hvd/cell/msr.c) is an MSR that is only
# read; unknown ones read 0 here, which claims nothing.
UNCLAIMED: Final = {(7, "edx"): 1 << 29}


def check_cpuid(
    saved: dict[tuple[int, int], tuple[int, ...]],
    own: dict[tuple[int, int], tuple[int, ...]],
    feature_words: tuple[tuple[int, int, str], ...],
) -> None:
    """May a guest that was told `saved` go on here, where `own` is offered? Raises HvdError SNAPSHOT_MISMATCH."""
    for _, leaf, register in feature_words:
        index = ("eax", "ebx", "ecx", "edx").index(register)
        told, offered = (table.get((leaf, 0), (0, 0, 0, 0))[index] for table in (saved, own))
        if lacking := told & ~(offered | UNCLAIMED.get((leaf, register), 0)):
            raise _mismatch(f"CPUID.{leaf:#x}:{register.upper()}", f"{told:#x}", f"{offered:#x}, which lacks {lacking:#x}")
    told_hz, own_hz = ia32.tsc_hz(saved), ia32.tsc_hz(own)
    if told_hz != own_hz and (saved.get((1, 0), (0, 0, 0, 0))[2] & TSC_DEADLINE or not ia32.TSC_HZ[0] <= told_hz <= ia32.TSC_HZ[1]):
        raise _mismatch("time stamp counter's frequency", f"{told_hz} Hz", f"{own_hz} Hz")
