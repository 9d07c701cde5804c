"""The same guest under emulation and under trap: console, end, registers and memory are the same in the end.

What may differ is masked, and said here: accessed bits that one of them sets when the other need not; segments' hidden attributes that
follow from those; what the hole in x86 shows (docs/trap.md).
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import kernel
from machine_run import Final, run_to_end
from native_rig import Rig, assemble
from streams import BUFFER_BYTES, FLAGS_OFFSET, ITERATIONS_OFFSET, Stream
from test_differential import BARE_STACK, BUFFER, NATIVE_SIDE, REGISTERS, STREAM, pushed

from hvd.backends.trap.backend import BACKEND
from hvd.board.vcpu import ExitReason

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")

# ---- test kernels

# Kernel -> command line. All that have no sensitive instruction (tests/unit/test_census.py).
KERNELS = {
    "hello.elf": "one two", "flat.bin": "", "pvh.elf": "three", "hypercalls.elf": "", "interrupts.elf": "", "exceptions.elf": "",
    "paging.elf": "", "halt.elf": "", "triple.elf": "", "reset.elf": "", "wild.elf": "", "compute.elf": "n=300000", "echo.elf": "",
    "isolation.elf": "", "modes.elf": "", "garbage.elf": "", "ports.elf": "n=500", "ticker.elf": "count=2", "flood.elf": "count=200",
    "nonsense.elf": "count=300", "exits.elf": "slow=20 fast=200", "virtio.elf": "", "modes.elf rest": "skip=0",
    "compute.elf memory": "n=100000 memory=1 timer=100",
} | {f"garbage.elf {n}": f"case={n}" for n in range(10)}  # fmt: skip
# Their consoles or memory hold figures of time or of devices' state at a moment.
MOMENTARY_CONSOLE = frozenset({"compute.elf memory"})
# Emulation checks no limits of segments: row 0 of modes goes on there where trap faults. In the cycle of case 8 an exception's frame
# falls on the page directory, or not.
MOMENTARY_MEMORY = frozenset({"nonsense.elf", "exits.elf", "virtio.elf", "compute.elf memory", "modes.elf", "garbage.elf 8"})
ACCESSED = 0x20
DESCRIPTOR_ACCESSED, DESCRIPTOR = 0x100, 0x9000  # in its second word: accessed; present, code or data
STATUS_FLAGS = 0x8D5  # in the middle of what ends in a triple fault they are nobody's
ATTRIBUTES = 0xF0FE00  # without the accessed bit, and without the bits of the limit that emulation has there
SYSTEM_ATTRIBUTES = 0xF0FD00  # a task state's busy bit


@pytest.mark.parametrize("name", KERNELS)
def test_emulation_and_trap_agree(name: str) -> None:
    path = kernel(name.split()[0])
    typed = b"hello\rq" if name == "echo.elf" else b""
    emulated, trapped = (
        run_to_end(path, KERNELS[name], typed, backend=backend, engine=engine) for backend, engine in (("emulation", "native"), ("trap", ""))
    )
    if name not in MOMENTARY_CONSOLE:
        assert trapped.console == emulated.console
    ends = [(final.end.reason, final.end.exit_code) for final in (emulated, trapped)]
    assert ends[0] == ends[1], (emulated.end, trapped.end)
    assert emulated.end.reason != "KILLED"
    if name not in MOMENTARY_MEMORY:
        assert _differing_registers(emulated, trapped) == {}
        assert _differing_words(emulated, trapped) == []


def _differing_registers(one: Final, other: Final) -> dict[str, tuple[str, str]]:
    found = {}
    for register, value in one.registers.items():
        theirs = other.registers[register]
        segment, _, part = register.partition(".")
        mask = (1 << 64) - 1
        if part and segment in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr") and not one.registers[segment] & ~3:
            mask = 0  # of a null selector
        elif part == "attributes":
            mask = SYSTEM_ATTRIBUTES if segment in ("tr", "ldtr") else ATTRIBUTES
        elif register == "rflags" and one.end.reason == "TRIPLE_FAULT":
            mask = ~STATUS_FLAGS
        if value & mask != theirs & mask:
            found[register] = (hex(value), hex(theirs))
    return found


def _differing_words(one: Final, other: Final) -> list[tuple[str, str, str]]:
    if one.memory == other.memory:
        return []
    found = []
    for page in range(0, len(one.memory), 4096):
        if one.memory[page : page + 4096] == other.memory[page : page + 4096]:
            continue
        for address in range(page, page + 4096, 4):
            a, b = (struct.unpack_from("<I", final.memory, address)[0] for final in (one, other))
            excused = (ACCESSED if a & 1 else 0) | (DESCRIPTOR_ACCESSED if a & b & DESCRIPTOR == DESCRIPTOR else 0)
            if (a ^ b) & ~excused:
                found.append((hex(address), hex(a), hex(b)))
    return found


@pytest.mark.parametrize(("case", "words"), [(10, "f2 0f 12"), (11, "virtual-8086"), (12, "switches tasks")])
def test_what_the_cell_cannot_do_ends_the_guest_with_its_bytes_and_address(case: int, words: str) -> None:
    end = run_to_end(kernel("garbage.elf"), f"case={case}", backend="trap", engine="").end
    assert end.reason == "EXECUTION_ERROR", end
    assert re.search(words, end.message, re.IGNORECASE), end
    assert int(end.metadata["address"], 16) >= 0x100000 and bytes.fromhex(end.metadata["bytes"])


def test_limits_of_segments_are_the_processors_own() -> None:
    """Where emulation is wrong and trap is right."""
    final = run_to_end(kernel("modes.elf"), "limits=1", backend="trap", engine="")
    assert final.end.exit_code == 0 and final.console.endswith("modes: ok\n"), final.console


def test_the_hole_is_open_under_trap_and_closed_under_emulation() -> None:
    trapped = run_to_end(kernel("hole.elf"), backend="trap", engine="")
    emulated = run_to_end(kernel("hole.elf"))
    assert "HOLE closed" in emulated.console and emulated.end.exit_code == 0
    assert "off, PUSHF says on; POPF switched them not on\nHOLE open" in trapped.console
    assert (trapped.end.reason, trapped.end.exit_code) == ("EXITED", 12)


def test_no_user_code_reaches_the_kernels_memory() -> None:
    final = run_to_end(kernel("isolation.elf"), backend="trap", engine="")
    assert "176 tries, 0 of them reached the kernel's memory\nOK\n" in final.console and final.end.exit_code == 0


@pytest.mark.parametrize(
    ("backend", "way"),
    [("trap", ""), ("rewriting", "translate"), pytest.param("rewriting", "breakpoint", marks=pytest.mark.slow)],
)
def test_a_gibibyte_touched_sparsely(backend: str, way: str) -> None:
    """More pages than a process may have mappings: those that there are go, and come again when they are touched."""
    final = run_to_end(kernel("modes.elf"), "only=9 touch=80000 step=3", backend=backend, engine=way, memory_bytes=1 << 30)
    assert "80000 pages touched\nmodes: ok" in final.console, (final.console, final.end)


# ---- random code inside a kernel skeleton, with interrupts and kicks all the time

SEEDS_PER_TEST = 15
KICK_SECONDS = 0.002
ITERATIONS = 3000
SIDE = NATIVE_SIDE.replace(
    # IRET to CPL 3 takes the kernel's own segments away, which emulation goes on with.
    "movl $REGISTERS, %esp", "movl $0x23, %eax; movl %eax, %ds; movl %eax, %es; movl $REGISTERS, %esp"
)  # fmt: skip
# No POPF: it would not switch interrupts on.
RINGS = {
    0: SIDE.replace("ENTER", "pushl $0x202; pushl $0x08; pushl $STREAM; iretl"),
    3: SIDE.replace("ENTER", f"pushl $0x23; pushl ${BARE_STACK:#x}; pushl $0x202; pushl $0x1b; pushl $STREAM; iretl"),
}


class Side:
    def __init__(self, backend: str, directory: Path) -> None:
        self.images = {ring: assemble(source, directory) for ring, source in RINGS.items()}
        self.rig = Rig(self.images[0], backend=backend)
        self.ticks = self.kicks = 0

    def run(self, stream: Stream, ring: int) -> tuple[list[int], bytes]:
        """General registers and EFLAGS, and the buffer with what lies behind it."""
        rig = self.rig
        rig.image = self.images[ring]
        rig.load()
        rig.memory.write(0x3004, struct.pack("<I", 0x70000 + 0x8000))  # the kernel's stack is not the stream's
        rig.memory.write(STREAM, stream.code + b"\xcd\x80")
        rig.memory.write(REGISTERS, pushed(stream))
        rig.memory.write(BUFFER, stream.buffer + struct.pack("<II", ITERATIONS, 0))
        rig.vcpu.memory_changed(0, rig.memory.size)
        while (exit_ := rig.vcpu.run()).reason is ExitReason.INTERRUPTED:
            self.kicks += 1
        assert exit_.reason is ExitReason.PORT_OUT, exit_
        self.ticks += rig.scratch()
        frame = rig.scratch(4)
        edi, esi, ebp, _, ebx, edx, ecx, eax, _, _, eflags = struct.unpack("<11I", rig.memory.read(frame, 44))
        return [eax, ecx, edx, ebx, ebp, esi, edi, eflags], rig.memory.read(BUFFER, BUFFER_BYTES + 8)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Side]]:
    made = {backend: Side(backend, tmp_path_factory.mktemp(backend)) for backend in ("emulation", "trap")}
    over = threading.Event()

    def kick() -> None:
        while not over.wait(KICK_SECONDS):
            for side in made.values():
                side.rig.vcpu.kick()

    kicker = threading.Thread(target=kick)
    kicker.start()
    yield made
    over.set()
    kicker.join()
    for side in made.values():
        side.rig.close()


@pytest.mark.parametrize("first", range(0, 150, SEEDS_PER_TEST))
def test_random_code(sides: dict[str, Side], first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        stream = Stream(seed, defined=True)
        ring = 3 * (seed & 1)
        (registers, memory), (trap_registers, trap_memory) = (sides[name].run(stream, ring) for name in ("emulation", "trap"))
        where = f"seed {seed}, ring {ring}"
        assert [hex(value) for value in trap_registers] == [hex(value) for value in registers], where
        assert trap_memory[FLAGS_OFFSET:] == memory[FLAGS_OFFSET:], f"{where}: flags"
        assert trap_memory[ITERATIONS_OFFSET : ITERATIONS_OFFSET + 4] == bytes(4), where
        assert trap_memory == memory, where


def test_the_random_code_was_disturbed(sides: dict[str, Side]) -> None:
    """Or the tests above showed nothing."""
    for seed in range(1000, 1100):
        if sides["trap"].kicks > 5 and sides["trap"].ticks > 50:
            return
        sides["trap"].run(Stream(seed, defined=True), 0)
    pytest.fail(f"only {sides['trap'].kicks} kicks and {sides['trap'].ticks} ticks")
