"""A guest of a few instructions on the native engine, without a machine around it: board, memory, vcpu and an assembled program."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hvd.backends.emulation.vcpu import NativeVcpu
from hvd.board import cpuid
from hvd.board.hot import MMIO, HotBoard
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState, Exit, ExitReason, Segment
from hvd.trace.points import BackendId

GDT, IDT, TSS, PML4, CODE = 0x1000, 0x2000, 0x3000, 0x6000, 0x10000
SPARE_DIRECTORY, SCRATCH, STACK, USER_STACK = 0x60000, 0x70000, 0x80000, 0x90000
TSS_BYTES, IO_BITMAP = 0x2069, 0x68
RAM = 2 << 20
PORT, EXIT_PORT = 0x5000, 0xF4
DEVICE = 0xC000_0000
SPARE_WINDOW = 0x80_0000_0000 - (1 << 30)  # 64 bit: guest-virtual GiB that SPARE_DIRECTORY maps

_TSS_DESCRIPTOR = 0x0000_8900_3000_0000 | TSS_BYTES - 1
# 08 code, 10 data, 18 user code, 20 user data, 28 TSS: the order that SYSENTER and SYSEXIT want
GDT_32 = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, _TSS_DESCRIPTOR)
# 08 code, 10 data, 18 user code of 32 bits, 20 user data, 28 user code of 64 bits, 30 user data, 38 TSS
GDT_64 = (
    0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0x00CFF3000000FFFF,
    _TSS_DESCRIPTOR, 0,
)  # fmt: skip

PROLOGUE = f"""
    .set SCRATCH, {SCRATCH:#x}; .set PORT, {PORT:#x}; .set DEVICE, {DEVICE:#x}
    .set STACK, {STACK:#x}; .set USER_STACK, {USER_STACK:#x}; .set TSS, {TSS:#x}
    .macro finish value
        movl \\value, %eax
        movw ${EXIT_PORT:#x}, %dx
        outl %eax, %dx
    .endm
    .macro pics mask, icw4=1
        movb $0x11, %al; outb %al, $0x20
        movb $0x20, %al; outb %al, $0x21
        movb $4, %al; outb %al, $0x21
        movb $\\icw4, %al; outb %al, $0x21
        movb $\\mask, %al; outb %al, $0x21
    .endm
    .macro timer count
        movb $0x34, %al; outb %al, $0x43
        movb $\\count & 0xff, %al; outb %al, $0x40
        movb $\\count >> 8, %al; outb %al, $0x40
    .endm
    .macro msr number, low, high=0
        movl $\\number, %ecx; movl \\low, %eax; movl \\high, %edx; wrmsr
    .endm
    .text
    .globl _start
_start:
"""
PROLOGUE_32 = f"""
    .code32
    .macro gate vector, handler, attributes=0x8e00
        movl $\\handler, %eax
        movw %ax, {IDT:#x} + 8 * \\vector
        movw $0x08, {IDT:#x} + 8 * \\vector + 2
        movw $\\attributes, {IDT:#x} + 8 * \\vector + 4
        shrl $16, %eax
        movw %ax, {IDT:#x} + 8 * \\vector + 6
    .endm
    .macro to_user label, flags=2
        pushl $0x23; pushl ${USER_STACK}; pushl $\\flags; pushl $0x1b; pushl $\\label; iretl
    .endm
{PROLOGUE}
    movw $0x28, %ax; ltr %ax
"""
PROLOGUE_64 = f"""
    .code64
    .macro gate vector, handler
        movl $\\handler, %eax
        movw %ax, {IDT:#x} + 16 * \\vector
        movw $0x08, {IDT:#x} + 16 * \\vector + 2
        movw $0x8e00, {IDT:#x} + 16 * \\vector + 4
        shrl $16, %eax
        movl %eax, {IDT:#x} + 16 * \\vector + 6
    .endm
{PROLOGUE}
    movw $0x38, %ax; ltr %ax
"""


def assemble(source: str, directory: Path, bits: int = 32) -> bytes:
    assembler, linker = shutil.which("as"), shutil.which("ld")
    assert assembler and linker, "binutils is needed: apt install gcc"
    (directory / "code.S").write_text((PROLOGUE_64 if bits == 64 else PROLOGUE_32) + source + "\n")
    subprocess.run([assembler, f"--{bits}", "-o", "code.o", "code.S"], cwd=directory, check=True, timeout=30)
    emulation = "elf_x86_64" if bits == 64 else "elf_i386"
    link = [linker, "-m", emulation, f"-Ttext={CODE:#x}", "--oformat=binary", "-o", "code.bin", "code.o"]
    subprocess.run(link, cwd=directory, check=True, timeout=30)
    return (directory / "code.bin").read_bytes()


def entry(bits: int) -> EntryState:
    flat = {name: Segment(0x10, 0, 0xFFFF_FFFF, 0xC09300) for name in ("ds", "es", "fs", "gs", "ss")}
    code = 0xA09B00 if bits == 64 else 0xC09B00
    return EntryState(
        registers={"rip": CODE, "rsp": STACK, "rflags": 2},
        cr0=0x8000_0011 if bits == 64 else 0x11,
        cr3=PML4 if bits == 64 else 0,
        cr4=0x20 if bits == 64 else 0,
        efer=0x501 if bits == 64 else 0,  # LME, LMA, SCE
        segments=flat | {"cs": Segment(8, 0, 0xFFFF_FFFF, code)},
        gdt=(GDT, 8 * len(GDT_64 if bits == 64 else GDT_32) - 1),
        idt=(IDT, 0xFFF if bits == 64 else 0x7FF),
    )


class Rig:
    def __init__(
        self, image: bytes, bits: int = 32, memory_bytes: int = RAM, devices: bool = True, backend: str = "emulation"
    ) -> None:
        self.bits = bits
        self.memory = GuestMemory(memory_bytes)
        if devices:
            self.memory.add_mmio(DEVICE, 0x1000, "device")
            for name, where in MMIO.items():
                self.memory.add_mmio(where.start, len(where), name, hot=True)
        self.board = HotBoard(BackendId.of(backend))
        self.board.claim(range(PORT, PORT + 8))
        self.board.claim(range(EXIT_PORT, EXIT_PORT + 1))
        if backend == "emulation":
            self.vcpu: Any = NativeVcpu(self.board, self.memory, cpuid.leaves)
        else:
            self.vcpu = import_module(f"hvd.backends.{backend}.vcpu").create(self.board, self.memory, cpuid.leaves, "")
        self.image = image
        self.load()

    def load(self) -> None:
        """As at power-on."""
        self.memory.clear_all()
        gdt = GDT_64 if self.bits == 64 else GDT_32
        self.memory.write(GDT, struct.pack(f"<{len(gdt)}Q", *gdt))
        task = struct.pack("<IQ", 0, STACK) if self.bits == 64 else struct.pack("<III", 0, STACK, 0x10)
        self.memory.write(TSS, task)
        self.memory.write(TSS + 0x66, struct.pack("<H", IO_BITMAP))
        self.memory.write(TSS + IO_BITMAP, b"\xff" * (TSS_BYTES - IO_BITMAP))
        if self.bits == 64:
            self._map()
        self.memory.write(CODE, self.image)
        self.vcpu.enter(entry(self.bits))
        self.board.start_clock()

    def _map(self) -> None:
        """Guest-virtual = guest-physical for 8 GiB, in pages of 2 MiB, for ring 3 too; SPARE_WINDOW as map_spare says."""
        pointers = PML4 + 0x1000
        self.memory.write(PML4, struct.pack("<Q", pointers | 7))
        for n in range(8):
            directory = PML4 + 0x2000 + n * 0x1000
            self.memory.write(pointers + 8 * n, struct.pack("<Q", directory | 7))
            self.memory.write(directory, struct.pack("<512Q", *((n << 30 | page << 21) | 0x87 for page in range(512))))
        self.memory.write(pointers + 8 * 511, struct.pack("<Q", SPARE_DIRECTORY | 7))

    def map_spare(self, physical: int) -> None:
        self.memory.write(SPARE_DIRECTORY, struct.pack("<512Q", *((physical + (n << 21)) | 0x87 for n in range(512))))

    def finish(self) -> int:
        """Run to the exit port; the value written."""
        with self.kicked_after(20):
            exit_ = self.vcpu.run()
        assert (exit_.reason, exit_.address) == (ExitReason.PORT_OUT, EXIT_PORT), (exit_, self.vcpu.registers())
        return exit_.value

    def interrupt(self, seconds: float = 0.01) -> Exit:
        """Run until a kick, which comes after that time."""
        with self.kicked_after(seconds):
            exit_ = self.vcpu.run()
        assert exit_.reason is ExitReason.INTERRUPTED, exit_
        return exit_

    @contextmanager
    def kicked_after(self, seconds: float) -> Iterator[None]:
        kick = threading.Timer(seconds, self.vcpu.kick)
        kick.start()
        try:
            yield
        finally:
            kick.cancel()
            kick.join()

    def scratch(self, offset: int = 0, length: int = 4) -> int:
        return int.from_bytes(self.memory.read(SCRATCH + offset, length), "little")

    def close(self) -> None:
        self.vcpu.close()
        self.memory.close()
        self.board.close()


# Assembles a program, of 32 bits or 64, and makes a guest of it (conftest.py's fixture `start`).
Start = Callable[..., Rig]
