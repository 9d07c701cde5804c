"""The board's local APIC in the native engine's registers: its MSRs, CR8, non-maskable interrupts, CPUID."""

from __future__ import annotations

import re
import time

import pytest
from native_rig import Start

from hvd.backends.emulation.backend import BACKEND

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")

# Enabled, spurious vector 0xff. In 64-bit mode no displacement reaches the registers.
APIC = ".set APIC, 0xfee00000; movl $0x1ff, APIC + 0xf0;"
APIC_64 = "movl $0xfee00000, %r15d; movl $0x1ff, 0xf0(%r15);"


def for_bits(source: str, bits: int) -> str:
    """APIC + N and iretW as the mode has them."""
    if bits == 32:
        return APIC + source.replace("iretW", "iretl")
    return APIC_64 + re.sub(r"APIC \+ (0x[0-9a-f]+)", r"\1(%r15)", source).replace("iretW", "iretq")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("prefix", ["", ".byte 0x66;"])
def test_apic_base(start: Start, bits: int, prefix: str) -> None:
    """RDMSR and WRMSR go on behind the instruction, with or without prefixes, and leave the other registers alone."""
    rig = start(f"""
        movl $0x1b, %ecx; movl $7, %esi
        {prefix} rdmsr
        movl %eax, %ebx; movl %edx, %edi
        andl $~0x800, %eax
        {prefix} wrmsr
        rdmsr
        movl %eax, %ebp
        movl $1, %eax; cpuid; movl %edx, %esi
        finish %ebp
        finish %edi
        finish %esi
        movl $0x1b, %ecx; movl $0xfee00800, %eax; xorl %edx, %edx; wrmsr
        movl $1, %eax; cpuid
        finish %edx
    """, bits)  # fmt: skip
    assert rig.finish() == 0xFEE00100  # disabled
    assert rig.finish() == 0
    assert not rig.finish() & 1 << 9
    assert rig.finish() & 1 << 9
    assert rig.vcpu.registers()["rbx"] & 0xFFFFFFFF  # of CPUID by now


def test_a_disabled_apic_is_not_there(start: Start) -> None:
    rig = start(f"""{APIC}
        msr 0x1b, $0xfee00000
        movl APIC + 0x30, %ebx
        msr 0x1b, $0xfee00800
        movl APIC + 0x30, %esi
        movl APIC + 0xf0, %edi
        finish %ebx; finish %esi; finish %edi
    """)
    assert [rig.finish(), rig.finish(), rig.finish()] == [0xFFFFFFFF, 0x50014, 0xFF]


def test_other_msrs_are_unicorns(start: Start) -> None:
    rig = start("msr 0x174, $0x1234; rdmsr; finish %eax; movl $0x10000, %ecx; rdmsr; finish %eax")
    assert [rig.finish(), rig.finish()] == [0x1234, 0]


@pytest.mark.parametrize("bits", [32, 64])
def test_tsc_deadline(start: Start, bits: int) -> None:
    source = """
        gate 0x50, tick
        movl $0x40050, APIC + 0x320
        xorl %ebx, %ebx
        rdtsc
        addl $5000000, %eax
        adcl $0, %edx
        movl %eax, %esi
        movl $0x6e0, %ecx
        wrmsr
        rdmsr
        subl %esi, %eax
        movl %eax, %ebp
        sti
    1:  testl %ebx, %ebx
        jz 1b
        cli
        rdtsc
        subl %esi, %eax
        movl %eax, %edi
        rdmsr
        movl %eax, %esi
        finish %ebp; finish %esi; finish %edi
    tick: incl %ebx; movl $0, APIC + 0xb0; iretW
    """
    rig = start(for_bits(source, bits), bits)
    begin = time.monotonic()
    assert rig.finish() == 0  # reads as written
    assert time.monotonic() - begin >= 0.005
    assert rig.finish() == 0  # disarmed
    assert rig.finish() < 1 << 31  # not early


