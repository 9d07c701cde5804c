"""The CPUID leaves, as a guest would read them."""

from __future__ import annotations

import struct

import pytest

from hvd.board.cpuid import ABSENT, FOLLOWS_CR4, leaves

ONES = 0xFFFF_FFFF
TSC_HZ = 2_596_992_000


def everything(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """A processor that has every feature; leaf 4 describes three caches of a package with 8 cores."""
    if leaf == 4:
        return (0xFC00_C121 + subleaf if subleaf < 3 else 0, 1, 2, 3)
    return (ONES, ONES, ONES, ONES)


def nothing(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    return (0, 0, 0, 0)


@pytest.mark.parametrize("native", [everything, nothing])
def test_names(native: object) -> None:
    table = leaves(native, TSC_HZ)  # type: ignore[arg-type]
    eax, ebx, ecx, edx = table[0, 0]
    assert (eax, struct.pack("<III", ebx, edx, ecx)) == (0x16, b"GenuineIntel")
    eax, ebx, ecx, edx = table[0x4000_0000, 0]
    assert (eax, struct.pack("<III", ebx, ecx, edx)) == (0x4000_0010, b"hvdhvdhvdhvd")
    brand = b"".join(struct.pack("<IIII", *table[0x8000_0002 + n, 0]) for n in range(3))
    assert brand.rstrip(b"\0") == b"hvd virtual CPU"
    assert table[0x8000_0000, 0].eax == 0x8000_0008


def test_the_tsc_frequency() -> None:
    table = leaves(nothing, TSC_HZ)
    denominator, numerator, crystal_hz, _ = table[0x15, 0]
    # As Linux's native_calibrate_tsc, which wants the crystal in kHz.
    assert crystal_hz // 1000 * numerator // denominator == pytest.approx(TSC_HZ // 1000, rel=1e-5)
    assert table[0x16, 0].eax == 2596
    assert table[0x4000_0010, 0][:2] == (TSC_HZ // 1000, 1_000_000)
    assert table[0x8000_0007, 0].edx & 1 << 8  # invariant


@pytest.mark.parametrize("tsc_hz", [1_000_000_000, 2_596_000_000, 4_999_990_000])
def test_linux_reckons_in_32_bits(tsc_hz: int) -> None:
    denominator, numerator, crystal_hz, _ = leaves(nothing, tsc_hz)[0x15, 0]
    assert crystal_hz // 1000 * numerator < 1 << 32
    assert crystal_hz * numerator // denominator == pytest.approx(tsc_hz, rel=1e-5)


def test_the_local_apic() -> None:
    """The board has it, whatever the way of executing says of its own; the deadline timer only where it is reached."""
    table = leaves(nothing, TSC_HZ)
    assert table[1, 0].edx == 1 << 9 and not table[1, 0].ecx & 1 << 24
    assert table[6, 0].eax == 1 << 2  # the timer runs always
    assert leaves(nothing, TSC_HZ, tsc_deadline=True)[1, 0].ecx & 1 << 24


def test_features_are_the_native_ones_less_what_the_board_lacks() -> None:
    table = leaves(everything, TSC_HZ)
    one = table[1, 0]
    assert one.edx & (1 << 9 | 1 << 28) == 1 << 9  # apic, not htt
    assert one.ecx & (1 << 3 | 1 << 5 | 1 << 21 | 1 << 24) == 0  # monitor, vmx, x2apic, tsc-deadline
    assert one.ecx & 1 << 31  # hypervisor
    assert one.edx & 0b1_0001 == 0b1_0001  # fpu, tsc
    assert one.ebx == 1 << 16 | 0xFF00  # one logical processor, APIC id 0
    assert one.eax >> 8 & 0xF == 6
    for (leaf, register), bits in ABSENT.items():
        assert not getattr(table[leaf, 0], register) & bits
    for (leaf, register), bits in FOLLOWS_CR4.items():
        assert not getattr(table[leaf, 0], register) & bits
    assert not any(leaf == 0xD for leaf, _ in table)


def test_nothing_is_invented() -> None:
    table = leaves(nothing, TSC_HZ)
    assert (table[1, 0].edx, table[1, 0].ecx) == (1 << 9, 1 << 31)
    assert table[7, 0] == (0, 0, 0, 0)
    assert table[0x8000_0001, 0][1:] == (0, 0, 0)


def test_xsave_for_those_who_follow_cr4() -> None:
    table = leaves(everything, TSC_HZ, follows_cr4=True)
    assert table[1, 0].ecx & (1 << 26 | 1 << 28) == 1 << 26 | 1 << 28
    assert table[0xD, 0] == (ONES, ONES, ONES, ONES)


def test_one_core_whatever_the_package_has() -> None:
    table = leaves(everything, TSC_HZ)
    assert [leaf for leaf in table if leaf[0] == 4] == [(4, 0), (4, 1), (4, 2)]
    assert table[4, 0] == (0x121, 1, 2, 3)
    assert (0xB, 0) not in table
