"""The `public` engine by itself: small pieces of 32-bit code, and what run() returns for them."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvd.backends.emulation.public import PublicVcpu
from hvd.board import cpuid
from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, Exit, ExitReason, Segment
from hvd.errors import HvdError
from hvd.trace.counters import Counters, decode_counters
from hvd.trace.points import BY_NAME, BackendId

CODE, GDT, IDT, TSS, STACK, USER_STACK = 0x10000, 0x1000, 0x2000, 0x3000, 0x80000, 0x90000
RAM = 2 << 20
PORT = 0x5000  # claimed by "Python"
EXIT_PORT = 0xF4
DEVICE = 0x8000_0000
# 08 code, 10 data, 18 user code, 20 user data, 28 TSS, 30 data that is not present
DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00CFFB000000FFFF,
    0x00CFF3000000FFFF,
    0x0000890030000067,
    0x00CF13000000FFFF,
)

PROLOGUE = f"""
    .code32
    .set IDT, {IDT:#x}
    .macro gate vector, handler, attributes=0x8e00
        movl $\\handler, %eax
        movw %ax, IDT + 8 * \\vector
        movw $0x08, IDT + 8 * \\vector + 2
        movw $\\attributes, IDT + 8 * \\vector + 4
        shrl $16, %eax
        movw %ax, IDT + 8 * \\vector + 6
    .endm
    .macro out port, value
        movl \\value, %eax
        movw $\\port, %dx
        outl %eax, %dx
    .endm
    .macro finish value
        out {EXIT_PORT:#x}, \\value
    .endm
    .macro pics mask
        movb $0x11, %al; outb %al, $0x20
        movb $0x20, %al; outb %al, $0x21
        movb $4, %al; outb %al, $0x21
        movb $1, %al; outb %al, $0x21
        movb $\\mask, %al; outb %al, $0x21
    .endm
    .macro timer count
        movb $0x34, %al; outb %al, $0x43
        movb $\\count & 0xff, %al; outb %al, $0x40
        movb $\\count >> 8, %al; outb %al, $0x40
    .endm
    .macro to_user label
        pushl $0x23; pushl ${USER_STACK}; pushl $0x2; pushl $0x1b; pushl $\\label; iretl
    .endm
    .text
    .globl _start
_start:
    movw $0x28, %ax
    ltr %ax
"""


class Rig:
    """A vcpu with its board and memory, and a program in it."""

    def __init__(self, image: bytes, directory: Path) -> None:
        self.counters_path = directory / "counters"
        self.image = image
        self.memory = GuestMemory(RAM)
        self.memory.add_mmio(DEVICE, 0x1000, "device")
        self.board = HotBoard(BackendId.EMULATION, counters=self.counters_path)
        self.board.claim(range(PORT, PORT + 8))
        self.board.claim(range(EXIT_PORT, EXIT_PORT + 1))
        self.vcpu = PublicVcpu(self.board, self.memory, cpuid.leaves)
        self.load()

    def load(self) -> None:
        self.memory.clear_all()
        self.memory.write(CODE, self.image)
        self.memory.write(GDT, struct.pack("<7Q", *DESCRIPTORS))
        self.memory.write(TSS + 4, struct.pack("<II", STACK, 0x10))
        self.vcpu.enter(entry())
        self.board.start_clock()

    def run(self) -> Exit:
        return self.vcpu.run()

    def finish(self) -> int:
        """Run to the exit port; the value written."""
        exit_ = self.run()
        assert (exit_.reason, exit_.address) == (ExitReason.PORT_OUT, EXIT_PORT), exit_
        return exit_.value

    def counters(self) -> Counters:
        return decode_counters(self.counters_path.read_bytes())

    def count(self, point: str) -> int:
        counter = self.counters().points.get(BY_NAME[point].id)
        return counter.count if counter else 0


def entry(**changes: int) -> EntryState:
    flat = {name: Segment(0x10, 0, 0xFFFF_FFFF, 0xC09300) for name in ("ds", "es", "fs", "gs", "ss")}
    return EntryState(
        registers={"eip": CODE, "esp": STACK, "eflags": 2},
        cr0=changes.get("cr0", 0x11),
        cr4=changes.get("cr4", 0),
        efer=changes.get("efer", 0),
        segments=flat | {"cs": Segment(8, 0, 0xFFFF_FFFF, 0xC09B00)},
        gdt=(GDT, 8 * len(DESCRIPTORS) - 1),
        idt=(IDT, 0x7FF),
    )


Start = Callable[[str], Rig]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    rigs: list[Rig] = []
    assembler, linker = shutil.which("as"), shutil.which("ld")
    assert assembler and linker, "binutils is needed: apt install gcc"

    def make(source: str) -> Rig:
        (tmp_path / "code.S").write_text(PROLOGUE + source + "\n")
        subprocess.run([assembler, "--32", "-o", "code.o", "code.S"], cwd=tmp_path, check=True, timeout=30)
        link = [linker, "-m", "elf_i386", f"-Ttext={CODE:#x}", "--oformat=binary", "-o", "code.bin", "code.o"]
        subprocess.run(link, cwd=tmp_path, check=True, timeout=30)
        rigs.append(Rig((tmp_path / "code.bin").read_bytes(), tmp_path))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.vcpu.close()
        rig.memory.close()
        rig.board.close()


def test_ports_of_python_devices(start: Start) -> None:
    rig = start(f"movl $0x11223344, %ebx; movw ${PORT}, %dx; inl %dx, %eax; addl %ebx, %eax; outw %ax, %dx; hlt")
    exit_ = rig.run()
    assert (exit_.reason, exit_.address, exit_.size) == (ExitReason.PORT_IN, PORT, 4)
    assert rig.vcpu.registers()["rbx"] == 0x11223344
    assert rig.memory.read(exit_.rip, 1) == b"\xed"
    exit_.value = 0x01010101
    exit_ = rig.run()
    assert (exit_.reason, exit_.size, exit_.value) == (ExitReason.PORT_OUT, 2, 0x3445)
    exit_ = rig.run()
    assert exit_.reason is ExitReason.HALT
    assert rig.counters().run_ns > 0 and rig.counters().first_instruction_ns > 0


def test_memory_mapped_devices_and_holes(start: Start) -> None:
    rig = start(
        f"movl {DEVICE + 8:#x}, %eax; movb %al, {DEVICE + 9:#x}; movl $0x90000000, %esi; movl (%esi), %eax; finish %eax"
    )
    exit_ = rig.run()
    assert (exit_.reason, exit_.address, exit_.size) == (ExitReason.MMIO_READ, DEVICE + 8, 4)
    exit_.value = 0x42
    exit_ = rig.run()
    assert (exit_.reason, exit_.address, exit_.size, exit_.value) == (ExitReason.MMIO_WRITE, DEVICE + 9, 1, 0x42)
    assert rig.finish() == 0xFFFF_FFFF
    assert rig.count("mmio-read") == 1  # the hole's; a device's exits are counted by the machine


def test_computation_is_not_harmed_by_interrupts(start: Start) -> None:
    """A checksum over memory with a timer at 4 kHz: the result is that of the same sum in Python, however often it is interrupted."""
    rig = start("""
        gate 0x20, tick
        pics 0xfe
        timer 298
        sti
        movl $60, %ebp
        xorl %ebx, %ebx
    1:  xorl %ecx, %ecx
    2:  movl %ebx, %eax
        imull $1664525, %eax
        addl %ecx, %eax
        movl %eax, 0x100000(,%ecx,4)
        xorl 0x100000(,%ecx,4), %ebx
        roll $5, %ebx
        addl 0x100000(,%ecx,4), %ebx
        adcl $3, %ebx
        incl %ecx
        cmpl $3000, %ecx
        jb 2b
        decl %ebp
        jnz 1b
        cli
        finish %ebx
    tick:
        pushl %eax
        incl 0x70000
        movb $0x20, %al
        outb %al, $0x20
        popl %eax
        iretl
    """)
    value = 0
    for _ in range(60):
        for index in range(3000):
            stored = (value * 1664525 + index) & 0xFFFF_FFFF
            value ^= stored
            value = (value << 5 | value >> 27) & 0xFFFF_FFFF
            total = value + stored
            value = ((total & 0xFFFF_FFFF) + 3 + (total >> 32)) & 0xFFFF_FFFF
    assert rig.finish() == value
    (ticks,) = struct.unpack("<I", rig.memory.read(0x70000, 4))
    assert ticks >= 3
    assert rig.count("interrupt") == ticks


def test_halt_waits_for_the_timer(start: Start) -> None:
    rig = start("""
        gate 0x20, tick
        pics 0xfe
        timer 2386
        movl $5, %ebx
    1:  sti
        hlt
        decl %ebx
        jnz 1b
        finish %ebx
    tick: pushl %eax; movb $0x20, %al; outb %al, $0x20; popl %eax; iretl
    """)
    before = time.monotonic_ns()
    assert rig.finish() == 0
    assert time.monotonic_ns() - before >= 7_000_000  # five ticks of 2 ms, of which the first may be under way
    assert rig.count("halt") == rig.count("interrupt") == 5
    assert rig.counters().halted_ns > 4_000_000


def test_interrupt_shadow_of_sti(start: Start) -> None:
    rig = start("""
        gate 0x55, injected
        xorl %ebx, %ebx
        out 0x5000, %ebx
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
    assert rig.run().reason is ExitReason.PORT_OUT
    rig.vcpu.inject(0x55)
    assert rig.finish() == 1  # none between STI and CLI, one after STI, NOP


def test_faults_one_after_the_other(start: Start) -> None:
    """Three contributory faults that are each handled are not a double fault; x87 and SSE registers survive them."""
    rig = start("""
        gate 0, fault
        gate 6, fault
        movl %cr4, %eax; orl $0x600, %eax; movl %eax, %cr4
        movl $0x1234, %eax; movd %eax, %xmm5
        fld1
        xorl %ecx, %ecx; xorl %ebx, %ebx; xorl %edx, %edx
        stc
        divl %ecx
        jnc bad
        divl %ecx
        ud2
        divl %ecx
        fistpl 0x70000
        movd %xmm5, %eax
        addl 0x70000, %eax
        shll $16, %eax
        orl %ebx, %eax
        finish %eax
    bad: finish $0
    fault: incl %ebx; addl $2, (%esp); iretl
    """)
    assert rig.finish() == 0x1235 << 16 | 4
    assert rig.count("exception.divide-error") == 3 and rig.count("exception.invalid-opcode") == 1


def test_rings(start: Start) -> None:
    """int 0x80 from ring 3 comes in on the TSS's stack; CLI there gives #GP(0); a gate of DPL 0 gives #GP(vector * 8 + 2)."""
    rig = start("""
        gate 0x80, call, 0xee00
        gate 0x30, call
        gate 13, protection
        to_user user
    user:
        movl $7, %eax
        int $0x80
        movl %eax, %edi
        cli
        int $0x30
    call:
        incl %eax
        cmpl $0x1b, 4(%esp); jne bad
        cmpl $0x23, 16(%esp); jne bad
        movl %cs, %ecx; andl $3, %ecx; jnz bad
        iretl
    bad: finish $0xbad
    protection:
        popl %eax
        incl %ebx
        addl $1, (%esp)
        cmpl $1, %ebx
        jne 1f
        testl %eax, %eax; jnz bad
        iretl
    1:  shll $8, %edi
        orl %edi, %eax
        finish %eax
    """)
    assert rig.finish() == 8 << 8 | 0x30 * 8 + 2
    assert rig.count("software-interrupt") == 2
    assert rig.count("exception.general-protection") == 2


@pytest.mark.parametrize("idt_limit", [0, 0x7FF])
def test_triple_fault(start: Start, idt_limit: int) -> None:
    rig = start(f"pushl $0; pushl ${idt_limit << 16:#x}; lidt 2(%esp); ud2")
    exit_ = rig.run()
    assert exit_.reason is ExitReason.SHUTDOWN
    assert rig.count("exception.double-fault") == 1
    rig.load()
    assert rig.run().reason is ExitReason.SHUTDOWN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cr4": 0x20}, "PAE"),
        ({"efer": 0x100}, "64-bit"),
        ({"cr0": 0x10}, "real mode"),
        ({"cr0": 0x8000_0011}, "paging"),
    ],
)
def test_entries_that_it_cannot_make(start: Start, changes: dict[str, int], words: str) -> None:
    rig = start("hlt")
    rig.vcpu.enter(entry(**changes))
    exit_ = rig.run()
    assert exit_.reason is ExitReason.ERROR
    assert words in exit_.detail and "native" in exit_.detail
    rig.load()
    assert rig.run().reason is ExitReason.HALT


