"""What CPUID tells a guest of this board, whatever executes it (Intel SDM volume 2A, "CPUID").

One virtual processor with a local APIC and without the neighbours that a package would have, under a hypervisor, with
the frequencies of its TSC and of its APIC timer in leaf 0x15, so that Linux calibrates nothing (arch/x86/kernel/tsc.c,
native_calibrate_tsc).
The instruction-set features are those of the way of executing: this module only takes away what the board has not.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple


class Leaf(NamedTuple):
    eax: int
    ebx: int
    ecx: int
    edx: int


# (leaf, subleaf) -> (eax, ebx, ecx, edx)
Native = Callable[[int, int], tuple[int, int, int, int]]

VENDOR = b"GenuineIntel"
SIGNATURE = b"hvdhvdhvdhvd"
BRAND = b"hvd virtual CPU"
MAX_BASIC = 0x16
MAX_EXTENDED = 0x8000_0008
HYPERVISOR, HYPERVISOR_TIMING = 0x4000_0000, 0x4000_0010
CRYSTAL_HZ = 1_000_000_000  # the APIC timer's input clock (board/native/lapic.c)
APIC, ARAT, TSC_DEADLINE = 1 << 9, 1 << 2, 1 << 24
# Haswell: what Unicorn's default processor calls itself; taken when the native one is not of family 6.
FAMILY_6_MODEL = 0x000306C3
HYPERVISOR_BIT = 1 << 31
INVARIANT_TSC = 1 << 8
ZERO = Leaf(0, 0, 0, 0)


def _bits(*names: int) -> int:
    return sum(1 << bit for bit in names)


# Features that need hardware this board has not, or MSRs that no backend provides: (leaf, register) -> bits taken away.
ABSENT: dict[tuple[int, str], int] = {
    # monitor, ds-cpl, vmx, smx, eist, tm2, cnxt-id, sdbg, xtpr, pdcm, pcid, dca, x2apic, tsc-deadline
    (1, "ecx"): _bits(3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 17, 18, 21, 24),
    # psn, ds, acpi, htt, tm, pbe
    (1, "edx"): _bits(18, 21, 22, 28, 29, 31),
    # sgx, hle, pqm, invpcid, rtm, mpx, pqe, intel-pt
    (7, "ebx"): _bits(2, 4, 10, 11, 12, 14, 15, 25),
    # waitpkg, sgx-lc, keylocker, tme, bus-lock-detect
    (7, "ecx"): _bits(5, 13, 23, 24, 30),
    # all but fsrm and arch-capabilities, which whoever reports it provides: the rest reports speculation controls, which are MSRs
    (7, "edx"): 0xFFFF_FFFF & ~_bits(4, 29),
    # svm, extended apic, os-visible workarounds, ibs, skinit, wdt, lwp, topology, performance counters
    (0x8000_0001, "ecx"): _bits(2, 3, 9, 10, 12, 13, 15, 22, 23, 24, 28),
}
# Features whose report depends on CR4 and XCR0 (OSXSAVE, OSPKE, the sizes of leaf 0xD), and what builds upon them.
FOLLOWS_CR4: dict[tuple[int, str], int] = {
    (1, "ecx"): _bits(12, 26, 27, 28, 29),  # fma, xsave, osxsave, avx, f16c
    (7, "ebx"): _bits(5, 16, 17, 21, 26, 27, 28, 30, 31),  # avx2, avx-512
    (7, "ecx"): _bits(1, 3, 4, 6, 9, 10, 11, 12, 14),  # avx-512, pku, ospke, vaes, vpclmulqdq
    (0x8000_0001, "ecx"): _bits(11, 16),  # xop, fma4
}


def leaves(
    native: Native, tsc_hz: int, *, follows_cr4: bool = False, tsc_deadline: bool = False
) -> dict[tuple[int, int], Leaf]:
    """The whole table: (leaf, subleaf) -> registers. A leaf that is not in it reads as zeroes.

    native: what the way of executing reports by itself. tsc_hz: ticks of the guest's TSC per second of its virtual
    clock. follows_cr4: the way of executing itself keeps OSXSAVE, OSPKE and leaf 0xD in
    step with CR4 and XCR0; without it XSAVE and all that needs it are left out, and the table holds at all times.
    tsc_deadline: the guest's TSC counts the nanoseconds of its virtual clock, and IA32_TSC_DEADLINE reaches the board.
    """

    def kept(leaf: int, register: str, value: int) -> int:
        value &= ~ABSENT.get((leaf, register), 0)
        return value if follows_cr4 else value & ~FOLLOWS_CR4.get((leaf, register), 0)

    def features(leaf: int, subleaf: int = 0) -> Leaf:
        eax, ebx, ecx, edx = native(leaf, subleaf)
        return Leaf(eax, kept(leaf, "ebx", ebx), kept(leaf, "ecx", ecx), kept(leaf, "edx", edx))

    table: dict[tuple[int, int], Leaf] = {(0, 0): _text(MAX_BASIC, VENDOR, (0, 2, 1))}
    one = features(1)
    # One logical processor, APIC id 0; the cache line size stays.
    model = one.eax if one.eax >> 8 & 0xF == 6 else FAMILY_6_MODEL
    ecx = one.ecx | HYPERVISOR_BIT | (TSC_DEADLINE if tsc_deadline else 0)
    table[1, 0] = Leaf(model, one.ebx & 0xFF00 | 1 << 16, ecx, one.edx | APIC)
    table[2, 0] = Leaf(*native(2, 0))
    for subleaf in range(8):  # caches: one core, one thread
        cache = Leaf(*native(4, subleaf))
        if not cache.eax & 0x1F:
            break
        table[4, subleaf] = cache._replace(eax=cache.eax & 0x3FFF)
    table[6, 0] = Leaf(ARAT, 0, 0, 0)  # the APIC timer never stops
    table[7, 0] = features(7)._replace(eax=0)
    if follows_cr4:
        for subleaf in range(64):
            area = Leaf(*native(0xD, subleaf))
            if any(area):
                table[0xD, subleaf] = area
    table[0x15, 0] = Leaf(*_ratio(tsc_hz), CRYSTAL_HZ, 0)
    mhz = tsc_hz // 1_000_000
    table[0x16, 0] = Leaf(mhz, mhz, 100, 0)

    table[HYPERVISOR, 0] = _text(HYPERVISOR_TIMING, SIGNATURE, (0, 1, 2))
    # As VMware's and KVM's timing leaf: kHz of the TSC and of the local APIC's bus clock.
    table[HYPERVISOR_TIMING, 0] = Leaf(tsc_hz // 1000, CRYSTAL_HZ // 1000, 0, 0)

    table[0x8000_0000, 0] = Leaf(MAX_EXTENDED, 0, 0, 0)
    table[0x8000_0001, 0] = features(0x8000_0001)
    for index in range(3):
        words = BRAND.ljust(48, b"\0")[16 * index : 16 * index + 16]
        table[0x8000_0002 + index, 0] = Leaf(*(int.from_bytes(words[at : at + 4], "little") for at in range(0, 16, 4)))
    table[0x8000_0006, 0] = Leaf(*native(0x8000_0006, 0))
    table[0x8000_0007, 0] = Leaf(0, 0, 0, INVARIANT_TSC)
    table[0x8000_0008, 0] = Leaf(native(0x8000_0008, 0)[0] & 0xFFFF, 0, 0, 0)
    return table


def _ratio(tsc_hz: int) -> tuple[int, int]:
    """Denominator and numerator of the TSC's frequency over the crystal's, to a few millionths: Linux multiplies the
    crystal's kHz by the numerator, in 32 bits."""
    greatest = ((1 << 32) - 1) // (CRYSTAL_HZ // 1000)
    ratio = Fraction(tsc_hz, CRYSTAL_HZ).limit_denominator(max(greatest * CRYSTAL_HZ // tsc_hz - 1, 1))
    return ratio.denominator, ratio.numerator


def _text(eax: int, text: bytes, order: tuple[int, int, int]) -> Leaf:
    """Twelve characters in ebx, ecx and edx; order says which four go where."""
    words = [int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8)]
    return Leaf(eax, *(words[index] for index in order))
