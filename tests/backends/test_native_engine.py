"""What only the native engine promises: rings, system calls, interrupts, and what others do to its guests meanwhile."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import pytest
from native_rig import CODE, EXIT_PORT, IO_BITMAP, PORT, SCRATCH, TSS, Rig, Start, assemble

from hvd.backends.emulation import vcpu
from hvd.backends.emulation.backend import BACKEND
from hvd.board.vcpu import ExitReason

PROJECT = Path(vcpu.__file__).parents[3]
NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")

# ---- rings, ports, system calls


@pytest.mark.parametrize(
    ("vector", "instruction"), [(0x30, "int $0x30"), (3, "int3"), (3, ".byte 0xcd, 3"), (4, "into"), (1, ".byte 0xf1")]
)
def test_a_refused_gate_faults_at_the_instruction(start: Start, vector: int, instruction: str) -> None:
    rig = start(f"""
        gate 13, fault
        gate {vector}, reached
        to_user user
    user: movl $0x7fffffff, %eax; addl $1, %eax   # overflow, for INTO
    at:  {instruction}
    reached: finish $0xbad
    fault: popl SCRATCH; popl SCRATCH + 4; subl $at, SCRATCH + 4; finish $1
    """)
    if (
        instruction == ".byte 0xf1"
    ):  # INT1 is no software interrupt: its gate is not checked for privilege (SDM vol. 2A)
        assert rig.finish() in (1, 0xBAD)
        return
    assert rig.finish() == 1
    assert (rig.scratch(), rig.scratch(4)) == (vector * 8 + 2, 0)


def permit(rig: Rig, *ports: int) -> None:
    for port in ports:
        at = TSS + IO_BITMAP + port // 8
        rig.memory.write(at, bytes([rig.memory.read(at, 1)[0] & ~(1 << port % 8)]))


@pytest.mark.parametrize(
    "instruction", ["outb %al, %dx", "outw %ax, %dx", "outl %eax, %dx", "inb %dx, %al", "inw %dx, %ax", "inl %dx, %eax"]
)
@pytest.mark.parametrize("missing", [None, 0, -1])
def test_io_permission_of_the_tss(start: Start, instruction: str, missing: int | None) -> None:
    """Every byte that the access covers needs its bit; ring 3 without IOPL."""
    rig = start(f"""
        gate 13, fault
        gate 0x80, done, 0xee00
        to_user user
    user: movw ${PORT + 2}, %dx
    at: {instruction}
        int $0x80
    done: finish $0
    fault: popl SCRATCH; popl SCRATCH + 4; subl $at, SCRATCH + 4; finish $1
    """)
    size = {"b": 1, "w": 2, "l": 4}[instruction.split()[0][-1]]
    ports = list(range(PORT + 2, PORT + 2 + size))
    if missing is not None:
        ports.pop(missing)
    permit(rig, *ports)
    if missing is None:
        exit_ = rig.vcpu.run()
        assert exit_.reason in (ExitReason.PORT_OUT, ExitReason.PORT_IN) and exit_.size == size
        assert rig.finish() == 0
    else:
        assert rig.finish() == 1
        assert (rig.scratch(), rig.scratch(4)) == (0, 0)


def test_io_permission_by_iopl(start: Start) -> None:
    rig = start("gate 13, fault; to_user user, 0x3002; user: finish $5; fault: finish $1")
    assert rig.finish() == 5


def test_a_bitmap_outside_of_the_tss_permits_nothing(start: Start) -> None:
    rig = start("gate 13, fault; to_user user; user: movw $PORT, %dx; outb %al, %dx; fault: finish $1")
    permit(rig, *range(PORT, PORT + 8))
    rig.memory.write(TSS + 0x66, struct.pack("<H", 0x3000))
    assert rig.finish() == 1


def test_rep_outs_by_permission(start: Start) -> None:
    source = """
        gate 13, fault
        gate 0x80, done, 0xee00
        to_user user
    user: movw $PORT, %dx; movl $SCRATCH + 64, %esi; movl $3, %ecx
    at: rep outsw
        int $0x80
    done: movl %ecx, SCRATCH + 8; finish $0
    fault: popl SCRATCH; popl SCRATCH + 4; subl $at, SCRATCH + 4; movl %ecx, SCRATCH + 8; finish $1
    """
    rig = start(source)
    rig.memory.write(SCRATCH + 64, b"abcdef")
    permit(rig, PORT, PORT + 1)
    values = []
    for _ in range(3):
        exit_ = rig.vcpu.run()
        assert (exit_.reason, exit_.size) == (ExitReason.PORT_OUT, 2)
        assert rig.memory.read(exit_.rip, 3) == b"\xf3\x66\x6f" or rig.memory.read(exit_.rip, 3) == b"\x66\xf3\x6f"
        values.append(exit_.value)
    assert struct.pack("<3H", *values) == b"abcdef"
    assert rig.finish() == 0 and rig.scratch(8) == 0
    rig = start(source)
    assert rig.finish() == 1
    assert [rig.scratch(n) for n in (0, 4, 8)] == [0, 0, 3]


def test_sysenter_and_sysexit(start: Start) -> None:
    rig = start("""
        gate 0x80, done, 0xee00
        msr 0x174, $8
        msr 0x175, $STACK
        msr 0x176, $kernel
        to_user user, 0x202
    user: movl $back, %edx; movl %esp, %ecx; movl $0x1234, %eax
        sysenter
        ud2
    back: movw %cs, SCRATCH + 8; movw %ss, SCRATCH + 10; movl %esp, SCRATCH + 12
        int $0x80
    kernel: movl %eax, SCRATCH; movw %cs, SCRATCH + 4; movw %ss, SCRATCH + 6
        movl %esp, SCRATCH + 20; pushfl; popl SCRATCH + 16
        sysexit
    done: finish $7
    """)
    assert rig.finish() == 7
    assert rig.scratch() == 0x1234
    assert struct.unpack("<4H", rig.memory.read(SCRATCH + 4, 8)) == (8, 0x10, 0x1B, 0x23)
    assert rig.scratch(12) == 0x90000 and rig.scratch(20) == 0x80000
    assert not rig.scratch(16) & 0x200  # interrupts off


USER_64 = """
        gate 13, fault
        gate 6, fault
        msr 0xc0000081, $0, $0x00180008     # STAR
        msr 0xc0000082, $kernel              # LSTAR
        msr 0xc0000084, $0x600               # FMASK: IF, DF
        msr 0x174, $8
        msr 0x175, $(STACK-64)
        msr 0x176, $entered
