"""The kernel of stream_guest: its memory, its code, its descriptors and its page tables, with 32-bit entries or with PAE's."""

from __future__ import annotations

import enum
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

RAM: Final = 8 << 20
KERNEL, USER, STREAMS, ALIAS, DEVICE = 0xE000_0000, 0x4000_0000, 0x4800_0000, 0x4820_0000, 0xC000_0000
LARGE = 0x5000_0000  # the first memory once more, by a large page, for programs as well
GDT, LDT, IDT, TSS, STATE, CODE = 0x1000, 0x1800, 0x2000, 0x3000, 0x9000, 0x10000
DIRECTORY, OTHER_DIRECTORY, KERNEL_TABLE, USER_TABLE, STREAM_TABLE, DEVICE_TABLE, OTHER_USER_TABLE, PRISTINE_TABLE = (
    0x20000, 0x21000, 0x22000, 0x24000, 0x25000, 0x26000, 0x27000, 0x28000,
)  # fmt: skip
PAE_DIRECTORY, PAE_OTHER_DIRECTORY, PAE_KERNEL_DIRECTORY = 0x29000, 0x2A000, 0x2B000
KERNEL_STACK, TABLE, MAPS = 0x2F000, 0x40000, 0x80000
BUFFER, STACK_PAGE, PRISTINE, STREAM_MEMORY, LOG = 0x100000, 0x110000, 0x180000, 0x200000, 0x300000
STREAM_BYTES, LOG_BYTES = 0x40000, 0x400000
STACK = USER + 0x10800
PORT, EXIT_PORT = 0x5000, 0xF4
RECORD = struct.Struct("<18I")
MOST_FAULTS = 48
END_VECTOR, ECHO_VECTOR = 0x81, 0x82

LARGE_PAGE, GLOBAL = 0x80, 0x100
CR4_PAE = 0x20


class Paging(enum.Enum):
    SMALL = "4 KiB pages"
    BIG = "the kernel in 4 MiB pages"
    PAE = "PAE, the kernel in 2 MiB pages"

    @property
    def entry_bytes(self) -> int:
        return 8 if self is Paging.PAE else 4

    @property
    def cr4(self) -> int:
        return CR4_PAE if self is Paging.PAE else 0


# Pages at USER: frame and flags. The rest is not present.
USER_PAGES: Final[dict[int, int]] = {
    0x0: BUFFER | 7, 0x1: BUFFER + 0x1000 | 7, 0x3: BUFFER + 0x3000 | 5, 0x4: BUFFER + 0x4000 | 3, 0x6: BUFFER | 7, 0x7: BUFFER + 0x1000 | 5,
    0x8: BUFFER | 7, 0x9: BUFFER + 0x1000 | 7, 0xB: BUFFER + 0x4000 | 7, 0x10: STACK_PAGE | 7, 0x12: STACK_PAGE + 0x2000 | 7,
}  # fmt: skip
OTHER_PAGES: Final = {0x8: BUFFER + 0x1000 | 7, 0x9: BUFFER | 5, 0xA: BUFFER | 3, 0xB: 0}
# 08 code, 10 data, 18 user code, 20 user data, 28 TSS, 30 data with a base in the buffer, 38 with a base and a limit, 40 not present,
# 48 conforming code, 50 read-only data, 58 for users like 30, 60 for users like 38, 68 expand-down, 70 LDT
GDT_ROWS: Final = (
    0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0xE000890030000067, 0x40CF93000000FFFF | 0x0100 << 16,
    0x4040930000000FFF | 0x0800 << 16, 0x00CF13000000FFFF, 0x00CF9F000000FFFF, 0x00CF91000000FFFF, 0x40CFF3000000FFFF | 0x0100 << 16,
    0x4040F30000000FFF | 0x0800 << 16, 0x00CF970000000FFF, (KERNEL >> 24) << 56 | 0x0000820000000000 | LDT << 16 | 0x7F,
)  # fmt: skip
LDT_SELECTOR = 0x70
# 04 code, 0c 16-bit code, 14 16-bit user code, 1c user code, 24 16-bit stack, 2c the same for users, 34 expand-down, 3c the same for users,
# 44 call gate for users, 4c the same with two parameters, 54 call gate for the kernel, 5c conforming code, 64 not present, 6c execute-only code,
# 74 user data
GATE_ROWS: Final = {8: (0xEC, 0), 9: (0xEC, 2), 10: (0x8C, 0)}  # access, parameters
LDT_ROWS: Final = (
    0x00CF9B000000FFFF, 0x008F9B000000FFFF, 0x008FFB000000FFFF, 0x00CFFB000000FFFF, 0x400093010000FFFF, 0x4000F3010000FFFF, 0x0040970000000FFF,
    0x0040F70000000FFF, 0, 0, 0, 0x00CF9F000000FFFF, 0x00CF13000000FFFF, 0x00CF99000000FFFF, 0x00CFF3000000FFFF, 0,
)  # fmt: skip
CR0, CR4 = 0x8001_0033, 0x690
# DR0 to DR2, of a program that has DR7: a loop's counters and its stack; DR3 is in its code.
WATCHED: Final = (USER + 0x1F00, USER + 0x1F08, STACK - 4)
CODE_WATCHED: Final = 16  # from its beginning
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
    movl $PRISTINE_TABLE, %esi; movl $USER_TABLE, %edi; movl $TABLE_WORDS, %ecx; rep movsl
    movl $INITIAL_CR0, %eax; movl %eax, %cr0
    movl $INITIAL_CR4, %eax; movl %eax, %cr4
    movl $DIRECTORY, %eax; movl %eax, %cr3
    movl $INITIAL_CR4 & ~0x80, %eax; movl %eax, %cr4
    movl $INITIAL_CR4, %eax; movl %eax, %cr4
    lgdt GDT_POINTER
    lidt IDT_POINTER
    movw $LDT_SELECTOR, %ax; lldt %ax
    movl $0, FAULTS
    xorl %eax, %eax; movl %eax, %cr2
    fxrstor FPU_IMAGE
    movw $0x30, %ax; movw %ax, %fs
    movw $0x38, %ax; movw %ax, %gs
    movl CURRENT, %ebx
    movl 52(%ebx), %eax; movl %eax, %cr0
    movl 56(%ebx), %eax; movl %eax, %cr4
    movl 60(%ebx), %ecx
    jecxz 1f
    movl $WATCHED_0, %eax; movl %eax, %dr0
    movl $WATCHED_1, %eax; movl %eax, %dr1
    movl $WATCHED_2, %eax; movl %eax, %dr2
    xorl %eax, %eax; movl %eax, %dr6; movl %eax, %dr3
    testl $0xc0, %ecx
    jz 2f
    movl (%ebx), %eax; addl $CODE_WATCHED, %eax; movl %eax, %dr3
