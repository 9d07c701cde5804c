"""Does this build of Unicorn run a guest right under the shim? `python -m hvd.backends.emulation.selfcheck`, run once by the daemon.

A wrong build does not crash: it corrupts guests. So before the first guest, a small one (selfcheck.S) runs through what goes wrong:
a page fault's error code, CR2 and address, an invalid opcode, timer interrupts, HLT, and a long computation that is stopped every
millisecond and must come out right. In a process of its own: a build that differs may crash.
"""

from __future__ import annotations

import json
import struct
import sys
import threading
from pathlib import Path
from typing import Final

from hvd.backends.emulation.vcpu import create
from hvd.board.cpuid import leaves
from hvd.board.hot import HotBoard
from hvd.board.loaders import load
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import ExitReason
from hvd.errors import HvdError
from hvd.trace.points import BackendId

PROGRAM: Final = Path(__file__).with_name("selfcheck.bin")
BASE, RESULT, TABLE, ITERATIONS = 0x100000, 0x103000, 0x110000, 400_000
FAULTING = BASE + 0x5F  # the first of the two faulting instructions; the second follows 7 bytes later
MEMORY_BYTES = 4 << 20
KICK_SECONDS = 0.001
ATTEMPTS = 50


def expected_hash() -> int:
    """The guest's computation, once more."""
    table: dict[int, int] = {}
    value = 1
    for _ in range(ITERATIONS):
        value = (value * 1664525 + 1013904223) & 0xFFFF_FFFF
        slot = value & 0xFFFC
        table[slot] = (table.get(slot, 0) + value) & 0xFFFF_FFFF
        value ^= table[slot]
    return value


def run() -> list[str]:
    """What is wrong, empty = nothing. Raises HvdError when the guest cannot even start.

    On a busy host the kicking thread may not run once while the guest does, which says nothing about the build: again, then.
    """
    for _ in range(ATTEMPTS):
        problems, kicks = run_once()
        if problems or kicks:
            return problems
    return [f"it was not interrupted once in {ATTEMPTS} runs"]


def run_once() -> tuple[list[str], int]:
    """What is wrong, and how often it was interrupted."""
    board = HotBoard(BackendId.EMULATION)
    with GuestMemory(MEMORY_BYTES) as memory:
        vcpu = create(board, memory, leaves, "native")
        vcpu.enter(load(memory, PROGRAM, flat_load_address=BASE).entry)
        board.start_clock()
        over = threading.Event()

        def kick() -> None:
            while not over.wait(KICK_SECONDS):
                vcpu.kick()

        kicker = threading.Thread(target=kick)
        kicker.start()
        kicks = 0
        try:
            while (exit_ := vcpu.run()).reason is ExitReason.INTERRUPTED:
                kicks += 1
        finally:
            over.set()
            kicker.join()
        error_code, cr2, fault_eip, ud_eip, ticks, value = struct.unpack("<6I", memory.read(RESULT, 24))
        vcpu.close()
    checks = (
        ("how it ended", exit_.reason.name, "HALT"),
        ("error code of the page fault", error_code, 2),
        ("CR2 of the page fault", hex(cr2), hex(0xC00123)),
        ("address of the page fault", hex(fault_eip), hex(FAULTING)),
        ("address of the invalid opcode", hex(ud_eip), hex(FAULTING + 7)),
        ("at least 3 timer ticks", ticks >= 3, True),
        ("the computation", hex(value), hex(expected_hash())),
    )
    return [f"{what}: {found}, not {right}" for what, found, right in checks if found != right], kicks


def main() -> None:
    try:
        problems = run()
    except HvdError as error:
        problems = [error.message]
    json.dump(problems, sys.stdout)


if __name__ == "__main__":
    main()
