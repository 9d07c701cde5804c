"""The vcpu's registers through Unicorn's public API: their names, which of them a guest may begin with, what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from unicorn import x86_const as x86

from hvd.board.vcpu import EntryState

EFER_MSR: Final = 0xC000_0080
CR0_PE, CR0_PG, CR4_PAE, EFER_LME = 1, 1 << 31, 1 << 5, 1 << 8

GENERAL: Final = {
    f"r{name}": getattr(x86, f"UC_X86_REG_E{name.upper()}") for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
} | {"rip": x86.UC_X86_REG_EIP, "rflags": x86.UC_X86_REG_EFLAGS}
CONTROL: Final = {f"cr{n}": getattr(x86, f"UC_X86_REG_CR{n}") for n in (0, 2, 3, 4)}
SEGMENTS: Final = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("cs", "ds", "es", "fs", "gs", "ss")}
TABLES: Final = {"gdtr": x86.UC_X86_REG_GDTR, "idtr": x86.UC_X86_REG_IDTR}
SYSTEM_SEGMENTS: Final = {"tr": x86.UC_X86_REG_TR, "ldtr": x86.UC_X86_REG_LDTR}


def wide(name: str) -> str:
    """eax -> rax, eip -> rip, eflags -> rflags: the loaders use the names of their protocol."""
    return f"r{name[1:]}" if name.startswith("e") else name


def refusal(state: EntryState) -> str:
    """Why a guest cannot begin here; empty when it can."""
    if state.efer & EFER_LME or state.cr4 & CR4_PAE:
        return "the guest begins in 64-bit mode or with PAE"
    if not state.cr0 & CR0_PE:
        return "the guest begins in real mode"
    if state.cr0 & CR0_PG:
        return "the guest begins with paging on"
    for name in SEGMENTS:
        segment = state.segments.get(name)
        if segment is not None and (segment.base or segment.limit != 0xFFFF_FFFF):
            return f"the guest begins with a {name} that is not flat"
    return ""


def read_registers(uc: Any, code: Callable[[int, int], bytes]) -> dict[str, int]:
    """cs .. gs: base and limit are those of the descriptor that the selector names now, as the public API shows no others.
    code: reads the guest's linear memory (address, length), fewer bytes where it ends."""
    found: dict[str, int] = {name: uc.reg_read(register) for name, register in (GENERAL | CONTROL).items()}
    found |= {f"r{n}": 0 for n in range(8, 16)} | {"cr8": 0}
    found["efer"] = uc.reg_read(x86.UC_X86_REG_MSR, EFER_MSR)
    for name, register in SEGMENTS.items():
        selector = uc.reg_read(register)
        base, limit = _describe(uc, code, selector)
        found |= {name: selector, f"{name}.base": base, f"{name}.limit": limit}
    for name, register in SYSTEM_SEGMENTS.items():
        selector, base, limit, _ = uc.reg_read(register)
        found |= {name: selector, f"{name}.base": base, f"{name}.limit": limit}
    for name, register in TABLES.items():
        _, base, limit, _ = uc.reg_read(register)
        found |= {f"{name}.base": base, f"{name}.limit": limit}
    return found


def _describe(uc: Any, code: Callable[[int, int], bytes], selector: int) -> tuple[int, int]:
    """Base and limit of a segment of the GDT; (0, 0) where there is none."""
    _, table, limit, _ = uc.reg_read(x86.UC_X86_REG_GDTR)
    if not selector & ~3 or selector & 4 or selector | 7 > limit:
        return 0, 0
    raw = code(table + (selector & ~7), 8)
    if len(raw) < 8:
        return 0, 0
    low, high = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")
    size = low & 0xFFFF | high & 0xF0000
    return low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000, size << 12 | 0xFFF if high >> 23 & 1 else size