PAGING = """
    movl $0x83, 0x4000
    movl $0x4000, %eax; movl %eax, %cr3
    movl %cr4, %eax; orl $0x10, %eax; movl %eax, %cr4
    movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gate 13, 1f; movw $0x1004, %ax; movw %ax, %fs; 1: hlt", "error code of exception 13"),
        ("gate 11, 1f; movw $0x30, %ax; movw %ax, %fs; 1: hlt", "error code of exception 11"),
        (PAGING + "gate 6, 1f; ud2; 1: hlt", "paging"),
        ("gate 6, 1f, 0x8600; ud2; 1: hlt", "16-bit gate"),
        ("movl %cr4, %eax; orl $0x20, %eax; movl %eax, %cr4; movl $0x4000, %eax; movl $0x5001, 0x4000; movl $0x83, 0x5000;"
         "movl %eax, %cr3; movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0; 1: jmp 1b", "PAE"),
        ("movl $0xc0000000, %eax; jmp *%eax", "non-executable"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_an_error(start: Start, source: str, words: str) -> None:
    exit_ = start(source).run()
    assert exit_.reason is ExitReason.ERROR
    assert words in exit_.detail
    assert int(exit_.metadata["address"], 16) == exit_.rip


def test_paging_without_events_works(start: Start) -> None:
    assert start(PAGING + "movl $0x5a5a, 0x70000; movl 0x70000, %eax; finish %eax").finish() == 0x5A5A


def test_kick_and_registers(start: Start) -> None:
    rig = start("1: incl %ebx; jmp 1b")
    timer = threading.Timer(0.05, rig.vcpu.kick)
    timer.start()
    exit_ = rig.run()
    timer.join()
    assert exit_.reason is ExitReason.INTERRUPTED
    registers = rig.vcpu.registers()
    assert registers["rbx"] > 0 and registers["rip"] == exit_.rip
    assert (registers["cs"], registers["cs.base"], registers["cs.limit"]) == (8, 0, 0xFFFF_FFFF)
    assert registers["tr"] == 0x28 and registers["tr.base"] == TSS
    assert (registers["idtr.base"], registers["gdtr.limit"], registers["efer"]) == (IDT, 55, 0)
    rig.vcpu.set_register("rbx", 5)
    rig.vcpu.kick()  # before the run
    assert rig.run().reason is ExitReason.INTERRUPTED
    assert rig.vcpu.registers()["rbx"] == 5
    with pytest.raises(KeyError):
        rig.vcpu.set_register("cr0", 0)


def test_kick_during_halt_keeps_it_halted(start: Start) -> None:
    rig = start("gate 0x44, 1f; sti; hlt; finish %ebx; 1: incl %ebx; iretl")
    for _ in range(2):
        timer = threading.Timer(0.02, rig.vcpu.kick)
        timer.start()
        assert rig.run().reason is ExitReason.INTERRUPTED
        timer.join()
    rig.vcpu.inject(0x44)
    assert rig.finish() == 1


def test_reset_in_the_middle_of_an_instruction(start: Start) -> None:
    for source in (
        f"movw ${PORT}, %dx; inb %dx, %al; movl $0, {CODE}; outb %al, %dx; finish %eax",
        f"out {PORT}, $1; hlt",
        f"movl {DEVICE:#x}, %eax",
    ):
        rig = start(source)
        first = rig.run()
        rig.load()
        assert rig.memory.read(CODE, len(rig.image)) == rig.image  # the rest of the abandoned block did not store
        again = rig.run()
        assert (again.reason, again.address, again.rip) == (first.reason, first.address, first.rip)
        rig.vcpu.close()  # in the middle of it
        assert not rig.vcpu._thread.is_alive()


def test_code_that_the_board_writes_is_run(start: Start) -> None:
    rig = start(f"movl $20, %ecx; 1: movb $1, %bl; out {PORT}, %ebx; loop 1b; hlt")
    assert rig.run().value == 1
    address = CODE + rig.image.index(b"\xb3\x01")
    assert rig.run().value == 1
    rig.memory.write(address + 1, b"\x02")
    rig.vcpu.memory_changed(address + 1, 1)
    assert rig.run().value == 2


def test_full_console_waits_and_loses_nothing(start: Start) -> None:
    rig = start("movw $0x3f8, %dx; movl $70000, %ecx; 1: movb %cl, %al; outb %al, %dx; loop 1b; hlt")
    output = bytearray()
    while (exit_ := rig.run()).reason is ExitReason.CONSOLE_FULL:
        output += rig.board.console_take()
    assert exit_.reason is ExitReason.HALT
    while piece := rig.board.console_take():
        output += piece
    assert bytes(output) == bytes(n & 0xFF for n in range(70000, 0, -1))
    assert rig.count("port-out") == 70000


def test_cpuid_is_the_boards(start: Start) -> None:
    rig = start("movl $1, %eax; cpuid; movl %ecx, %ebx; andl $0xfffffbef, %edx; finish %edx; finish %ebx")
    features, more = rig.finish(), rig.finish()
    assert more >> 31 == 1  # under a hypervisor
    assert features & 1 << 9 and features & 1 << 11 == 0 and features & 1  # an APIC, no SYSENTER, an FPU


def test_frame_outside_of_ram_is_an_error(start: Start) -> None:
    exit_ = start("gate 6, 1f; movl $0x70000000, %esp; ud2; 1: hlt").run()
    assert exit_.reason is ExitReason.ERROR and "not RAM" in exit_.detail


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the broken hook has no value to return
def test_bug_of_a_callback_is_not_hidden(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = start("inb $0x60, %al; hlt")

    def broken(port: int, size: int) -> None:
        raise HvdError("INTERNAL", problem="broken on purpose")

    monkeypatch.setattr(rig.board, "port_in", broken)
    with pytest.raises(HvdError, match="broken on purpose"):
        rig.run()