"""


def test_syscall_and_sysret(start: Start) -> None:
    rig = start(
        USER_64
        + """
        movl $user, %ecx; movl $0x602, %r11d
        movl $USER_STACK, %esp
        sysretq
    user: movw %cs, SCRATCH; movw %ss, SCRATCH + 2
        movl $39, %eax; stc; std
        syscall
    next: ud2
    kernel: movw %cs, SCRATCH + 4; movw %ss, SCRATCH + 6
        movq %rsp, SCRATCH + 32
        pushfq; popq SCRATCH + 24
        movq %rcx, SCRATCH + 8; subq $next, SCRATCH + 8
        movq %r11, SCRATCH + 16
        movl %eax, SCRATCH + 40
        movl $compatible, %ecx; movl $2, %r11d
        sysretl
    .code32
    compatible: movw %cs, SCRATCH + 44; movw %ss, SCRATCH + 46; incl %eax; movl %eax, SCRATCH + 48
        ud2
    .code64
    entered: fault: finish $9
    """,
        64,
    )
    assert rig.finish() == 9
    assert struct.unpack("<4H", rig.memory.read(SCRATCH, 8)) == (0x2B, 0x23, 8, 0x10)
    assert rig.scratch(8, 8) == 0
    assert rig.scratch(16, 8) & 0x601 == 0x601
    assert rig.scratch(24, 8) & 0x601 == 1
    assert rig.scratch(32, 8) == 0x90000
    assert rig.scratch(40) == 39
    assert struct.unpack("<2H", rig.memory.read(SCRATCH + 44, 4)) == (0x1B, 0x23)
    assert rig.scratch(48) == 40


def test_sysenter_in_64_bit_mode(start: Start) -> None:
    rig = start(
        USER_64
        + """
        movl $user, %edx; movl $USER_STACK, %ecx
        sysexitq
    user: movw %cs, SCRATCH; movw %ss, SCRATCH + 2; movq %rsp, SCRATCH + 8
        sysenter
    kernel: ud2
    entered: movw %cs, SCRATCH + 4; movw %ss, SCRATCH + 6; movq %rsp, SCRATCH + 16
        finish $3
    fault: finish $9
    """,
        64,
    )
    assert rig.finish() == 3
    assert struct.unpack("<4H", rig.memory.read(SCRATCH, 8)) == (0x2B, 0x33, 8, 0x10)
    assert (rig.scratch(8, 8), rig.scratch(16, 8)) == (0x90000, 0x80000 - 64)


# ---- interrupts


def test_interrupt_shadow_of_sti(start: Start) -> None:
    rig = start("""
        gate 0x55, injected
        xorl %ebx, %ebx
        movw $PORT, %dx; outl %eax, %dx
        sti
        cli
        movl %ebx, %ecx
        sti
        nop
        cli
        shll $8, %ecx
        orl %ecx, %ebx
        finish %ebx
    injected: incl %ebx; iretl
    """)
    assert rig.vcpu.run().reason is ExitReason.PORT_OUT
    rig.vcpu.inject(0x55)
    assert rig.finish() == 1  # not between STI and CLI


def test_halt_is_woken_by_what_is_injected_and_interrupted_by_kicks(start: Start) -> None:
    rig = start("gate 0x55, injected; movl $1, %ebx; sti; hlt; finish %ebx; injected: incl %ebx; iretl")
    for _ in range(3):
        rig.interrupt()
        assert rig.memory.read(rig.vcpu.registers()["rip"] - 1, 1) == b"\xf4"
    rig.vcpu.inject(0x55)
    assert rig.finish() == 2


TICKS = """
        gate 0x20, tick
        pics 0xfe, {icw4}
        timer 1193
        movl $20, %ebx
        sti
    1:  testl %ebx, %ebx
        jnz 1b
        cli
        finish $1
    tick: decl %ebx; pushl %eax; movb $0x20, %al; {eoi}; popl %eax; iretl
