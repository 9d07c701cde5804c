"""The test kernels of guests/: under QEMU, as a second opinion on what a PC does; and our loaders' entry
states on a bare Unicorn."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hvd.board.loaders import DEFAULT_LOAD_ADDRESS, identify, load
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import EntryState

PROJECT = Path(__file__).parents[2]
MULTIBOOT = [
    "hello",
    "hypercalls",
    "interrupts",
    "exceptions",
    "paging",
    "spin",
    "halt",
    "triple",
    "reset",
    "flood",
    "wild",
    "echo",
    "compute",
    "ticker",
]


@pytest.fixture(scope="session")
def guests() -> Path:
    """build/guests, up to date."""
    subprocess.run(["make", "-s", "-f", "guests.mk", "guests"], cwd=PROJECT, check=True, timeout=300)
    return PROJECT / "build" / "guests"


def test_formats(guests: Path) -> None:
    for name in MULTIBOOT:
        assert identify(guests / f"{name}.elf").format == "multiboot", name
    assert identify(guests / "pvh.elf").description == "PVH kernel, ELF32"
    assert identify(guests / "long.elf").description == "PVH kernel, ELF64"
    assert identify(guests / "flat.bin", DEFAULT_LOAD_ADDRESS).format == "flat"


def qemu(kernel: Path, line: str, typed: bytes = b"", seconds: float = 30) -> tuple[int | None, str]:
    """(exit code, None = it did not end; the console). isa-debug-exit answers 2n + 1 for code n."""
    program = "qemu-system-x86_64"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    command = f"{program} -accel tcg -m 64 -serial stdio -display none -monitor none -no-reboot".split()
    command += ["-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(kernel), "-append", line]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        output = b""
        if typed:
            output = process.stdout.readline()  # the guest listens
            process.stdin.write(typed)
            process.stdin.flush()
        try:
            more, _ = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            more, _ = process.communicate()
            code = None
    return code, (output + more).decode("latin-1").replace("\r", "")


@pytest.mark.parametrize(
    ("name", "line", "code", "last"),
    [
        ("hello", "a=1", 0, "hello: ok"),
        ("pvh", "a=1", 0, "pvh: ok"),
        ("long", "", 0, "long: ok"),
        ("interrupts", "", 0, "interrupts: ok"),
        ("exceptions", "", 0, "exceptions: ok"),
        ("paging", "", 0, "paging: ok"),
        ("hypercalls", "", 77, "hypercalls: there is no hvd here: port 0x6870 reads 0xffffffff"),
        ("compute", "n=1000", 0, "compute: ok"),
        ("compute", "n=1000 memory=1 timer=1000", 0, "compute: ok"),
        ("ticker", "count=2", 0, "ticker: ok"),
        ("flood", "count=3", 0, "flood: ok"),
    ],
)
def test_under_qemu(guests: Path, name: str, line: str, code: int, last: str) -> None:
    found, output = qemu(guests / f"{name}.elf", line)
    assert output.splitlines()[-1] == last, output
    assert found == code * 2 + 1


@pytest.mark.parametrize("name", ["triple", "reset"])
def test_resets_under_qemu(guests: Path, name: str) -> None:
    assert qemu(guests / f"{name}.elf", "") == (0, f"{name}: ok\n")  # QEMU ends at a reset (-no-reboot)


@pytest.mark.parametrize("name", ["spin", "halt", "wild"])
def test_endless_under_qemu(guests: Path, name: str) -> None:
    code, output = qemu(guests / f"{name}.elf", "", seconds=2)
    assert code is None
    assert output.splitlines()[-1] == f"{name}: ok"


def test_echo_under_qemu(guests: Path) -> None:
    code, output = qemu(guests / "echo.elf", "", b"hello\rq")
    assert (code, output) == (15, "echo: type, q ends\nhello\n\necho: ok\n")


# --- our own loaders: the entry state, put into a bare Unicorn with COM1's transmitter and the debug exit port.


class Bare:
    """Runs what needs no interrupts."""

    def __init__(self, memory: GuestMemory, state: EntryState) -> None:
        unicorn = pytest.importorskip("unicorn")
        x86 = pytest.importorskip("unicorn.x86_const")
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        uc.mem_map_ptr(0, memory.size, unicorn.UC_PROT_ALL, memory.host_address)
        self.output = b""
        self.code: int | None = None

        def port_in(engine: Any, port: int, size: int, _: Any) -> int:
            return 0x60 if port == 0x3FD else 0xFFFF_FFFF  # the transmitter is empty; all else floats

        def port_out(engine: Any, port: int, size: int, value: int, _: Any) -> None:
            if port == 0x3FB:
                self.divisor = bool(value & 0x80)
            if port == 0x3F8 and not self.divisor:
                self.output += bytes([value])
            if port == 0xF4:
                self.code = value
                uc.emu_stop()

        self.divisor = False  # LCR.DLAB: 0x3F8 is the baud rate
        uc.hook_add(unicorn.UC_HOOK_INSN, port_in, None, 1, 0, x86.UC_X86_INS_IN)
        uc.hook_add(unicorn.UC_HOOK_INSN, port_out, None, 1, 0, x86.UC_X86_INS_OUT)
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, *state.gdt, 0))
        uc.reg_write(x86.UC_X86_REG_CR0, state.cr0)
        for name in ("cs", "ds", "es", "ss"):
            uc.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), state.segments[name].selector)
        for name, value in state.registers.items():
            uc.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), value)
        uc.emu_start(state.registers["eip"], 0, timeout=20_000_000)


@pytest.mark.parametrize(
    ("file", "flat", "code", "text"),
    [
        ("hello.elf", 0, 0, 'Hello from ring 0. Command line: "some words"\r\nhello: ok\r\n'),
        ("pvh.elf", 0, 0, 'Entered by PVH. Command line: "some words"\r\npvh: ok\r\n'),
        ("flat.bin", DEFAULT_LOAD_ADDRESS, 3, "flat: ok\r\n"),
    ],
)
def test_entered_through_our_loaders(guests: Path, file: str, flat: int, code: int, text: str) -> None:
    with GuestMemory(4 << 20) as memory:
        bare = Bare(memory, load(memory, guests / file, None, "some words", flat).entry)
        assert (bare.code, bare.output.decode()) == (code, text)
