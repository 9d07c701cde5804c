"""The hole in x86: instructions that show or change what belongs to the kernel, and that a processor at CPL 3 executes without a trap.

Robin and Irvine, "Analysis of the Intel Pentium's Ability to Support a Secure Virtual Machine Monitor" (USENIX Security 2000), table 3;
CPUID, RDTSC and XGETBV beside it. Loads of segment registers are not here: those with the guest's own selectors trap. What each shows
was measured on a Linux host in compatibility mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvd.cell.decoder import Instruction, Map


@dataclass(frozen=True, slots=True)
class Sensitive:
    """name: the mnemonic. effect: what it shows or changes wrongly when a kernel executes it at CPL 3."""

    name: str
    effect: str


_STORES = "stores the selector of the host's double of the segment instead of the guest's own"
_CHECKS = "looks into the host's descriptor tables and with CPL 3 instead of the guest's tables with CPL 0"
PUSHF: Final = Sensitive("pushf", "shows the host's interrupt flag, which is always on, and IOPL 0 instead of the guest's")
POPF: Final = Sensitive("popf", "leaves the interrupt flag as it is: interrupts are switched neither on nor off, and IOPL stays")
PUSH_SEGMENT: Final = Sensitive("push segment", _STORES)
MOV_SEGMENT: Final = Sensitive("mov from segment", _STORES)
SGDT: Final = Sensitive("sgdt", "stores address and limit of the host's GDT, or zeros")
SIDT: Final = Sensitive("sidt", "stores address and limit of the host's IDT, or zeros")
SLDT: Final = Sensitive("sldt", "stores the host's LDT selector, or zero")
STR: Final = Sensitive("str", "stores the host's task register, or zero")
SMSW: Final = Sensitive("smsw", "stores the low half of the host's CR0")
LAR: Final = Sensitive("lar", _CHECKS)
LSL: Final = Sensitive("lsl", _CHECKS)
VERR: Final = Sensitive("verr", _CHECKS)
VERW: Final = Sensitive("verw", _CHECKS)
CPUID: Final = Sensitive("cpuid", "shows the host's processor and its features instead of the guest's")
RDTSC: Final = Sensitive("rdtsc", "shows the host's time stamp counter instead of the guest's")
RDTSCP: Final = Sensitive("rdtscp", "shows the host's time stamp counter and processor number instead of the guest's")
XGETBV: Final = Sensitive("xgetbv", "shows the host's XCR0 instead of the guest's")
FAR: Final = Sensitive("far transfer", "does not trap when the selector is one of the host's own: it goes to the host's segment")

BY_NAME: Final = {
    row.name: row
    for row in (PUSHF, POPF, PUSH_SEGMENT, MOV_SEGMENT, SGDT, SIDT, SLDT, STR, SMSW, LAR, LSL, VERR, VERW, CPUID, RDTSC, RDTSCP, XGETBV, FAR)
}

# Selectors of code segments that a Linux host has, and that code at CPL 3 may go to: 32 bits, 64 bits (arch/x86/include/asm/segment.h).
HOST_CODE_SELECTORS: Final = frozenset({0x20, 0x23, 0x30, 0x33})

_ONE: Final[dict[int, Sensitive]] = {
    0x9C: PUSHF, 0x9D: POPF, 0x06: PUSH_SEGMENT, 0x0E: PUSH_SEGMENT, 0x16: PUSH_SEGMENT, 0x1E: PUSH_SEGMENT, 0x8C: MOV_SEGMENT,
}  # fmt: skip
_TWO: Final[dict[int, Sensitive]] = {
    0x02: LAR, 0x03: LSL, 0x31: RDTSC, 0xA2: CPUID, 0xA0: PUSH_SEGMENT, 0xA8: PUSH_SEGMENT,
}  # fmt: skip
_GROUP_6: Final[dict[int, Sensitive]] = {0: SLDT, 1: STR, 4: VERR, 5: VERW}
_GROUP_7: Final[dict[int, Sensitive]] = {0: SGDT, 1: SIDT}  # with a memory operand
_GROUP_7_REGISTER: Final[dict[int, Sensitive]] = {0xF9: RDTSCP, 0xD0: XGETBV}  # by ModRM


def _group_7(instruction: Instruction) -> Sensitive | None:
    if instruction.reg == 4:
        return SMSW
    if instruction.mod == 3:
        return _GROUP_7_REGISTER.get(instruction.modrm)
    return _GROUP_7.get(instruction.reg)


_SPECIAL: Final[dict[tuple[int, int], Callable[[Instruction], Sensitive | None]]] = {
    (Map.TWO, 0x00): lambda instruction: _GROUP_6.get(instruction.reg),
    (Map.TWO, 0x01): _group_7,
    (Map.ONE, 0xEA): lambda instruction: FAR if instruction.second in HOST_CODE_SELECTORS else None,
    (Map.ONE, 0x9A): lambda instruction: FAR if instruction.second in HOST_CODE_SELECTORS else None,
}
# For a first look: most instructions are in none of these.
CANDIDATES: Final = frozenset({(Map.ONE, opcode) for opcode in _ONE} | {(Map.TWO, opcode) for opcode in _TWO} | set(_SPECIAL))


def sensitive(instruction: Instruction) -> Sensitive | None:
    """Which one it is; None: it shows nothing, or it traps."""
    key = instruction.map, instruction.opcode
    if (special := _SPECIAL.get(key)) is not None:
        return special(instruction)
    if key[0] == Map.ONE:
        return _ONE.get(key[1])
    return _TWO.get(key[1]) if key[0] == Map.TWO else None