def test_a_deadline_in_the_past_is_due_at_once(start: Start) -> None:
    rig = start(f"""{APIC}
        gate 0x50, tick
        movl $0x40050, APIC + 0x320
        xorl %ebx, %ebx
        msr 0x6e0, $1
        sti; nop; cli
        finish %ebx
    tick: incl %ebx; movl $0, APIC + 0xb0; iretl
    """)
    assert rig.finish() == 1


def test_the_deadline_is_ignored_in_other_modes(start: Start) -> None:
    rig = start(f"{APIC} movl $0x50, APIC + 0x320; msr 0x6e0, $1; rdmsr; finish %eax; finish APIC + 0x250")
    assert [rig.finish(), rig.finish()] == [0, 0]


def test_cr8_and_the_task_priority_are_one(start: Start) -> None:
    source = """
        movq $9, %rax
        movq %rax, %cr8
        movl APIC + 0x80, %ebx
        movl $0x35, APIC + 0x80
        movq %cr8, %rsi
        finish %ebx; finish %esi
        finish APIC + 0x80
    """
    rig = start(for_bits(source, 64), 64)
    assert [rig.finish(), rig.finish(), rig.finish()] == [0x90, 3, 0x35]
    assert rig.vcpu.registers()["cr8"] == 3


def test_cr8_lets_an_interrupt_in(start: Start) -> None:
    source = """
        gate 0x51, message
        xorl %ebx, %ebx
        movq $5, %rax; movq %rax, %cr8
        sti
        movl $0x40051, APIC + 0x300
        movl $200, %ecx
    1:  decl %ecx; jnz 1b
        movl %ebx, %esi
        movq $4, %rax; movq %rax, %cr8
        nop
        cli
        finish %esi; finish %ebx
    message: incl %ebx; movl $0, APIC + 0xb0; iretW
    """
    rig = start(for_bits(source, 64), 64)
    assert [rig.finish(), rig.finish()] == [0, 1]


def test_halt_is_woken_by_the_apic_timer(start: Start) -> None:
    rig = start(f"""{APIC}
        gate 0x50, tick
        movl $0x50, APIC + 0x320
        movl $0xb, APIC + 0x3e0
        xorl %ebx, %ebx
        movl $3000000, APIC + 0x380
        sti; hlt
        cli
        finish %ebx
    tick: incl %ebx; movl $0, APIC + 0xb0; iretl
    """)
    begin = time.monotonic()
    assert rig.finish() == 1
    assert time.monotonic() - begin >= 0.003


def test_a_non_maskable_interrupt_to_itself(start: Start) -> None:
    """With interrupts off; while it is handled another one waits for its IRET."""
    rig = start(f"""{APIC}
        gate 2, nmi
        xorl %ebx, %ebx
        movl $0x40400, APIC + 0x300
        nop
        jmp 1f
    1:  movl %ebx, %esi
        cmpl $2, %ebx
        jb 1b
        finish %ebx
    nmi: incl %ebx
        cmpl $1, %ebx
        jne 2f
        movl $0x40400, APIC + 0x300
        movl $100, %ecx
    3:  decl %ecx; jnz 3b
        cmpl $1, %ebx
        je 2f
        movl $99, %ebx
    2:  iretl
    """)
    assert rig.finish() == 2


def test_holes_around_the_apics(start: Start) -> None:
    rig = start("movl 0xfee01000, %ebx; movl 0xfec01000, %esi; movl 0xfed00000, %edi; finish %ebx; finish %esi; finish %edi")
    assert {rig.finish(), rig.finish(), rig.finish()} == {0xFFFFFFFF}


def test_reset_takes_the_apic_back(start: Start) -> None:
    rig = start(f"{APIC} finish APIC + 0xf0; movl $0x20, APIC + 0x80; finish APIC + 0x80")
    assert [rig.finish(), rig.finish()] == [0x1FF, 0x20]
    rig.board.reset()
    rig.load()
    assert rig.vcpu.registers()["cr8"] == 0
    assert rig.board.mmio_read(0xFEE000F0, 4) == 0xFF
