"""The same guest on two ways of executing: it must not be able to tell which one it is on."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import kernel
from machine_run import run_machine
from native_rig import RAM, Rig, assemble
from streams import BUFFER_BYTES, FLAGS_OFFSET, ITERATIONS_OFFSET, Stream
from unicorn import UC_ARCH_X86, UC_MODE_32
from unicorn import x86_const as x86

from hvd.backends.emulation.backend import BACKEND
from hvd.board.vcpu import ExitReason

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")

# ---- test kernels on both engines

ON_BOTH = {
    "hello.elf": "", "flat.bin": "", "pvh.elf": "one two", "hypercalls.elf": "", "interrupts.elf": "", "halt.elf": "", "triple.elf": "",
    "reset.elf": "", "wild.elf": "", "compute.elf": "n=300000", "echo.elf": "",
}  # fmt: skip


@pytest.mark.parametrize("name", ON_BOTH)
def test_native_and_public_agree(name: str) -> None:
    typed = b"hello\rq" if name == "echo.elf" else b""
    (native, native_console), (public, public_console) = (
        run_machine(kernel(name), engine, ON_BOTH[name], typed) for engine in ("native", "public")
    )
    assert native_console == public_console
    assert (native.reason, native.exit_code) == (public.reason, public.exit_code), (native, public)
    assert native.reason != "KILLED"


# ---- test kernels under QEMU

UNDER_QEMU = {
    "hello.elf": "", "interrupts.elf": "", "exceptions.elf": "", "paging.elf": "", "pvh.elf": "", "long.elf": "", "alias.elf": "",
    "compute.elf": "n=300000", "reset.elf": "", "triple.elf": "", "hole.elf": "", "isolation.elf": "", "modes.elf": "",
}  # fmt: skip


def qemu(path: Path, command_line: str) -> tuple[int, str]:
    """(exit code, console); at a reset it ends with code 0."""
    program = "qemu-system-x86_64" if path.stem in ("long", "alias") else "qemu-system-i386"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt install qemu-system-x86")
    command = [
        program,
        *[
            "-accel",
            "tcg",
            "-m",
            "16",
            "-serial",
            "stdio",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-nodefaults",
        ],
    ]
    command += ["-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(path), "-append", command_line]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    code = done.returncode >> 1 if done.returncode & 1 else done.returncode  # isa-debug-exit: 2n + 1
    return code, done.stdout.replace(b"\r", b"").decode(errors="replace")


@pytest.mark.parametrize("name", UNDER_QEMU)
def test_native_and_qemu_agree(name: str) -> None:
    code, console = qemu(kernel(name), UNDER_QEMU[name])
    end, own_console = run_machine(kernel(name), "native", UNDER_QEMU[name])
    assert _comparable(own_console) == _comparable(console)
    assert end.exit_code == code, end


def _comparable(console: str) -> list[str]:
    """Without the command line: QEMU puts the kernel's path in front of it."""
    return [line for line in console.splitlines() if "ommand line" not in line]


# ---- random code against bare Unicorn

STREAM, REGISTERS, BUFFER = 0x20000, 0x1F000, 0x100000
BARE_STACK = 0x80000
SEEDS_PER_TEST, ITERATIONS = 25, 400
KICK_SECONDS = 0.0005

NATIVE_SIDE = f"""
        .set STREAM, {STREAM:#x}; .set REGISTERS, {REGISTERS:#x}
        gate 0x20, tick
        gate 0x80, over, 0xee00
        pics 0xfe
        timer 80
        movl $REGISTERS, %esp
        popal
        movl ${BARE_STACK:#x}, %esp
        ENTER
    tick: pushal; incl SCRATCH; movb $0x20, %al; outb %al, $0x20; popal; iretl
    over: pushal; movl %esp, SCRATCH + 4; finish $0
"""
RINGS = {
    0: NATIVE_SIDE.replace("ENTER", "pushl $0x202; popfl; jmp STREAM"),
    # No register is left to clobber: iretl takes all from the stack.
    3: NATIVE_SIDE.replace(
        "ENTER", f"pushl $0x23; pushl ${BARE_STACK:#x}; pushl $0x202; pushl $0x1b; pushl $STREAM; iretl"
    ),
}


