"""A guest that runs many small streams of code in turn and keeps a record of every exception, of the state each stream ends with, and of
what it left in memory; on two backends, the records must be the same.

Its kernel is at KERNEL, guest-physical memory from 0. What streams work on is mapped once more at USER, and their code at STREAMS; the
first MiBs of the linear address space, where random numbers point to, are not mapped.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hvd.board import cpuid
from hvd.board.hot import MMIO, HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, ExitReason, Segment, Vcpu
from hvd.trace.points import BackendId

RAM: Final = 8 << 20
KERNEL, USER, STREAMS, ALIAS, DEVICE = 0xE000_0000, 0x4000_0000, 0x4800_0000, 0x4820_0000, 0xC000_0000
GDT, IDT, TSS, STATE, CODE = 0x1000, 0x2000, 0x3000, 0x9000, 0x10000
DIRECTORY, OTHER_DIRECTORY, KERNEL_TABLE, USER_TABLE, STREAM_TABLE, DEVICE_TABLE, OTHER_USER_TABLE, PRISTINE_TABLE = (
    0x20000, 0x21000, 0x22000, 0x24000, 0x25000, 0x26000, 0x27000, 0x28000,
)  # fmt: skip
KERNEL_STACK, TABLE, MAPS = 0x2F000, 0x40000, 0x80000
BUFFER, STACK_PAGE, PRISTINE, STREAM_MEMORY, LOG = 0x100000, 0x110000, 0x180000, 0x200000, 0x300000
STREAM_BYTES, LOG_BYTES = 0x40000, 0x400000
STACK = USER + 0x10800
PORT, EXIT_PORT = 0x5000, 0xF4
RECORD = struct.Struct("<18I")
MOST_FAULTS = 48
END_VECTOR, ECHO_VECTOR = 0x81, 0x82
SECONDS = 20.0
KICK_SECONDS = 0.002

PRESENT, WRITABLE, FOR_USER, GLOBAL = 1, 2, 4, 0x100
# Pages at USER: frame and flags. The rest is not present.
USER_PAGES: Final[dict[int, int]] = {
    0x0: BUFFER | 7, 0x1: BUFFER + 0x1000 | 7, 0x3: BUFFER + 0x3000 | 5, 0x4: BUFFER + 0x4000 | 3, 0x6: BUFFER | 7, 0x7: BUFFER + 0x1000 | 5,
    0x8: BUFFER | 7, 0x9: BUFFER + 0x1000 | 7, 0xB: BUFFER + 0x4000 | 7, 0x10: STACK_PAGE | 7, 0x12: STACK_PAGE + 0x2000 | 7,
}  # fmt: skip
OTHER_PAGES: Final = {0x8: BUFFER + 0x1000 | 7, 0x9: BUFFER | 5, 0xA: BUFFER | 3, 0xB: 0}
# 08 code, 10 data, 18 user code, 20 user data, 28 TSS, 30 data with a base in the buffer, 38 with a base and a limit, 40 not present,
# 48 conforming code, 50 read-only data, 58 for users like 30, 60 for users like 38, 68 expand-down, 70 call gate
GDT_ROWS: Final = (
    0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0xE000890030000067, 0x40CF93000000FFFF | 0x0100 << 16,
    0x4040930000000FFF | 0x0800 << 16, 0x00CF13000000FFFF, 0x00CF9F000000FFFF, 0x00CF91000000FFFF, 0x40CFF3000000FFFF | 0x0100 << 16,
    0x4040F30000000FFF | 0x0800 << 16, 0x00CF970000000FFF, 0,
)  # fmt: skip
CR0, CR4 = 0x8001_0033, 0x690
ERROR_CODES: Final = (8, 10, 11, 12, 13, 14, 17)

SKELETON: Final = """
    .code32
_start:
    movw $0x28, %ax; ltr %ax
    movl $0, STREAM_INDEX
    # 8259 with vectors from 0x20; the timer only if it is wanted, as often as TIMER says
    movb $0x11, %al; outb %al, $0x20
    movb $0x20, %al; outb %al, $0x21
    movb $4, %al; outb %al, $0x21
    movb $1, %al; outb %al, $0x21
    movb $0xff, %al; outb %al, $0x21
    movl TIMER, %ebx
    testl %ebx, %ebx
    jz next
    movb $0x34, %al; outb %al, $0x43
    movb %bl, %al; outb %al, $0x40
    movb %bh, %al; outb %al, $0x40
    movb $0xfe, %al; outb %al, $0x21
