"""A cell's whole state in the form of hvd.board.ia32, and back."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any, Final

from hvd.board import ia32, saved
from hvd.board.vcpu import FPU_BYTES
from hvd.cell.area import GENERAL, SEGMENTS
from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.cell.vcpu import CellVcpu

# Under paravirt: as ia32.FORMAT, and "user_limit". Such a guest's kernel counts on the page of its virtual processor, which only this
# backend has.
PARAVIRT_FORMAT: Final = "ia32-paravirt/1"
MASK: Final = 0xFFFF_FFFF
EFER_NXE: Final = 0x800
X87_AND_SSE: Final = 3
MXCSR_OFFSET: Final = 24
MXCSR_BITS: Final = 0xFFFF  # others raise #GP when they are loaded
DEBUG_REGISTERS: Final = {name: int(name[2:]) for name in ia32.DEBUG}
# MSR -> field of struct hv_cpu. Others read as 0 and swallow writes.
MSRS: Final = {
    0x174: "sysenter_cs", 0x175: "sysenter_esp", 0x176: "sysenter_eip", 0x1A0: "misc_enable", 0x277: "pat", 0x2FF: "mtrr_default",
}  # fmt: skip
# Features of CPUID that must not go away under a guest: leaf, register's index.
FEATURES: Final = ((1, 2), (1, 3), (7, 1), (7, 2), (7, 3), (0x8000_0001, 2), (0x8000_0001, 3))
TSC: Final = 0x10


def save(vcpu: CellVcpu) -> dict[str, Any]:
    """At an INTERRUPTED exit."""
    cpu, registers = vcpu.cpu, vcpu.registers()
    control = registers | {"xcr0": 1, "pkru": 0}
    present = struct.pack("<Q", X87_AND_SSE).ljust(ia32.XSAVE_BYTES - FPU_BYTES, b"\0")
    own = {"format": PARAVIRT_FORMAT, "user_limit": cpu.user_limit} if vcpu.paravirtual else {"format": ia32.FORMAT}
    return own | {
        "registers": {name: registers[name] for name in ia32.REGISTERS},
        "control": {name: control[name] for name in ia32.CONTROL},
        "segments": {
            name: [registers[name], registers[f"{name}.base"], registers[f"{name}.limit"], registers[f"{name}.attributes"]]
            for name in ia32.SEGMENTS
        },
        "tables": {name: [registers[f"{name}.base"], registers[f"{name}.limit"]] for name in ia32.TABLES},
        "debug": {name: cpu.dr[index] for name, index in DEBUG_REGISTERS.items()},
        "msrs": {hex(number): getattr(cpu, name) for number, name in MSRS.items()},
        "xsave": (bytes(cpu.fxsave) + present).hex(),
        "halted": bool(cpu.halted),
        "interrupt_shadow": bool(cpu.interrupt_shadow),
        "nmi_blocked": bool(cpu.nmi_blocked),
        "nmi_pending": bool(cpu.nmi_pending),
        "interrupt": cpu.injected_vector if cpu.injected else None,
        "tsc_at_zero": vcpu.tsc_at_zero(),
        "cpuid": [[leaf, subleaf, *row] for (leaf, subleaf), row in sorted(vcpu.cpuid.items())],
    }


def restore(vcpu: CellVcpu, document: dict[str, Any]) -> None:
    """Raises as Vcpu.restore."""
    user_limit = 0
    if vcpu.paravirtual:
        if document.get("format") != PARAVIRT_FORMAT:
            raise _mismatch("form of the vcpu's state", str(document.get("format"))[:80], PARAVIRT_FORMAT)
        user_limit = saved.number(document, "user_limit", MASK) & ~0xFFF
        document = {name: value for name, value in document.items() if name != "user_limit"} | {"format": ia32.FORMAT}
    state = ia32.parse(document)
    told: dict[tuple[int, int], tuple[int, ...]] = {(row.leaf, row.subleaf): row[2:] for row in state.cpuid}
    _check(state, told, vcpu.cpuid)
    vcpu.set_cpuid(told)
    cpu = vcpu.new_state()
    cpu.user_limit = user_limit
    for index, name in enumerate(GENERAL):
        cpu.r[index] = state.registers[name]
    cpu.eip, cpu.eflags = state.registers["rip"], state.registers["rflags"] | 2
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        setattr(cpu, name, state.control[name])
    for index, name in enumerate(SEGMENTS):
        segment = cpu.segment[index]
        segment.selector, segment.base, segment.limit, segment.attributes = state.segments[name]
    cpu.gdt.base, cpu.gdt.limit = state.tables["gdtr"][0], state.tables["gdtr"][1] & 0xFFFF
    cpu.idt.base, cpu.idt.limit = state.tables["idtr"][0], state.tables["idtr"][1] & 0xFFFF
    # CPL is that of SS (SDM vol. 3A, 5.5, and vol. 3C, 24.4.1).
    cpu.cpl = cpu.segment[SEGMENTS.index("ss")].attributes >> 13 & 3 if state.control["cr0"] & 1 else 0
    for name, index in DEBUG_REGISTERS.items():
        cpu.dr[index] = state.debug[name]
    for number, value in state.msrs.items():
        if number == TSC:  # tsc_at_zero says it
            continue
        if number in MSRS:
            setattr(cpu, MSRS[number], value)
        elif value and number not in _MTRRS:
            raise _mismatch(f"MSR {number:#x}", hex(value), "0, since this backend has not that MSR")
    image = bytearray(state.xsave[:FPU_BYTES])
    struct.pack_into("<I", image, MXCSR_OFFSET, struct.unpack_from("<I", image, MXCSR_OFFSET)[0] & MXCSR_BITS)
    ctypes.memmove(cpu.fxsave, bytes(image), FPU_BYTES)
    cpu.halted, cpu.interrupt_shadow = state.halted, state.interrupt_shadow
    cpu.nmi_blocked, cpu.nmi_pending = state.nmi_blocked, state.nmi_pending
    cpu.injected, cpu.injected_vector = state.interrupt is not None, state.interrupt or 0
    vcpu.set_state(cpu)
    vcpu.count_tsc(state.tsc_at_zero)


# Kept by other backends, and without meaning here: memory types are the host's business.
_MTRRS: Final = frozenset({*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x17A})


def _check(state: ia32.Saved, told: dict[tuple[int, int], tuple[int, ...]], own: dict[tuple[int, int], tuple[int, ...]]) -> None:
    """Can it go on in 32-bit mode, on a processor that is told as `own`? Raises HvdError SNAPSHOT_MISMATCH."""
    if state.control["efer"] & ~EFER_NXE:
        raise _mismatch("mode", f"64-bit (EFER {state.control['efer']:#x})", "32-bit")
    wide = [
        *(name for name, value in state.registers.items() if value > MASK),
        *(name for name in ("cr0", "cr2", "cr3", "cr4") if state.control[name] > MASK),
        *(name for name, segment in state.segments.items() if segment[1] > MASK),
        *(name for name, table in state.tables.items() if table[0] > MASK),
        *(name for name, value in state.debug.items() if value > MASK),
    ]
    if wide:
        raise _mismatch(f"register {wide[0]}", "wider than 32 bits", "one of 32 bits")
    if state.control["xcr0"] & ~X87_AND_SSE:
        raise _mismatch("XCR0", hex(state.control["xcr0"]), "x87 and SSE only")
    for leaf, index in FEATURES:
        had, offered = (table.get((leaf, 0), (0, 0, 0, 0))[index] for table in (told, own))
        if lacking := had & ~offered:
            what = f"CPUID.{leaf:#x}:{('EAX', 'EBX', 'ECX', 'EDX')[index]}"
            raise _mismatch(what, f"{had:#x}", f"{offered:#x}, which lacks {lacking:#x}")
    if not ia32.TSC_HZ[0] <= ia32.tsc_hz(told) <= ia32.TSC_HZ[1]:
        raise _mismatch("time stamp counter's frequency", f"{ia32.tsc_hz(told)} Hz", f"{ia32.TSC_HZ[0]} to {ia32.TSC_HZ[1]} Hz")


def _mismatch(what: str, found: str, needed: str) -> HvdError:
    return HvdError("SNAPSHOT_MISMATCH", name="of the vcpu", what=what, found=found, needed=needed)