class NativeSide:
    def __init__(self, directory: Path) -> None:
        self.images = {ring: assemble(source, directory) for ring, source in RINGS.items()}
        self.rig = Rig(self.images[0])
        self.kicks = self.ticks = 0
        self._over = threading.Event()
        self._kicker = threading.Thread(target=self._kick)
        self._kicker.start()

    def _kick(self) -> None:
        while not self._over.wait(KICK_SECONDS):
            self.rig.vcpu.kick()

    def run(self, stream: Stream, ring: int) -> tuple[list[int], bytes]:
        """General registers and EFLAGS, and the buffer with what lies behind it."""
        rig = self.rig
        rig.image = self.images[ring]
        rig.load()
        # The kernel's stack is not the stream's.
        rig.memory.write(0x3004, struct.pack("<I", 0x70000 + 0x8000))
        rig.memory.write(STREAM, stream.code + b"\xcd\x80")
        rig.memory.write(REGISTERS, pushed(stream))
        rig.memory.write(BUFFER, stream.buffer + struct.pack("<II", ITERATIONS, 0))
        while (exit_ := rig.vcpu.run()).reason is ExitReason.INTERRUPTED:
            self.kicks += 1
        assert exit_.reason is ExitReason.PORT_OUT, exit_
        self.ticks += rig.scratch()
        frame = rig.scratch(4)
        edi, esi, ebp, _, ebx, edx, ecx, eax, _, _, eflags = struct.unpack("<11I", rig.memory.read(frame, 44))
        return [eax, ecx, edx, ebx, ebp, esi, edi, eflags], rig.memory.read(BUFFER, BUFFER_BYTES + 8)

    def close(self) -> None:
        self._over.set()
        self._kicker.join()
        self.rig.close()


def pushed(stream: Stream) -> bytes:
    """As POPA wants it: edi, esi, ebp, esp, ebx, edx, ecx, eax."""
    eax, ecx, edx, ebx, _, ebp, _, edi = stream.registers
    return struct.pack("<8I", edi, BUFFER, ebp, 0, ebx, edx, ecx, eax)


def run_bare(stream: Stream) -> tuple[list[int], bytes]:
    import unicorn

    make: Any = unicorn.Uc  # type: ignore[attr-defined]
    uc = make(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0, RAM)
    uc.mem_write(STREAM, stream.code)
    uc.mem_write(BUFFER, stream.buffer + struct.pack("<II", ITERATIONS, 0))
    names = ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")
    for name, value in zip(names, stream.registers, strict=True):
        uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), value)
    uc.reg_write(x86.UC_X86_REG_ESI, BUFFER)
    uc.reg_write(x86.UC_X86_REG_ESP, BARE_STACK)
    uc.reg_write(x86.UC_X86_REG_EFLAGS, 0x202)
    uc.emu_start(STREAM, STREAM + len(stream.code))
    found = [
        uc.reg_read(getattr(x86, f"UC_X86_REG_{name}"))
        for name in ("EAX", "ECX", "EDX", "EBX", "EBP", "ESI", "EDI", "EFLAGS")
    ]
    return found, bytes(uc.mem_read(BUFFER, BUFFER_BYTES + 8))


@pytest.fixture(scope="module")
def native_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeSide]:
    side = NativeSide(tmp_path_factory.mktemp("streams"))
    yield side
    side.close()


@pytest.mark.parametrize("first", range(0, 300, SEEDS_PER_TEST))
def test_random_code_is_not_disturbed(native_side: NativeSide, first: int) -> None:
    """With a timer interrupt every 67 us and kicks all the time, in ring 0 and 3: registers, memory and flags come out as without."""
    for seed in range(first, first + SEEDS_PER_TEST):
        stream = Stream(seed)
        ring = 3 * (seed & 1)
        (registers, memory), (bare_registers, bare_memory) = native_side.run(stream, ring), run_bare(stream)
        where = f"seed {seed}, ring {ring}"
        assert [hex(value) for value in registers] == [hex(value) for value in bare_registers], where
        assert memory[FLAGS_OFFSET:] == bare_memory[FLAGS_OFFSET:], f"{where}: flags"
        assert memory[ITERATIONS_OFFSET : ITERATIONS_OFFSET + 4] == bytes(4), where
        assert memory == bare_memory, where


def test_the_streams_were_disturbed(native_side: NativeSide) -> None:
    """Or the tests above showed nothing."""
    for seed in range(1000, 1200):
        if native_side.kicks > 20 and native_side.ticks > 1000:
            return
        native_side.run(Stream(seed), 0)
    pytest.fail(f"only {native_side.kicks} kicks and {native_side.ticks} ticks")
