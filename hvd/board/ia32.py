"""The form of a saved vcpu, "ia32/1": what any backend can restore that executes x86 (docs/snapshots.md).

A JSON object; numbers are unsigned, of at most 64 bits.

    format            "ia32/1"
    registers         rax rcx rdx rbx rsp rbp rsi rdi r8..r15 rip rflags
    control           cr0 cr2 cr3 cr4 cr8 efer xcr0 pkru
    segments          es cs ss ds fs gs ldtr tr: [selector, base, limit, attributes], the hidden part included; attributes are bits
                      8-23 of the descriptor's second word, in place
    tables            gdtr idtr: [base, limit]
    debug             dr0 dr1 dr2 dr3 dr6 dr7
    msrs              {"0xc0000081": value, ...}: those that a guest can set and that are not above. One that is missing has its
                      value after a reset; one that the restoring backend has not must be 0
    xsave             hex: an XSAVE area in the standard form (Intel SDM volume 1, 13.4), 576 bytes for x87 and SSE and more for what
                      XCR0 has beyond
    halted            in HLT, waiting for an interrupt
    interrupt_shadow  the instruction before was STI or MOV SS
    nmi_blocked       an NMI is being served
    nmi_pending       an NMI was raised and is not taken yet
    interrupt         vector of an interrupt that was injected and not taken yet, or null
    tsc_at_zero       what the time stamp counter would have been when the board's virtual clock was 0, with the frequency that the guest
                      was told (cpuid's leaf 0x15), modulo 2**64; 0 if it is missing
    cpuid             [[leaf, subleaf, eax, ebx, ecx, edx], ...]: what the guest was told, and goes on to be told

The time stamp counter is the board's virtual clock, the local APIC and its base are the board's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from hvd.board import saved

FORMAT: Final = "ia32/1"
GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
REGISTERS: Final = (*GENERAL, "rip", "rflags")
CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "pkru")
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
TABLES: Final = ("gdtr", "idtr")
DEBUG: Final = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
XSAVE_BYTES: Final = 576
MOST_XSAVE_BYTES: Final = 16 << 10
MOST_CPUID: Final = 4096
MASK: Final = (1 << 64) - 1
_FIELDS: Final = frozenset(
    {"format", "registers", "control", "segments", "tables", "debug", "msrs", "xsave", "halted", "interrupt_shadow", "nmi_blocked",
     "nmi_pending", "interrupt", "tsc_at_zero", "cpuid"}
)  # fmt: skip
_WIDTHS: Final = {"cr0": 32, "cr4": 32, "cr8": 4, "pkru": 32, "dr6": 32, "dr7": 32}


class Cpuid(NamedTuple):
    """One row of `cpuid`."""

    leaf: int
    subleaf: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class Saved(NamedTuple):
    """A state that was read back: all there, every number within its register."""

    registers: dict[str, int]
    control: dict[str, int]
    segments: dict[str, tuple[int, int, int, int]]
    tables: dict[str, tuple[int, int]]
    debug: dict[str, int]
    msrs: dict[int, int]
    xsave: bytes
    halted: bool
    interrupt_shadow: bool
    nmi_blocked: bool
    nmi_pending: bool
    interrupt: int | None
    tsc_at_zero: int
    cpuid: list[Cpuid]


# Least and greatest frequency of a time stamp counter that a guest goes on with.
TSC_HZ: Final = (1_000_000, 100_000_000_000)


def tsc_hz(cpuid: Mapping[tuple[int, int], Sequence[int]]) -> int:
    """The frequency of the time stamp counter that a guest was told in leaf 0x15; 0 = none."""
    denominator, numerator, crystal_hz, _ = cpuid.get((0x15, 0), (0, 0, 0, 0))
    return crystal_hz * numerator // denominator if denominator else 0


def _group(state: Mapping[str, Any], name: str, members: tuple[str, ...]) -> dict[str, int]:
    group = dict(state[name])
    saved.only(group, frozenset(members), name)
    return {member: saved.number(group, member, (1 << _WIDTHS.get(member, 64)) - 1) for member in members}


def parse(state: Mapping[str, Any]) -> Saved:
    """Raises ValueError, KeyError, TypeError for what is no state of this form."""
    if state.get("format") != FORMAT:
        raise ValueError(f"the vcpu's state has the form {str(state.get('format'))[:80]!r}, not {FORMAT!r}")
    saved.only(state, _FIELDS, "a vcpu")
    segments = {}
    for name in SEGMENTS:
        selector, base, limit, attributes = state["segments"][name]
        fields = {"selector": selector, "base": base, "limit": limit, "attributes": attributes}
        segments[name] = (
            saved.number(fields, "selector", 0xFFFF),
            saved.number(fields, "base", MASK),
            saved.number(fields, "limit", 0xFFFF_FFFF),
            saved.number(fields, "attributes", 0xFFFF_FFFF),
        )
    tables = {}
    for name in TABLES:
        base, limit = state["tables"][name]
        fields = {"base": base, "limit": limit}
        tables[name] = (saved.number(fields, "base", MASK), saved.number(fields, "limit", 0xFFFF_FFFF))
    msrs = {}
    for text, value in dict(state["msrs"]).items():
        number = saved.number({"msr": int(text, 16)}, "msr", 0xFFFF_FFFF)
        msrs[number] = saved.number({text: value}, text, MASK)
    rows = list(state["cpuid"])
    if len(rows) > MOST_CPUID:
        raise ValueError(f"cpuid has {len(rows)} rows")
    cpuid = [Cpuid(*saved.numbers({"cpuid": row}, "cpuid", len(Cpuid._fields), 0xFFFF_FFFF)) for row in rows]
    xsave = saved.data(state, "xsave", b"", most=MOST_XSAVE_BYTES)
    if len(xsave) < XSAVE_BYTES:
        raise ValueError(f"xsave has {len(xsave)} bytes")
    return Saved(
        _group(state, "registers", REGISTERS),
        _group(state, "control", CONTROL),
        segments,
        tables,
        _group(state, "debug", DEBUG),
        msrs,
        xsave,
        saved.flag(state, "halted"),
        saved.flag(state, "interrupt_shadow"),
        saved.flag(state, "nmi_blocked"),
        saved.flag(state, "nmi_pending"),
        saved.optional(state, "interrupt", 0xFF),
        saved.optional(state, "tsc_at_zero", MASK) or 0,
        cpuid,
    )
