"""Pages that the host has ahead of the guest's first touch (GuestMemory.take): the kernel's window shows them many at a time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from machine_run import Final, run_to_end

from hvd.backends.rewriting.backend import BACKEND
from hvd.board.memory import GuestMemory

AVAILABILITY = next(engine for engine in BACKEND.engines() if engine.name == "translate").availability
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")

TOUCHED, PAGES, PAGE = 0x500000, 512, 4096
# Pages of 4 MiB, which are mapped one to one; each page that it adds to must be zero.
SOURCE = f"""
    .code32
    movl $0xe3, 0x200000
    movl $0x4000e3, 0x200004
    movl $0x200000, %eax; movl %eax, %cr3
    movl %cr4, %eax; orl $0x10, %eax; movl %eax, %cr4
    movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0
    xorl %eax, %eax
    movl ${TOUCHED:#x}, %ebx; movl ${PAGES}, %ecx
1:  orl (%ebx), %eax
    movl %ebx, (%ebx)
    addl ${PAGE}, %ebx
    decl %ecx; jnz 1b
    movw $0xf4, %dx; outl %eax, %dx
"""


def run(tmp_path: Path, length: int) -> Final:
    (tmp_path / "touch.S").write_text(SOURCE)
    subprocess.run(["as", "--32", "-o", "touch.o", "touch.S"], cwd=tmp_path, check=True, timeout=30)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "touch.o", "touch.bin"], cwd=tmp_path, check=True, timeout=30)

    def take(memory: GuestMemory) -> None:
        if length:
            memory.take(TOUCHED, length)

    return run_to_end(tmp_path / "touch.bin", backend="rewriting", engine="translate", prepare=take)


def test_pages_that_were_taken_cost_few_page_faults(tmp_path: Path) -> None:
    without, taken, half = (run(tmp_path, length) for length in (0, PAGES * PAGE, PAGES * PAGE // 2))
    for final in (without, taken, half):
        assert final.end.exit_code == 0, final.end
        for page in range(TOUCHED, TOUCHED + PAGES * PAGE, PAGE):
            assert int.from_bytes(final.memory[page : page + 4], "little") == page
    assert without.page_faults - taken.page_faults > PAGES * 3 // 4
    assert without.page_faults - half.page_faults > PAGES * 3 // 8