next:
    movl STREAM_INDEX, %ebx
    cmpl STREAM_COUNT, %ebx
    jae all_done
    shll $6, %ebx
    addl $TABLE, %ebx
    movl %ebx, CURRENT
    cld
    movl $PRISTINE, %esi; movl $BUFFER, %edi; movl $2048, %ecx; rep movsl
    movl $PRISTINE + 0x2000, %esi; movl $BUFFER + 0x4000, %edi; movl $1024, %ecx; rep movsl
    xorl %eax, %eax; movl $STACK_PAGE, %edi; movl $1024, %ecx; rep stosl
    movl $PRISTINE_TABLE, %esi; movl $USER_TABLE, %edi; movl $32, %ecx; rep movsl
    movl $INITIAL_CR0, %eax; movl %eax, %cr0
    movl $INITIAL_CR4, %eax; movl %eax, %cr4
    movl $DIRECTORY, %eax; movl %eax, %cr3
    movl $INITIAL_CR4 & ~0x80, %eax; movl %eax, %cr4
    movl $INITIAL_CR4, %eax; movl %eax, %cr4
    lgdt GDT_POINTER
    lidt IDT_POINTER
    movl $0, FAULTS
    xorl %eax, %eax; movl %eax, %cr2
    fxrstor FPU_IMAGE
    movw $0x30, %ax; movw %ax, %fs
    movw $0x38, %ax; movw %ax, %gs
    movl CURRENT, %ebx
    movl 52(%ebx), %eax; movl %eax, %cr0
    movl 56(%ebx), %eax; movl %eax, %cr4
    cmpl $0, 4(%ebx)
    jne user
    movl 12 + 16(%ebx), %esp
    pushl 8(%ebx); pushl $0x08; pushl (%ebx)
    jmp registers
user:
    movw $0x58 + 3, %ax; movw %ax, %fs
    movw $0x60 + 3, %ax; movw %ax, %gs
    movw $0x20 + 3, %ax; movw %ax, %ds; movw %ax, %es
    movl $KERNEL_STACK - 256, %esp
    pushl $0x23; pushl 12 + 16(%ebx); pushl 8(%ebx); pushl $0x1b; pushl (%ebx)
registers:
    movl 12(%ebx), %eax; movl 16(%ebx), %ecx; movl 20(%ebx), %edx; movl 32(%ebx), %ebp; movl 36(%ebx), %esi; movl 40(%ebx), %edi
    movl 24(%ebx), %ebx
    iretl
all_done:
    movl $0x600d, %eax; movw $EXIT_PORT, %dx; outl %eax, %dx
    jmp all_done

# Stack: EDI ESI EBP ESP EBX EDX ECX EAX, vector, error, EIP, CS, EFLAGS (ESP, SS)
common:
    pushal
    cld
    movl %ds, %eax; movl %es, %ebx; movl %fs, %ecx; movl %gs, %edx
    pushl %eax; pushl %ebx
    movl %eax, %esi
    movw $0x10, %ax; movw %ax, %ds; movw %ax, %es
    movl LOG_POINTER, %edi
    cmpl $LOG_END, %edi
    jae overflow
    shll $16, %ebx; movw %si, %bx; movl %ebx, 60(%edi)
    shll $16, %edx; movw %cx, %dx; movl %edx, 64(%edi)
    leal 8(%esp), %esi
    movl 32(%esi), %eax; movl %eax, (%edi)
    movl 36(%esi), %eax; movl %eax, 4(%edi)
    movl 40(%esi), %eax; movl %eax, 8(%edi)
    movl 44(%esi), %eax; movl %eax, 12(%edi)
    movl 48(%esi), %eax; andl $0xfffeffff, %eax; movl %eax, 16(%edi)
    movl $0, 20(%edi)
    cmpl $14, 32(%esi)
    jne 1f
    movl %cr2, %eax; movl %eax, 20(%edi)
1:  leal 52(%esi), %eax
    testl $3, 44(%esi)
    jz 1f
    movl 52(%esi), %eax