"""


@pytest.mark.parametrize(("icw4", "eoi"), [(1, "outb %al, $0x20"), (3, "nop")])
def test_ticks_preempt_a_loop(start: Start, icw4: int, eoi: str) -> None:
    """Normal and automatic EOI: each tick has a deadline that wakes the vcpu."""
    rig = start(TICKS.format(icw4=icw4, eoi=eoi))
    begin = time.monotonic()
    assert rig.finish() == 1
    assert time.monotonic() - begin >= 0.018


def test_another_thread_runs_it(start: Start) -> None:
    """The timer's signal goes to the thread that runs the vcpu now, also when the one before is gone."""
    rig = start(TICKS.format(icw4=1, eoi="outb %al, $0x20"))
    thread = threading.Thread(target=rig.interrupt, args=(0.004,))
    thread.start()
    thread.join()
    assert rig.finish() == 1


def test_several_in_one_thread(start: Start) -> None:
    """Each has its own timer; one that comes due while another one runs is not lost."""
    rigs = [start(TICKS.format(icw4=1, eoi="outb %al, $0x20")) for _ in range(3)]
    waiting = list(rigs)
    deadline = time.monotonic() + 30
    while waiting:
        assert time.monotonic() < deadline
        for rig in list(waiting):
            with rig.kicked_after(0.0015):
                exit_ = rig.vcpu.run()
            if exit_.reason is ExitReason.PORT_OUT:
                waiting.remove(rig)
            else:
                assert exit_.reason is ExitReason.INTERRUPTED


def test_a_timer_due_during_a_port_access(start: Start) -> None:
    """Its signal comes while no guest runs: run() makes up for it."""
    rig = start("""
        gate 0x20, tick
        pics 0xfe
        timer 11932
        sti
        movw $PORT, %dx; outl %eax, %dx
    1:  jmp 1b
    tick: finish $4
    """)
    assert rig.vcpu.run().reason is ExitReason.PORT_OUT
    time.sleep(0.03)
    assert rig.finish() == 4


# ---- what others do to a guest


