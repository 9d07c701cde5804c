"""Make Unicorn forget that it raised an exception, by its public API.

Its CPU keeps the last contributory exception (env->old_exception) until its own delivery is done, which never runs here: the next one
would be reported as a double fault, the one after that as nothing at all. The field is part of the saved context only. So the context
of a CPU that never had an exception is restored, and every register is written back.
"""

from __future__ import annotations

from typing import Any, Final

from unicorn import x86_const as x86

KEEPS_EXCEPTION: Final = frozenset({0, 8, 10, 11, 12, 13, 14})


def _registers(*names: str) -> tuple[int, ...]:
    return tuple(getattr(x86, f"UC_X86_REG_{name}") for name in names)


# In the order in which they are written: tables before the selectors that they describe, CS before SS, whose level it allows.
STATE: Final = _registers(
    "GDTR", "IDTR", "LDTR", "TR", "CR4", "CR3", "CR2", "CR0", "CS", "SS", "DS", "ES", "FS", "GS",
    "EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP", "EIP", "EFLAGS",
    "DR0", "DR1", "DR2", "DR3", "DR6", "DR7",
    "FPCW", "FPSW", "FPTAG", *(f"FP{n}" for n in range(8)), "MXCSR", *(f"XMM{n}" for n in range(8)),
)  # fmt: skip


def forget_exception(uc: Any, pristine: Any) -> None:
    """pristine: uc.context_save() before the first instruction. Between two emu_starts only."""
    values = [uc.reg_read(register) for register in STATE]
    level = uc.reg_read(x86.UC_X86_REG_CS) & 3
    uc.context_restore(pristine)
    if level == 3:
        _enter_ring_3(uc)
    for register, value in zip(STATE, values, strict=True):
        uc.reg_write(register, value)


def _enter_ring_3(uc: Any) -> None:
    """SS can only be loaded with a selector of the present privilege level, and nothing but SS changes that. In virtual-8086 mode, which
    a CPU without protection enters by the flag alone, every selector means ring 3."""
    cr0 = uc.reg_read(x86.UC_X86_REG_CR0)
    uc.reg_write(x86.UC_X86_REG_CR0, cr0 & ~1)
    uc.reg_write(x86.UC_X86_REG_EFLAGS, 1 << 17 | 2)
    uc.reg_write(x86.UC_X86_REG_SS, 0)
    uc.reg_write(x86.UC_X86_REG_EFLAGS, 2)
    uc.reg_write(x86.UC_X86_REG_CR0, cr0)
