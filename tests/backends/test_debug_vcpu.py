"""Breakpoints, watchpoints and single steps of the native engine, beside those that the guest itself sets."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from native_rig import EXIT_PORT, PORT, SCRATCH, STACK, Rig, assemble

from hvd.backends import all_backends
from hvd.backends.emulation.backend import BACKEND
from hvd.board.vcpu import DebugCause, Exit, ExitReason, Watchpoint

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability

Start = Callable[..., Rig]
NONE: frozenset[int] = frozenset()


@pytest.fixture(params=["emulation", "trap", "rewriting"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    backend: str = request.param
    availability = NATIVE if backend == "emulation" else all_backends()[backend].probe()
    if not availability.available:
        pytest.skip(f"{availability.reason}; {availability.remedy}")
    rigs: list[Rig] = []

    def make(source: str, bits: int = 32, labels: str = "", **more: int) -> Rig:
        """labels: their addresses become rig.at["name"]."""
        if bits == 64 and backend != "emulation":
            pytest.skip("32-bit guests only")
        names = labels.split()
        image = assemble(f"{source}\n .balign 4\n .long {', '.join([*names, '0'])}", tmp_path, bits)
        rig = Rig(image, bits, backend=backend, **more)
        words = struct.unpack(f"<{len(names)}I", image[-4 - 4 * len(names) : -4])
        rig.at = dict(zip(names, words, strict=True))  # type: ignore[attr-defined]
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.close()


def step(rig: Rig) -> Exit:
    """One instruction; accesses to devices on the way are answered with zero."""
    rig.vcpu.set_debug(NONE, frozenset(), step=True)
    with rig.kicked_after(20):
        exit_ = rig.vcpu.run()
        while exit_.reason in (ExitReason.PORT_IN, ExitReason.PORT_OUT, ExitReason.MMIO_READ, ExitReason.MMIO_WRITE):
            exit_.value = 0
            exit_ = rig.vcpu.run()
    assert (exit_.reason, exit_.value) == (ExitReason.DEBUG, DebugCause.STEP), exit_
    return exit_


def go(rig: Rig, breakpoints: set[int] | frozenset[int] = NONE, *watchpoints: Watchpoint) -> Exit:
    rig.vcpu.set_debug(frozenset(breakpoints), frozenset(watchpoints), step=False)
    with rig.kicked_after(20):
        return rig.vcpu.run()


def watch(address: int, length: int, mode: str = "w") -> Watchpoint:
    return Watchpoint(address, length, "r" in mode, "w" in mode)


def register(rig: Rig, name: str) -> int:
    return rig.vcpu.registers()[name]


# ---- breakpoints


@pytest.mark.parametrize("bits", [32, 64])
def test_a_breakpoint_stops_before_its_instruction(start: Start, bits: int) -> None:
    rig = start("movl $7, %ebx; here: addl $1, %ebx; finish %ebx", bits, "here")
    exit_ = go(rig, {rig.at["here"]})
    assert (exit_.reason, exit_.value, exit_.address) == (ExitReason.DEBUG, DebugCause.BREAKPOINT, rig.at["here"])
    assert (register(rig, "rip"), register(rig, "rbx")) == (rig.at["here"], 7)
    assert rig.memory.read(rig.at["here"], 1) != b"\xcc", "guest memory is as it was"
    assert step(rig).rip == rig.at["here"] + 3
    assert go(rig).value == 8


def test_a_breakpoint_in_a_loop_is_hit_each_time(start: Start) -> None:
    rig = start("movl $3, %ecx; again: nop; loop again; finish $1", labels="again")
    for left in (3, 2, 1):
        exit_ = go(rig, {rig.at["again"]})
        assert (exit_.reason, exit_.value) == (ExitReason.DEBUG, DebugCause.BREAKPOINT)
        assert register(rig, "rcx") == left
        step(rig)
    assert go(rig, {rig.at["again"]}).reason is ExitReason.PORT_OUT


def test_a_breakpoint_set_at_the_present_instruction_stops_at_once_and_a_step_leaves_it(start: Start) -> None:
    rig = start("here: nop; nop; finish $1", labels="here")
    # The prologue comes first.
    assert go(rig, {rig.at["here"]}).rip == rig.at["here"]
    assert go(rig, {rig.at["here"]}).rip == rig.at["here"]
    rig.vcpu.set_debug(frozenset({rig.at["here"]}), frozenset(), step=True)
    assert rig.vcpu.run().rip == rig.at["here"] + 1


def test_breakpoints_outlive_a_reset(start: Start) -> None:
    rig = start("here: nop; finish $1", labels="here")
    assert go(rig, {rig.at["here"]}).rip == rig.at["here"]
    rig.load()
    assert rig.vcpu.run().rip == rig.at["here"]


def test_without_breakpoints_nothing_stops(start: Start) -> None:
    rig = start("here: movl $1000, %ecx; again: loop again; movl $1, SCRATCH; finish $9", labels="here again")
    assert go(rig, {rig.at["here"]}, watch(SCRATCH, 4)).reason is ExitReason.DEBUG
    assert go(rig).value == 9


# ---- steps


def test_steps_go_instruction_by_instruction(start: Start) -> None:
    rig = start("here: movl $1, %eax; movl $2, %ebx; jmp far; nop; far: nop; finish $1", labels="here far")
    go(rig, {rig.at["here"]})
    assert [step(rig).rip for _ in range(3)] == [rig.at["here"] + 5, rig.at["here"] + 10, rig.at["far"]]


@pytest.mark.parametrize(
    ("vector", "instruction"), [(0x30, "int $0x30"), (3, "int3"), (6, "ud2"), (13, "movw %ax, %ds"), (0, "divl %ebx")]
)
def test_a_step_over_a_trap_ends_at_its_handler(start: Start, vector: int, instruction: str) -> None:
    rig = start(
        f"""
        gate {vector}, handler
        movl $0x7777, %eax; xorl %ebx, %ebx; xorl %edx, %edx
    here: {instruction}
        finish $2
    handler: nop; finish $1
    """,
        labels="here handler",
    )
    go(rig, {rig.at["here"]})
    assert step(rig).rip == rig.at["handler"]
    assert step(rig).rip == rig.at["handler"] + 1


def test_a_step_over_a_system_call_ends_at_its_entry_and_back_behind_it(start: Start) -> None:
    rig = start(
        """
        msr 0xC0000081, $0, 0x00180008      # STAR
        msr 0xC0000082, $entry              # LSTAR
        msr 0xC0000084, $0x300              # FMASK
        pushq $0x33; pushq $USER_STACK; pushq $2; pushq $0x2b; pushq $user; iretq
    user: nop
    here: syscall
    behind: nop; jmp behind
    entry: nop; sysretq
    """,
        64,
        "here behind entry",
    )
    go(rig, {rig.at["here"]})
    assert step(rig).rip == rig.at["entry"]
    step(rig)
    assert step(rig).rip == rig.at["behind"]


@pytest.mark.parametrize(
    "instruction", ["outl %eax, %dx", "inl %dx, %eax", "movl %eax, DEVICE", "movl DEVICE, %eax", "outsl", "insl"]
)
def test_a_step_over_an_access_to_a_device_ends_behind_it(start: Start, instruction: str) -> None:
    rig = start(
        f"movw $PORT, %dx; movl $SCRATCH, %esi; movl %esi, %edi; here: {instruction}; behind: nop; finish $1",
        labels="here behind",
    )
    go(rig, {rig.at["here"]})
    assert step(rig).rip == rig.at["behind"]


def test_a_step_of_a_repeated_instruction_is_one_round(start: Start) -> None:
    rig = start("movl $3, %ecx; movl $SCRATCH, %edi; here: rep stosl; behind: nop; finish $1", labels="here behind")
    go(rig, {rig.at["here"]})
    assert [(step(rig).rip, register(rig, "rcx")) for _ in range(3)][:2] == [(rig.at["here"], 2), (rig.at["here"], 1)]
    while register(rig, "rip") == rig.at["here"]:
        step(rig)
    assert (register(rig, "rip"), register(rig, "rcx")) == (rig.at["behind"], 0)


def test_interrupts_wait_while_the_debugger_steps(start: Start) -> None:
    rig = start(
        "gate 0x20, tick; pics 0xfe; timer 1000; sti; here: nop; jmp here; tick: incl SCRATCH; movb $0x20, %al; outb %al, $0x20; iretl",
        labels="here tick",
    )
    go(rig, {rig.at["here"]})
    assert [step(rig).rip for _ in range(40)] == [rig.at["here"] + 1, rig.at["here"]] * 20
    assert go(rig, {rig.at["tick"]}).rip == rig.at["tick"]


def test_a_step_over_hlt_waits_for_the_interrupt_and_ends_at_its_handler(start: Start) -> None:
    rig = start(
        "gate 0x20, tick; pics 0xfe; timer 20000; sti; here: hlt; jmp here; tick: movb $0x20, %al; outb %al, $0x20; iretl",
        labels="here tick",
    )
    go(rig, {rig.at["here"]})
    assert step(rig).rip == rig.at["tick"]


def test_a_kick_interrupts_a_step_that_waits(start: Start) -> None:
    rig = start("sti; here: hlt; finish $1", labels="here")
    go(rig, {rig.at["here"]})
    rig.vcpu.set_debug(NONE, frozenset(), step=True)
    rig.interrupt()


# ---- watchpoints


@pytest.mark.parametrize(
    ("instruction", "watched", "mode"),
    [
        ("movb %al, SCRATCH + 3", watch(SCRATCH + 3, 1), "w"),
        ("movw %ax, SCRATCH + 1", watch(SCRATCH + 2, 1), "w"),
        ("movl %eax, SCRATCH + 5", watch(SCRATCH + 8, 4), "w"),
        ("movl %eax, SCRATCH + 0xffe", watch(SCRATCH + 0x1000, 2), "w"),
        ("movl %eax, SCRATCH + 0xffd", watch(SCRATCH + 0xffc, 2), "w"),
        ("movl %eax, SCRATCH + 0xffc", watch(SCRATCH + 0xfff, 1), "w"),
        ("movsd %xmm0, SCRATCH", watch(SCRATCH + 4, 4), "w"),
        ("movups %xmm0, SCRATCH + 3", watch(SCRATCH + 16, 2), "w"),
        ("movl SCRATCH, %eax", watch(SCRATCH, 4, "r"), "r"),
        ("movl SCRATCH, %eax", watch(SCRATCH + 2, 1, "rw"), "r"),
        ("movl %eax, SCRATCH", watch(SCRATCH + 2, 1, "rw"), "w"),
        ("addl %eax, SCRATCH + 1", watch(SCRATCH + 1, 4), "w"),
        ("lock incl SCRATCH", watch(SCRATCH, 4), "w"),
        ("xchgl %eax, SCRATCH", watch(SCRATCH, 4), "w"),
        ("pushl %eax", watch(STACK - 4, 4), "w"),
        ("movl $SCRATCH, %edi; stosl", watch(SCRATCH, 4), "w"),
    ],
)  # fmt: skip
def test_a_watchpoint_stops_behind_the_access(start: Start, instruction: str, watched: Watchpoint, mode: str) -> None:
    setup = "movl %cr4, %eax; orl $0x200, %eax; movl %eax, %cr4; movl $0x01020304, %eax"
    rig = start(f"{setup}; movl $0, SCRATCH + 0x100; {instruction}; behind: nop; finish $1", labels="behind")
    exit_ = go(rig, set(), watched)
    assert (exit_.reason, exit_.value) == (ExitReason.DEBUG, DebugCause.WATCHPOINT), exit_
    assert register(rig, "rip") == rig.at["behind"]
    assert watched.address <= exit_.address < watched.address + watched.length
    if "addl" in instruction:
        assert rig.scratch(1) == 0x01020304, "executed once"
    assert go(rig, set(), watched).reason is ExitReason.PORT_OUT


@pytest.mark.parametrize(
    "instruction",
    [
        "movl %eax, SCRATCH + 5",
        "movb %al, SCRATCH + 9",
        "movl %eax, SCRATCH + 0xffe",
        "movl SCRATCH + 8, %eax",
        "movl %eax, SCRATCH + 0x101",
    ],
)
def test_accesses_beside_a_watchpoint_do_not_stop(start: Start, instruction: str) -> None:
    rig = start(f"{instruction}; {instruction}; finish $1")
    assert go(rig, set(), watch(SCRATCH, 4), watch(SCRATCH + 10, 2)).reason is ExitReason.PORT_OUT


def test_a_watchpoint_sees_the_frame_of_an_interrupt(start: Start) -> None:
    rig = start("gate 0x30, handler; here: int $0x30; finish $2; handler: nop; finish $1", labels="handler")
    exit_ = go(rig, set(), watch(STACK - 12, 4))
    assert (exit_.reason, exit_.value) == (ExitReason.DEBUG, DebugCause.WATCHPOINT)
    assert register(rig, "rip") == rig.at["handler"]
    assert go(rig).value == 1


def test_no_interrupt_is_lost_at_a_watchpoint(start: Start) -> None:
    rig = start(
        """
        gate 0x20, tick; pics 0xfe; timer 1193; sti
        again: incl SCRATCH; cmpl $200, SCRATCH; jb again
        cli; finish SCRATCH + 8
        tick: incl SCRATCH + 8; movb $0x20, %al; outb %al, $0x20; iretl
    """
    )
    hits = 0
    while (exit_ := go(rig, set(), watch(SCRATCH, 4))).reason is ExitReason.DEBUG:
        hits += 1
    assert (exit_.reason, exit_.address, hits) == (ExitReason.PORT_OUT, EXIT_PORT, 200)


def test_the_debugger_can_wait_for_a_loop_to_reach_a_value(start: Start) -> None:
    rig = start("movl $SCRATCH, %edi; movl $2000, %ecx; again: movl %ecx, (%edi); addl $4, %edi; loop again; finish $1")
    exit_ = go(rig, set(), watch(SCRATCH + 4 * 1000, 4))
    assert (exit_.value, rig.scratch(4 * 1000)) == (DebugCause.WATCHPOINT, 1000)


# ---- what the guest sets itself


def test_the_guests_own_single_step_works_and_a_debugger_steps_through_it(start: Start) -> None:
    source = """
        gate 1, trap
        pushfl; orl $0x100, (%esp); popfl
    first: nop
    second: nop
        pushfl; andl $~0x100, (%esp); popfl
        nop; finish SCRATCH
    trap: incl SCRATCH; movl %dr6, %eax; movl %eax, SCRATCH + 4; iretl
    """
    rig = start(source, labels="first trap")
    assert rig.finish() == 5
    assert rig.scratch(4) & 0x4000, "DR6.BS"
    rig = start(source, labels="first second trap")
    go(rig, {rig.at["first"]})
    assert step(rig).rip == rig.at["trap"], "the guest's #DB comes first"
    # No more in the handler: TF is clear there.
    rips = [step(rig).rip for _ in range(4)]
    assert rips[-1] == rig.at["second"]
    assert go(rig).value == 5


def test_the_guests_own_single_step_traps_behind_privileged_instructions(start: Start) -> None:
    rig = start(
        """
        gate 1, trap
        movw $PORT, %dx
        pushl $0x102; popfl
        cli
        movl %cr0, %eax
        incl SCRATCH + 8
        pushl $2; popfl
        finish SCRATCH
    trap: incl SCRATCH; iretl
    """
    )
    assert rig.finish() == 5  # CLI, MOV, INC, PUSH, POPF
    assert rig.scratch(8) == 1


def test_the_guests_breakpoint_registers_work_beside_the_debuggers(start: Start) -> None:
    source = """
        gate 1, trap
        movl $here, %eax; movl %eax, %dr0
        movl $0x2, %eax; movl %eax, %dr7
    before: nop
    here: nop
    behind: nop
        finish SCRATCH
    trap: incl SCRATCH; movl %dr6, %eax; movl %eax, SCRATCH + 4; orl $0x10000, 8(%esp); iretl   # RF
    """
    rig = start(source, labels="before here behind trap")
    assert rig.finish() == 1
    assert rig.scratch(4) & 0xF == 1
    rig = start(source, labels="before here behind trap")
    go(rig, {rig.at["before"]})
    assert step(rig).rip == rig.at["here"]
    assert step(rig).rip == rig.at["trap"]
    assert go(rig, {rig.at["behind"]}).rip == rig.at["behind"]
    assert go(rig).value == 1


@pytest.mark.parametrize("both", [False, True])
def test_the_guests_watch_registers_work_beside_the_debuggers(start: Start, both: bool) -> None:
    source = """
        gate 1, trap
        movl $SCRATCH + 8, %eax; movl %eax, %dr1
        movl $0x00d00008, %eax; movl %eax, %dr7        # DR1: writes of 4 bytes
        movl $0, %edx
        movl $1, SCRATCH + 12
        movl $1, SCRATCH + 8
    behind: movl SCRATCH + 8, %ecx
        finish SCRATCH
    trap: incl SCRATCH; movl %dr6, %eax; movl %eax, SCRATCH + 4; movl (%esp), %eax; movl %eax, SCRATCH + 16; iretl
    """
    rig = start(source, labels="behind trap")
    if both:
        exit_ = go(rig, set(), watch(SCRATCH + 8, 4))
        assert (exit_.value, exit_.rip) == (DebugCause.WATCHPOINT, rig.at["trap"])
    assert go(rig).value == 1
    assert (rig.scratch(4) & 0xF, rig.scratch(16)) == (2, rig.at["behind"])


def test_interrupts_go_on_behind_a_hit_of_the_guests_own(start: Start) -> None:
    rig = start(
        """
        gate 1, hit; gate 0x20, tick; pics 0xfe; timer 1193
        movl $SCRATCH, %eax; movl %eax, %dr0; movl $0xd0001, %eax; movl %eax, %dr7
        incl SCRATCH; sti
        again: cmpl $3, SCRATCH + 8; jb again
        cli; finish SCRATCH + 4
        hit: incl SCRATCH + 4; iretl
        tick: incl SCRATCH + 8; movb $0x20, %al; outb %al, $0x20; iretl
    """
    )
    exit_ = go(rig)
    assert (exit_.reason, exit_.address, exit_.value) == (ExitReason.PORT_OUT, EXIT_PORT, 1)


def test_a_guest_can_take_its_watchpoint_away(start: Start) -> None:
    rig = start(
        """
        gate 1, trap
        movl $SCRATCH + 8, %eax; movl %eax, %dr0
        movl $0x000d0001, %eax; movl %eax, %dr7
        xorl %eax, %eax; movl %eax, %dr7
        movl $1, SCRATCH + 8
        finish SCRATCH
    trap: incl SCRATCH; iretl
    """
    )
    assert rig.finish() == 0


# ---- registers


def test_floating_point_registers_are_read_and_written(start: Start) -> None:
    rig = start(
        """
        movl %cr4, %eax; orl $0x200, %eax; movl %eax, %cr4
        fninit; fld1; fldpi; movl $0x11223344, %eax; movd %eax, %xmm3
    here: fstps SCRATCH; movd %xmm3, SCRATCH + 4; fxsave SCRATCH + 0x100; finish $1
    """,
        labels="here",
    )
    go(rig, {rig.at["here"]})
    image = bytearray(rig.vcpu.fpu())
    assert struct.unpack_from("<HHB", image) == (0x37F, 6 << 11, 0xC0)
    assert image[32 + 16 : 32 + 26] == bytes.fromhex("0000000000000080ff3f"), "st1 is 1.0"
    assert image[160 + 48 : 160 + 52] == bytes.fromhex("44332211")
    image[32:42] = bytes.fromhex("0000000000000080ff3f")
    image[160 + 48 : 160 + 52] = b"abcd"
    rig.vcpu.set_fpu(bytes(image))
    assert rig.vcpu.fpu() == bytes(image)
    assert go(rig).value == 1
    assert (rig.scratch(0), rig.scratch(4, 4)) == (0x3F800000, int.from_bytes(b"abcd", "little"))


def test_rip_moves_a_halted_vcpu(start: Start) -> None:
    rig = start("sti; here: hlt; cli; hlt; there: finish $3", labels="here there")
    go(rig, {rig.at["here"]})
    rig.vcpu.set_debug(NONE, frozenset(), step=False)
    rig.interrupt()
    rig.vcpu.set_register("rip", rig.at["there"])
    assert rig.finish() == 3


def test_a_device_port_is_accessed_once_by_a_watched_instruction(start: Start) -> None:
    rig = start("movw $PORT, %dx; movl $SCRATCH, %edi; insl; finish $1")
    exit_ = go(rig, set(), watch(SCRATCH, 4))
    assert (exit_.reason, exit_.address) == (ExitReason.PORT_IN, PORT)
    exit_.value = 0x55
    exit_ = rig.vcpu.run()
    assert (exit_.reason, exit_.value, rig.scratch()) == (ExitReason.DEBUG, DebugCause.WATCHPOINT, 0x55)


def test_watchpoints_come_and_go_while_they_are_hit_and_nothing_is_lost(start: Start) -> None:
    """A debugger may leave between a hit and the execution that completes it: nothing of it must stay."""
    rig = start(
        """
        gate 0x20, tick; pics 0xfe; timer 1193; sti
        again: incl SCRATCH; cmpl $400, SCRATCH + 8; jb again
        cli; finish SCRATCH
        tick: incl SCRATCH + 8; movb $0x20, %al; outb %al, $0x20; iretl
    """
    )
    watched, hits = frozenset({watch(SCRATCH, 4)}), 0
    over = threading.Event()

    def kick() -> None:
        while not over.wait(0.0002):
            rig.vcpu.kick()

    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        for turn in range(1_000_000):
            wanted = watched if turn & 1 else frozenset()
            rig.vcpu.set_debug(NONE, wanted, step=False)
            exit_ = rig.vcpu.run()
            if exit_.reason is ExitReason.PORT_OUT:
                break
            assert exit_.reason is ExitReason.INTERRUPTED or (wanted and exit_.value == DebugCause.WATCHPOINT), exit_
            hits += exit_.reason is ExitReason.DEBUG
    finally:
        over.set()
        kicker.join()
    assert (exit_.reason, exit_.address) == (ExitReason.PORT_OUT, EXIT_PORT)
    assert hits > 100 and rig.scratch(8) == 400
    assert exit_.value == rig.scratch()


def test_a_step_of_an_instruction_that_is_moved_away_from_goes_on_elsewhere(start: Start) -> None:
    rig = start("again: movl $1, SCRATCH; jmp again; there: nop; finish $3", labels="again there")
    go(rig, {rig.at["again"]})
    rig.vcpu.set_register("rip", rig.at["there"])
    assert step(rig).rip == rig.at["there"] + 1
    assert go(rig).value == 3