def test_memory_changed(start: Start) -> None:
    rig = start("""
    1:  call function
        movl %eax, SCRATCH
        jmp 1b
        .balign 4096
    function: movl $1, %eax
        ret
    """)
    function = CODE + 0x1000
    for value in range(1, 30):
        rig.memory.write(function, b"\xb8" + struct.pack("<I", value))
        rig.vcpu.memory_changed(function, 5)
        rig.memory.write(SCRATCH, bytes(4))
        while not rig.scratch():
            rig.interrupt(0.001)
        assert rig.scratch() == value


def test_memory_changed_during_a_port_access(start: Start) -> None:
    """A device writes memory while the guest's instruction waits: code that was run before and is now other code."""
    rig = start("""
    1:  call function
        movw $PORT, %dx
        outl %eax, %dx
        jmp 1b
    function: movl $1, %eax
        ret
    """)
    function = CODE + rig.image.index(b"\xb8\x01\0\0\0")
    value = 1
    for value in range(1, 30):
        exit_ = rig.vcpu.run()
        assert (exit_.reason, exit_.value) == (ExitReason.PORT_OUT, value)
        rig.memory.write(function + 1, struct.pack("<I", value + 1))
        rig.vcpu.memory_changed(function, 5)


def test_code_changed_through_another_page(start: Start) -> None:
    """32-bit paging: the code's page once more at +4 MiB."""
    rig = start("""
        .set DIRECTORY, 0x61000
        movl $0x83, DIRECTORY
        movl $0x83, DIRECTORY + 4
        movl $DIRECTORY, %eax; movl %eax, %cr3
        movl %cr4, %eax; orl $0x10, %eax; movl %eax, %cr4
        movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0
        xorl %ebx, %ebx; xorl %esi, %esi
    1:  movl %esi, function + 1 + 0x400000
        call function
        cmpl %eax, %esi
        je 2f
        incl %ebx
    2:  incl %esi
        cmpl $1000, %esi
        jb 1b
        finish %ebx
    function: movl $-1, %eax
        ret
    """)
    assert rig.finish() == 0


def test_set_register(start: Start) -> None:
    rig = start("1: jmp 1b; 2: finish %ebx")
    rig.interrupt()
    registers = rig.vcpu.registers()
    rig.vcpu.set_register("rbx", 0x1_0000_0042)
    rig.vcpu.set_register("rflags", 0x46)
    assert rig.vcpu.registers()["rflags"] == 0x46
    rig.vcpu.set_register("rip", registers["rip"] + 2)
    with pytest.raises(KeyError):
        rig.vcpu.set_register("cr0", 0)
    assert rig.finish() == 0x42


WAITS = {
    "in": (ExitReason.PORT_IN, "movw $PORT, %dx; inl %dx, %eax; finish %eax"),
    "outs": (ExitReason.PORT_OUT, "movw $PORT, %dx; movl $5, %ecx; movl $SCRATCH, %esi; rep outsb; finish $1"),
    "read": (ExitReason.MMIO_READ, "movl DEVICE, %eax; finish %eax"),
    "write": (ExitReason.MMIO_WRITE, "movl $5, DEVICE; finish $1"),
    "movs": (ExitReason.MMIO_READ, "movl $5, %ecx; movl $DEVICE, %esi; movl $SCRATCH, %edi; rep movsl; finish $1"),
}


@pytest.mark.parametrize("how", WAITS)
def test_reset_in_the_middle_of_an_access(start: Start, how: str) -> None:
    reason, source = WAITS[how]
    rig = start("movl $0x1234, SCRATCH + 64;" + source)
    for _ in range(100):
        exit_ = rig.vcpu.run()
        assert exit_.reason is reason
        exit_.value = 77
        rig.load()
        assert rig.vcpu.registers()["rip"] == CODE
        assert rig.scratch(64) == 0
    while (exit_ := rig.vcpu.run()).address != EXIT_PORT:
        exit_.value = 1
    assert exit_.value == 1


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("how", WAITS)
def test_close_in_the_middle_of_an_access(tmp_path: Path, how: str) -> None:
    reason, source = WAITS[how]
    image = assemble(source, tmp_path)
    before = 0
    for round_ in range(12):
        rig = Rig(image)
        assert rig.vcpu.run().reason is reason
        thread = threading.Thread(target=rig.close)  # not the one that ran it
        thread.start()
        thread.join()
        if round_ == 3:
            before = mappings()
    assert mappings() <= before + 4  # nothing grows