1:  movl %eax, 24(%edi)
    movl 28(%esi), %eax; movl %eax, 28(%edi)
    movl 24(%esi), %eax; movl %eax, 32(%edi)
    movl 20(%esi), %eax; movl %eax, 36(%edi)
    movl 16(%esi), %eax; movl %eax, 40(%edi)
    movl 8(%esi), %eax; movl %eax, 44(%edi)
    movl 4(%esi), %eax; movl %eax, 48(%edi)
    movl (%esi), %eax; movl %eax, 52(%edi)
    movl STREAM_INDEX, %eax; movl %eax, 56(%edi)
    movl %cr0, %eax; movl %cr4, %ebx; shll $16, %ebx; xorl %ebx, %eax; movl %eax, 68(%edi)
    addl $72, LOG_POINTER
    movl 32(%esi), %eax
    cmpl $END_VECTOR, %eax
    je finished
    incl FAULTS
    cmpl $MOST_FAULTS, FAULTS
    ja finished
    cmpl $ECHO_VECTOR, %eax
    je go_on
    cmpl $3, %eax
    je go_on
    cmpl $4, %eax
    je go_on
    cmpl $1, %eax
    je trap
    # where the stream goes on behind this instruction
    movl CURRENT, %ebx
    movl 40(%esi), %eax
    subl (%ebx), %eax
    cmpl 48(%ebx), %eax
    jae finished
    movl 44(%ebx), %ecx
    movzwl (%ecx, %eax, 2), %eax
    addl (%ebx), %eax
    movl %eax, 40(%esi)
    jmp go_on
trap:
    andl $~0x100, 48(%esi)
go_on:
    popl %ebx; popl %eax
    movw %ax, %ds; movw %bx, %es
    popal
    addl $8, %esp
    iretl
overflow:
    movl $0xbad, %eax; movw $EXIT_PORT, %dx; outl %eax, %dx
finished:
    # A hash of what it left in memory, and of x87 and SSE registers
    movl $INITIAL_CR0, %eax; movl %eax, %cr0
    movl $INITIAL_CR4, %eax; movl %eax, %cr4
    movl $KERNEL_STACK - 1024, %esp
    xorl %eax, %eax
    movl $BUFFER, %esi; movl $2048, %ecx; call hash
    movl %eax, %ebp
    xorl %eax, %eax
    movl $BUFFER + 0x4000, %esi; movl $1024, %ecx; call hash
    movl %eax, %edx
    xorl %eax, %eax
    fxsave FPU_AREA
    movl $FPU_AREA + 32, %esi; movl $64, %ecx; call hash
    movl LOG_POINTER, %edi
    movl $0xfeed, (%edi); movl %ebp, 4(%edi); movl %edx, 8(%edi); movl %eax, 12(%edi)
    movl FPU_AREA, %eax; movl %eax, 16(%edi)
    movl FPU_AREA + 4, %eax; andl $0xff, %eax; movl %eax, 20(%edi)
    movl FPU_AREA + 24, %eax; movl %eax, 24(%edi)
    movl FAULTS, %eax; movl %eax, 28(%edi)
    movl $0, 32(%edi); movl $0, 36(%edi); movl $0, 40(%edi); movl $0, 44(%edi); movl $0, 48(%edi); movl $0, 52(%edi); movl $0, 60(%edi)
    movl $0, 64(%edi); movl $0, 68(%edi)
    movl STREAM_INDEX, %eax; movl %eax, 56(%edi)
    addl $72, LOG_POINTER
    incl STREAM_INDEX
    jmp next
hash:
    roll $5, %eax; addl (%esi), %eax; addl $4, %esi; decl %ecx; jnz hash
    ret
timer:
    pushl %eax; pushl %ds; movw $0x10, %ax; movw %ax, %ds
    incl TICKS
    movb $0x20, %al; outb %al, $0x20
    popl %ds; popl %eax; iretl