2:
    movl %ecx, %dr7
1:  cmpl $0, 4(%ebx)
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
    movl %cr0, %eax; movl %cr4, %ebx; shll $16, %ebx; xorl %ebx, %eax
    cmpl $1, 32(%esi)
    jne 1f
    movl %dr6, %ebx; andl $0xf, %ebx; jz 1f
    shll $24, %ebx; xorl %ebx, %eax
    # not in front of a CMP that defines them
    andl $~0x8d5, 16(%edi)
1:  movl %eax, 68(%edi)
    addl $72, LOG_POINTER
    movl 32(%esi), %eax
    cmpl $END_VECTOR, %eax
    je finished
    incl FAULTS
    cmpl $MOST_FAULTS, FAULTS
    ja finished
    cmpl $ECHO_VECTOR, %eax
    je echo
    cmpl $7, %eax
    je wanted
    cmpl $3, %eax
    je go_on
    cmpl $4, %eax
    je go_on
    cmpl $1, %eax
    je trap
skip:
    andl $~0x10000, 48(%esi)
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
    # in 32-bit code, wherever it was
    testl $3, 44(%esi)
    movl $0x08, 44(%esi)
    jz go_on
    movl $0x1b, 44(%esi)
    jmp go_on
wanted:
    # x87 and SSE are given to whoever wants them, unless there are none
    movl %cr0, %eax
    testb $4, %al
    jnz skip
    clts
    jmp go_on
echo:
    # and taken away again, as at its beginning
    testl $3, 44(%esi)
    jz go_on
    movl CURRENT, %ebx
    movl 52(%ebx), %eax; movl %eax, %cr0
    jmp go_on
trap:
    andl $~0x100, 48(%esi)
    # its code's breakpoint stops it once: emulation shows RF by PUSHF
    movl %dr6, %eax
    xorl %ebx, %ebx; movl %ebx, %dr6
    testl $8, %eax
    jz go_on
    movl %dr7, %eax; andl $~0xc0, %eax; movl %eax, %dr7
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
    xorl %eax, %eax; movl %eax, %dr7
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
    movl $0, 32(%edi); movl $0, 36(%edi); movl $0, 40(%edi); movl $0, 44(%edi); movl $0, 48(%edi); movl $0, 52(%edi)
    movl $0, 60(%edi)
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
    .balign 16
gates:
    pushfl; popl %edx; lret
    .balign 16
    movl 8(%esp), %edx; lret $8
    .balign 16
