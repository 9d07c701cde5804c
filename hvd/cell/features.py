"""What CPUID tells a guest of the native cell, where it is emulated: no more than the cell keeps apart for each guest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hvd.cell import process
from hvd.errors import HvdError


def _bits(*names: int) -> int:
    return sum(1 << bit for bit in names)


# What a guest is told, in CPUID where it is emulated: no more than the cell keeps apart for it. In native code CPUID shows the host's own
# (docs/trap.md).
FEATURES: Final[dict[tuple[int, str], int]] = {
    (1, "ecx"): 0,
    # fpu, de, pse, tsc, msr, pae, cx8, pge, cmov, pat, clflush, mmx, fxsr, sse, sse2
    (1, "edx"): _bits(0, 2, 3, 4, 5, 6, 8, 13, 15, 16, 19, 23, 24, 25, 26),
    (0x8000_0001, "ecx"): 0,
    (0x8000_0001, "edx"): _bits(20),  # nx
}
# IA32_TSC_ADJUST and IA32_ARCH_CAPABILITIES are there (hvd/cell/msr.c). With the first, and an invariant TSC, Linux trusts the TSC without
# comparing it with another clock twice a second. The second says that Meltdown is no concern, since what is a kernel's is never mapped where its
# programs run, and spares guests two page tables for each process.
TSC_ADJUST: Final = 1 << 1  # of leaf 7, EBX
ARCH_CAPABILITIES: Final = 1 << 29  # and EDX
FEATURE_LEAVES: Final = frozenset(leaf for leaf, _ in FEATURES)


def features(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """The host's own, cut down to FEATURES."""
    eax, ebx, ecx, edx = process.native_cpuid(leaf, subleaf)
    if leaf in FEATURE_LEAVES:
        return eax, ebx, ecx & FEATURES[leaf, "ecx"], edx & FEATURES[leaf, "edx"]
    return (0, TSC_ADJUST, 0, ARCH_CAPABILITIES) if leaf == 7 else (eax, ebx, ecx, edx)


@functools.cache
def told(cpuid: Callable[..., dict[Any, Any]]) -> Mapping[tuple[int, int], Sequence[int]]:
    """What hvd.board.cpuid.leaves makes of it: the same for every guest, and made once, by a spare runner ahead of its guest."""
    return cpuid(features, process.tsc_hz())


# A spare runner makes a vcpu and puts it away again (hvd.runner.spare): the process of a cell leaves nothing behind.
REHEARSED: Final = True


def preload() -> None:
    """What every vcpu of this backend loads, ahead of the first (hvd.runner.template). What fails here fails there too, and is told then."""
    with contextlib.suppress(HvdError):
        process.preload()
