"""A vcpu that is entered anew, as after a reset, has nothing of its former life: neither what was mapped nor what was translated."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator

import pytest

from hvd.backends import all_backends
from hvd.backends.emulation.backend import BACKEND
from hvd.board import cpuid
from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, ExitReason, Segment, Vcpu
from hvd.trace.points import BackendId

RAM = 16 << 20
PORT = 0xF4
DIRECTORY, DATA, CODE = 0x2000, 0x400010, 0x400100  # the page of the last two lies at ELSEWHERE, with paging
ELSEWHERE = 0x400000
HERE_BYTES, THERE_BYTES = 0x1111_1111, 0x2222_2222
READ = 0x1000
CR0, CR0_PAGING, CR4_LARGE_PAGES = 0x11, 0x8000_0011, 0x10
NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
ENGINES = {
    "emulation": ("emulation", "native"),
    "trap": ("trap", ""),
    "translate": ("rewriting", "translate"),
    "breakpoint": ("rewriting", "breakpoint"),
}


@pytest.fixture(params=ENGINES)
def vcpu(request: pytest.FixtureRequest) -> Iterator[Vcpu]:
    backend, engine = ENGINES[request.param]
    availability = NATIVE if backend == "emulation" else all_backends()[backend].probe()
    if not availability.available:
        pytest.skip(f"{availability.reason}; {availability.remedy}")
    create = importlib.import_module(f"hvd.backends.{backend}.vcpu").create
    board = HotBoard(BackendId[backend.upper()])
    board.claim(range(PORT, PORT + 4))
    with GuestMemory(RAM) as memory:
        large = 0x83
        memory.write(DIRECTORY, struct.pack("<2I", large, (ELSEWHERE + 0x400000) | large))
        for offset, data, result in ((0, HERE_BYTES, 1), (ELSEWHERE, THERE_BYTES, 2)):
            memory.write(DATA + offset, struct.pack("<I", data))
            memory.write(CODE + offset, b"\xb8" + struct.pack("<I", result) + bytes((0xE7, PORT, 0xF4)))  # MOV EAX; OUT; HLT
        memory.write(READ, b"\xa1" + struct.pack("<I", DATA) + bytes((0xE7, PORT, 0xF4)))
        made = create(board, memory, cpuid.leaves, engine)
        board.start_clock()
        yield made
        made.close()
    board.close()


def told(vcpu: Vcpu, eip: int, paging: bool) -> int:
    """What the code there, entered anew, writes to the port."""
    vcpu.memory_changed(0, RAM)
    flat = {name: Segment(0x10, 0, 0xFFFF_FFFF, 0xC09300) for name in ("ds", "es", "fs", "gs", "ss")}
    vcpu.enter(
        EntryState(
            registers={"rip": eip, "rsp": 0x8000, "rflags": 2}, cr0=CR0_PAGING if paging else CR0, cr3=DIRECTORY if paging else 0,
            cr4=CR4_LARGE_PAGES if paging else 0, segments=flat | {"cs": Segment(8, 0, 0xFFFF_FFFF, 0xC09B00)}, gdt=(0x3000, 0xFF), idt=(0x4000, 0),
        )
    )  # fmt: skip
    exit_ = vcpu.run()
    assert exit_.reason == ExitReason.PORT_OUT
    return exit_.value


def test_what_was_mapped_is_not_mapped_any_more(vcpu: Vcpu) -> None:
    for _ in range(3):
        assert (told(vcpu, READ, True), told(vcpu, CODE, True)) == (THERE_BYTES, 2)
        assert (told(vcpu, READ, False), told(vcpu, CODE, False)) == (HERE_BYTES, 1)
