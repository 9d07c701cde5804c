"""A Unicorn by its public API, and what CPUID tells its guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from unicorn import UC_ARCH_X86, UC_MODE_32

from unicorn import Uc  # type: ignore[attr-defined]  # isort: skip
from unicorn import x86_const as x86

# Beside what the board has not: SYSENTER and SYSCALL, which need the CPU's inside here, 64-bit mode, and the time stamp counter, which
# is the host's, of a frequency that nobody knows.
CPUID_TAKEN_AWAY: Final = {
    (1, "edx"): 1 << 4 | 1 << 11,
    (0x8000_0001, "edx"): 1 << 4 | 1 << 11 | 1 << 27 | 1 << 29,
    (0x8000_0007, "edx"): 1 << 8,
}
TSC_LEAVES: Final = frozenset({0x15, 0x16, 0x4000_0010})
UNKNOWN_TSC_HZ: Final = 1_000_000_000  # told in TSC_LEAVES only


def open_unicorn() -> Any:
    """Its Python package is not typed throughout."""
    make: Any = Uc
    return make(UC_ARCH_X86, UC_MODE_32)


def cpuid_table(cpuid: Callable[..., dict[Any, Any]]) -> dict[tuple[int, int], tuple[int, ...]]:
    """The board's table, made from what the CPUID instruction of this Unicorn answers."""
    uc = open_unicorn()
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, b"\x0f\xa2\xf4")
    names = ("EAX", "EBX", "ECX", "EDX")
    registers = [getattr(x86, f"UC_X86_REG_{name}") for name in names]

    def native(leaf: int, subleaf: int) -> tuple[int, ...]:
        uc.reg_write(registers[0], leaf)
        uc.reg_write(registers[2], subleaf)
        uc.emu_start(0, 2)
        return tuple(uc.reg_read(register) for register in registers)

    table: dict[tuple[int, int], tuple[int, ...]] = {}
    for key, values in cpuid(native, UNKNOWN_TSC_HZ).items():
        if key[0] in TSC_LEAVES:
            continue
        taken = [CPUID_TAKEN_AWAY.get((key[0], name.lower()), 0) for name in names]
        table[key] = tuple(value & ~bits for value, bits in zip(values, taken, strict=True))
    return table