handlers:
"""


def kernel_image(directory: Path, paging: Paging, assembler: str | None = None) -> tuple[bytes, list[int], int]:
    """The kernel, the address of the handler of each vector, and of the first call gate's procedure. Leaves streams.o."""
    symbols = {
        "STREAM_INDEX": KERNEL + STATE, "STREAM_COUNT": KERNEL + STATE + 4, "CURRENT": KERNEL + STATE + 8, "FAULTS": KERNEL + STATE + 12,
        "LOG_POINTER": KERNEL + STATE + 16, "TICKS": KERNEL + STATE + 20, "TIMER": KERNEL + STATE + 28,
        "GDT_POINTER": KERNEL + STATE + 32, "IDT_POINTER": KERNEL + STATE + 40,
        "FPU_IMAGE": KERNEL + STATE + 0x200, "FPU_AREA": KERNEL + STATE + 0x400,
        "TABLE": KERNEL + TABLE, "PRISTINE": KERNEL + PRISTINE, "BUFFER": KERNEL + BUFFER, "STACK_PAGE": KERNEL + STACK_PAGE,
        "PRISTINE_TABLE": KERNEL + PRISTINE_TABLE, "USER_TABLE": KERNEL + USER_TABLE, "DIRECTORY": DIRECTORY, "KERNEL_STACK": KERNEL + KERNEL_STACK,
        "LOG_END": KERNEL + LOG + LOG_BYTES - 256, "EXIT_PORT": EXIT_PORT, "END_VECTOR": END_VECTOR, "ECHO_VECTOR": ECHO_VECTOR,
        "MOST_FAULTS": MOST_FAULTS, "INITIAL_CR0": CR0, "INITIAL_CR4": CR4 | paging.cr4,
        "LDT_SELECTOR": LDT_SELECTOR, "CODE_WATCHED": CODE_WATCHED,
        "WATCHED_0": WATCHED[0], "WATCHED_1": WATCHED[1], "WATCHED_2": WATCHED[2], "TABLE_WORDS": 32 * paging.entry_bytes // 4,
    }  # fmt: skip
    source = "".join(f"    .set {name}, {value:#x}\n" for name, value in symbols.items()) + SKELETON
    for vector in range(256):
        push = "" if vector in ERROR_CODES else "pushl $0; "
        source += (
            f"    .balign 16\n    {push}pushl ${vector}; jmp common\n"
            if vector != 0x20
            else "    .balign 16\n    jmp timer\n"
        )
    source = source.replace("_start:", "_start: jmp 1f\n    .long handlers, gates\n1:")
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
    handlers, gates = struct.unpack_from("<II", image, at)
    return image, [handlers + 16 * vector for vector in range(256)], gates


def local_descriptors(gates: int) -> bytes:
    rows = list(LDT_ROWS)
    for row, (access, parameters) in GATE_ROWS.items():
        procedure = gates + (16 if parameters else 0)
        rows[row] = procedure >> 16 << 48 | (access << 8 | parameters) << 32 | 0x08 << 16 | procedure & 0xFFFF
    return struct.pack(f"<{len(rows)}Q", *rows)


def page_tables(paging: Paging) -> dict[int, bytes]:
    """Guest-physical memory, by address."""
    size = paging.entry_bytes
    letter = "Q" if size == 8 else "I"

    def packed(*entries: int) -> bytes:
        return struct.pack(f"<{len(entries)}{letter}", *entries)

    window = packed(*(STREAM_MEMORY + (n << 12) | 7 for n in range(STREAM_BYTES >> 12)))
    pages = packed(*(USER_PAGES.get(n, 0) for n in range(32)))
    others = packed(*(OTHER_PAGES.get(n, USER_PAGES.get(n, 0)) for n in range(32)))
    tables = {
        USER_TABLE: pages, PRISTINE_TABLE: pages, OTHER_USER_TABLE: others, STREAM_TABLE: window, DEVICE_TABLE: packed(DEVICE | 0x17),
    }  # fmt: skip
    shift = 21 if paging is Paging.PAE else 22
    low = {LARGE: 7 | LARGE_PAGE, STREAMS: STREAM_TABLE | 7}
    high = {DEVICE: DEVICE_TABLE | 7}
    if paging is Paging.PAE:
        low[ALIAS] = STREAM_TABLE | 7
    else:
        tables[STREAM_TABLE + 0x800] = window  # of ALIAS
    if paging is Paging.SMALL:
        tables[KERNEL_TABLE] = packed(*(page << 12 | 3 | GLOBAL for page in range(2048)))
        high |= {KERNEL: KERNEL_TABLE | 3, KERNEL + (4 << 20): KERNEL_TABLE + 0x1000 | 3}
    else:
        high |= {KERNEL + at: at | 3 | LARGE_PAGE | GLOBAL for at in range(0, RAM, 1 << shift)}
    for directory, pae_directory, user_table in (
        (DIRECTORY, PAE_DIRECTORY, USER_TABLE), (OTHER_DIRECTORY, PAE_OTHER_DIRECTORY, OTHER_USER_TABLE),
    ):  # fmt: skip
        if paging is Paging.PAE:
            tables[directory] = packed(0, pae_directory | 1, 0, PAE_KERNEL_DIRECTORY | 1)
        for where, entries in ((pae_directory, {USER: user_table | 7} | low), (PAE_KERNEL_DIRECTORY, high)):
            where, most = (where, 512) if paging is Paging.PAE else (directory, 1024)
            for linear, entry in entries.items():
                tables[where + size * (linear >> shift & most - 1)] = packed(entry)
    return tables