handlers:
"""


def kernel_image(directory: Path, assembler: str | None = None) -> tuple[bytes, list[int]]:
    """The kernel, and the address of the handler of each vector. Leaves streams.o."""
    symbols = {
        "STREAM_INDEX": KERNEL + STATE, "STREAM_COUNT": KERNEL + STATE + 4, "CURRENT": KERNEL + STATE + 8, "FAULTS": KERNEL + STATE + 12,
        "LOG_POINTER": KERNEL + STATE + 16, "TICKS": KERNEL + STATE + 20, "TIMER": KERNEL + STATE + 28,
        "GDT_POINTER": KERNEL + STATE + 32, "IDT_POINTER": KERNEL + STATE + 40,
        "FPU_IMAGE": KERNEL + STATE + 0x200, "FPU_AREA": KERNEL + STATE + 0x400,
        "TABLE": KERNEL + TABLE, "PRISTINE": KERNEL + PRISTINE, "BUFFER": KERNEL + BUFFER, "STACK_PAGE": KERNEL + STACK_PAGE,
        "PRISTINE_TABLE": KERNEL + PRISTINE_TABLE, "USER_TABLE": KERNEL + USER_TABLE, "DIRECTORY": DIRECTORY, "KERNEL_STACK": KERNEL + KERNEL_STACK,
        "LOG_END": KERNEL + LOG + LOG_BYTES - 256, "EXIT_PORT": EXIT_PORT, "END_VECTOR": END_VECTOR, "ECHO_VECTOR": ECHO_VECTOR,
        "MOST_FAULTS": MOST_FAULTS, "INITIAL_CR0": CR0, "INITIAL_CR4": CR4,
    }  # fmt: skip
    source = "".join(f"    .set {name}, {value:#x}\n" for name, value in symbols.items()) + SKELETON
    for vector in range(256):
        push = "" if vector in ERROR_CODES else "pushl $0; "
        source += (
            f"    .balign 16\n    {push}pushl ${vector}; jmp common\n"
            if vector != 0x20
            else "    .balign 16\n    jmp timer\n"
        )
    source = source.replace("handlers:", "    .balign 16\nhandlers:").replace(
        "_start:", "_start: jmp 1f\n    .long handlers\n1:"
    )
    (directory / "streams.S").write_text(source)
    assembler, linker = assembler or shutil.which("as"), shutil.which("ld")
    assert assembler and linker, "binutils is needed: apt install gcc"
    subprocess.run([assembler, "--32", "-o", "streams.o", "streams.S"], cwd=directory, check=True, timeout=30)
    link = [
        linker,
        "-m",
        "elf_i386",
        f"-Ttext={KERNEL + CODE:#x}",
        "-e",
        "0",
        "--oformat=binary",
        "-o",
        "streams.bin",
        "streams.o",
    ]
    subprocess.run(link, cwd=directory, check=True, timeout=30)
    image = (directory / "streams.bin").read_bytes()
    at = image.index(struct.pack("<B", 0xEB)) + 2 if image[0] == 0xEB else 5
    (handlers,) = struct.unpack_from("<I", image, at)
    return image, [handlers + 16 * vector for vector in range(256)]


@dataclass
class Program:
    """One stream. chunks: each a list of instructions (bytes), behind any of which it can go on when that faults."""

    ring: int
    eflags: int
    registers: list[int]
    chunks: list[list[bytes]]
    seed: int = 0
    cr0: int = CR0
    cr4: int = CR4
    notes: dict[str, Any] = field(default_factory=dict)

    def code(self) -> tuple[bytes, list[int]]:
        """Machine code, and for each byte of it the offset to go on at when the instruction there faults."""
        code, recover = b"", []
        for chunk in self.chunks:
            for atom in chunk:
                code += atom
                recover += [len(code)] * len(atom)
        end = bytes((0xCD, END_VECTOR))
        return code + end, recover + [len(code)] * len(end)

    def dump(self) -> str:
        chunks = [[atom.hex() for atom in chunk] for chunk in self.chunks]
        return json.dumps(
            {
                "ring": self.ring,
                "eflags": self.eflags,
                "registers": self.registers,
                "cr0": self.cr0,
                "cr4": self.cr4,
                "chunks": chunks,
                "notes": self.notes,
            }
        )

    @classmethod
    def load(cls, text: str) -> Program:
        row = json.loads(text)
        chunks = [[bytes.fromhex(atom) for atom in chunk] for chunk in row["chunks"]]
        control = {name: row[name] for name in ("cr0", "cr4") if name in row}
        return cls(row["ring"], row["eflags"], row["registers"], chunks, **control, notes=row.get("notes", {}))


@dataclass
class Outcome:
    end: str  # how the guest ended
    records: list[list[tuple[int, ...]]]  # of each stream
    devices: list[tuple[Any, ...]]
    ticks: int = 0
    kicks: int = 0


Create = Callable[[HotBoard, GuestMemory], Vcpu]


class Side:
    """One backend's vcpu with the guest."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.image, self.handlers = kernel_image(directory)
        self.vcpu: Vcpu | None = None
        self.extra: dict[int, bytes] = {}  # more guest-physical memory, by address: free are 0x700000 and above
        self._open()

    def _open(self) -> None:
        self.memory = GuestMemory(RAM)
        self.memory.add_mmio(DEVICE, 0x1000, "device")
        for name, where in MMIO.items():
            self.memory.add_mmio(where.start, len(where), name, hot=True)
        if self.name == "emulation":
            from hvd.backends.emulation.vcpu import NativeVcpu

            self.board = HotBoard(BackendId.EMULATION)
            self._claim()
            self.vcpu = NativeVcpu(self.board, self.memory, cpuid.leaves)
        else:
            from hvd.backends.rewriting.vcpu import create

            self.board = HotBoard(BackendId.REWRITING)
            self._claim()
            self.vcpu = create(self.board, self.memory, cpuid.leaves, self.name.partition("-")[2])

    def _claim(self) -> None:
        """Before there is a vcpu."""
        self.board.claim(range(PORT, PORT + 8))
        self.board.claim(range(EXIT_PORT, EXIT_PORT + 1))

    def close(self) -> None:
        assert self.vcpu
        self.vcpu.close()
        self.memory.close()
        self.board.close()

    def reopen(self) -> None:
        self.close()
        self._open()

    def _load(self, programs: Sequence[Program], timer: int) -> int:
        memory = self.memory
        memory.clear_all()
        memory.write(GDT, struct.pack(f"<{len(GDT_ROWS)}Q", *GDT_ROWS))
        gate_low = 0x8E00
        for vector, handler in enumerate(self.handlers):
            access = 0xEE00 if vector in (3, 4, END_VECTOR, ECHO_VECTOR) else gate_low
            memory.write(IDT + 8 * vector, struct.pack("<HHHH", handler & 0xFFFF, 8, access, handler >> 16))
        memory.write(TSS, struct.pack("<III", 0, KERNEL + KERNEL_STACK, 0x10))
        memory.write(TSS + 0x66, struct.pack("<H", 0x68))
        memory.write(CODE, self.image)
        # page tables
        for directory, user_table in ((DIRECTORY, USER_TABLE), (OTHER_DIRECTORY, OTHER_USER_TABLE)):
            for linear, table, flags in (
                (KERNEL, KERNEL_TABLE, 3), (KERNEL + (4 << 20), KERNEL_TABLE + 0x1000, 3), (USER, user_table, 7), (STREAMS, STREAM_TABLE, 7),
                (DEVICE, DEVICE_TABLE, 7),
            ):  # fmt: skip
                memory.write(directory + (linear >> 20), struct.pack("<I", table | flags))
        memory.write(KERNEL_TABLE, struct.pack("<2048I", *(page << 12 | 3 | GLOBAL for page in range(2048))))
        pages = [USER_PAGES.get(n, 0) for n in range(32)]
        for table in (USER_TABLE, PRISTINE_TABLE):
            memory.write(table, struct.pack("<32I", *pages))
        memory.write(
            OTHER_USER_TABLE, struct.pack("<32I", *(OTHER_PAGES.get(n, USER_PAGES.get(n, 0)) for n in range(32)))
        )
        window = [STREAM_MEMORY + (n << 12) | 7 for n in range(STREAM_BYTES >> 12)]
        memory.write(STREAM_TABLE, struct.pack(f"<{len(window)}I", *window))
        memory.write(STREAM_TABLE + 0x800, struct.pack(f"<{len(window)}I", *window))
        memory.write(DEVICE_TABLE, struct.pack("<I", DEVICE | 0x17))
        # data: the same for every stream
        memory.write(PRISTINE, random.Random(1).randbytes(0x3000))
        for page in range(3):
            memory.write(
                PRISTINE + 0x1000 * page + 0x900, b"\xc3" * 64
            )  # where code is called, should none have been written
        memory.write(BUFFER + 0x3000, random.Random(2).randbytes(0x1000))
        fpu = bytearray(512)
        struct.pack_into("<HHBBHIIIIII", fpu, 0, 0x37F, 0, 0, 0, 0, 0, 0, 0, 0, 0x1F80, 0)
        for n in range(8):
            struct.pack_into("<4f", fpu, 160 + 16 * n, n + 0.5, -n, n * 1e3, 1.0 / (n + 1))
        memory.write(STATE + 0x200, bytes(fpu))
        memory.write(STATE + 32, struct.pack("<HI", 8 * len(GDT_ROWS) - 1, KERNEL + GDT))
        memory.write(STATE + 40, struct.pack("<HI", 0x7FF, KERNEL + IDT))
        for address, content in self.extra.items():
            memory.write(address, content)
        at = placed = 0
        for program in programs:
            code, recover = program.code()
            if at + len(code) + 64 > STREAM_BYTES:
                break
            memory.write(STREAM_MEMORY + at, code)
            memory.write(MAPS + 2 * at, struct.pack(f"<{len(recover)}H", *recover))
            registers = list(program.registers)
            registers[4], registers[6] = STACK, USER
            row = struct.pack(
                "<III8I4I", STREAMS + at, program.ring, program.eflags, *registers, KERNEL + MAPS + 2 * at, len(code), program.cr0, program.cr4
            )
            memory.write(TABLE + 64 * placed, row)
            at += len(code) + 1
            placed += 1
        memory.write(STATE, struct.pack("<II", 0, placed))
        memory.write(STATE + 16, struct.pack("<I", KERNEL + LOG))
        memory.write(STATE + 28, struct.pack("<I", timer))
        return placed

    def run(self, programs: Sequence[Program], timer: int = 0, seconds: float = SECONDS) -> Outcome:
        """As many of the programs as there is room for. timer: periods of the 8254 between interrupts, 0 = none."""
        placed = self._load(programs, timer)
        assert self.vcpu
        vcpu = self.vcpu
        vcpu.memory_changed(0, RAM)
        flat = {name: Segment(0x10, 0, 0xFFFF_FFFF, 0xC09300) for name in ("ds", "es", "fs", "gs", "ss")}
        vcpu.enter(
            EntryState(
                registers={"rip": KERNEL + CODE, "rsp": KERNEL + KERNEL_STACK - 512, "rflags": 2}, cr0=CR0, cr3=DIRECTORY, cr4=CR4,
                segments=flat | {"cs": Segment(8, 0, 0xFFFF_FFFF, 0xC09B00)}, gdt=(KERNEL + GDT, 8 * len(GDT_ROWS) - 1),
                idt=(KERNEL + IDT, 0x7FF),
            )
        )  # fmt: skip
        self.board.start_clock()
        late = threading.Event()
        over = threading.Event()

        def kick() -> None:
            """When it is late; with a timer, all the time."""
            until = time.monotonic() + seconds
            while not over.wait(KICK_SECONDS if timer else seconds):
                if time.monotonic() >= until:
                    late.set()
                vcpu.kick()

        kicker = threading.Thread(target=kick)
        kicker.start()
        devices: list[tuple[Any, ...]] = []
        end = ""
        kicks = 0
        while not end:
            exit_ = vcpu.run()
            match exit_.reason:
                case ExitReason.INTERRUPTED:
                    kicks += 1
                    end = "late" if late.is_set() else ""
                case ExitReason.PORT_OUT if exit_.address == EXIT_PORT:
                    end = f"exit {exit_.value:#x}"
                case ExitReason.PORT_OUT | ExitReason.MMIO_WRITE:
                    devices.append((exit_.reason.name, exit_.address, exit_.size, exit_.value))
                case ExitReason.PORT_IN | ExitReason.MMIO_READ:
                    exit_.value = (exit_.address * 0x9E3779B1 + len(devices)) & ((1 << 8 * exit_.size) - 1)
                    devices.append((exit_.reason.name, exit_.address, exit_.size))
                case _:
                    end = f"{exit_.reason.name} at {exit_.rip:#x}: {exit_.detail}"
        over.set()
        kicker.join()
        (used,) = struct.unpack("<I", self.memory.read(STATE + 16, 4))
        records: list[list[tuple[int, ...]]] = [[] for _ in range(placed)]
        length = min(max(used - KERNEL - LOG, 0), LOG_BYTES)
        for row in RECORD.iter_unpack(self.memory.read(LOG, length - length % RECORD.size)):
            if row[14] < placed:
                records[row[14]].append(row)
        (ticks,) = struct.unpack("<I", self.memory.read(STATE + 20, 4))
        return Outcome(end, records, devices, ticks, kicks)
