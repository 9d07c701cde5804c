"""Hostile guests (guests/hostile.S): their kernels leave for 64-bit code, make system calls of the host, overwrite their cell and forge
what it says. None of that reaches the host or hangs the runner: that guest ends with a reason, and others run on."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_numbers import c_numbers
from hostile_rig import DATA, SECONDS, Act, Rig, skip_without_cells

from hvd.board.vcpu import ExitReason
from hvd.cell.area import CellCpu, CellExit, Fd, Mode, Sandbox
from hvd.errors import HvdError
from hvd.trace.counters import read_counters

MADE_A_CALL = "made a system call of the host"
# x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)
READ, WRITE, OPEN, CLOSE, MMAP, MPROTECT, MUNMAP, SIGRETURN, IOCTL = 0, 1, 2, 3, 9, 10, 11, 15, 16
X32 = 0x4000_0000
PROT_ALL, MAP_FIXED_SHARED, MAP_FIXED_PRIVATE = 7, 0x11, 0x32
PAGE = 4096
PATH = DATA  # "/etc/passwd"
RESULT = 0x101020


@pytest.fixture(autouse=True)
def cells() -> None:
    skip_without_cells()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(directory=tmp_path) as rig:
        rig.wrote(b"hostile: ready")
        rig.poke(PATH, b"/etc/passwd\0")
        yield rig


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, which nobody of a guest's may touch."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def test_sandbox(rig: Rig) -> None:
    """All layers that this user may have; of descriptors none but the cell's few."""
    everything = Sandbox.NAMESPACES | Sandbox.ROOT | Sandbox.CAPABILITIES | Sandbox.SECCOMP
    sandbox, process = rig.cell.sandbox, Path(f"/proc/{rig.cell.pid}")
    assert Sandbox.SECCOMP in sandbox
    status = (process / "status").read_text()
    assert re.search(r"^Seccomp:\t2$", status, re.M) and re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert int(re.search(r"^CapEff:\t(\w+)$", status, re.M)[1], 16) & ~(1 << 17) == 0  # type: ignore[index]
    assert {int(name) for name in os.listdir(process / "fd")} == {Fd.MEMORY, Fd.GO, Fd.LEFT, Fd.CONSOLE}
    if os.geteuid() == 0 and sandbox & everything == everything:
        assert os.listdir(process / "root") == []
        for kind in ("net", "ipc", "uts", "mnt"):
            assert os.readlink(process / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}")


# Name of a call -> number, arguments. Most would succeed without the sandbox.
CALLS = {
    "open": (OPEN, PATH, 0),
    "openat": (257, -100, PATH, 0),
    "socket": (41, 2, 1, 0),
    "fork": (57,),
    "clone": (56, 17),
    "execve": (59, PATH, 0, 0),
    "ptrace": (101, 0),
    "process_vm_readv": (310, 1, PATH, 1, PATH, 1, 0),
    "prctl": (157, 15, PATH),
    "seccomp": (317, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "mount": (165, PATH, PATH, PATH, 0, 0),
    "bpf": (321, 0, PATH, 64),
    "io_uring_setup": (425, 4, DATA + 64),
    "perf_event_open": (298, DATA, 0, -1, -1, 0),
    "userfaultfd": (323, 1),
    "memfd_create": (319, PATH, 0),
    "arch_prctl": (158, 0x1002, 0),
    "iopl": (172, 3),
    "close": (CLOSE, Fd.GO),
    "dup": (32, Fd.MEMORY),
    "ftruncate": (77, Fd.MEMORY, 0),
    "ioctl": (IOCTL, Fd.MEMORY, 0x5401, DATA),
    "write to the memory": (WRITE, Fd.MEMORY, DATA, 8),
    "read what the runner shall read": (READ, Fd.LEFT, DATA, 8),
    "write for the runner": (WRITE, Fd.GO, DATA, 8),
    "long write": (WRITE, Fd.LEFT, DATA, 16),
    "mmap of private memory": (MMAP, 0x800000, PAGE, PROT_ALL, MAP_FIXED_PRIVATE, -1, 0),
    "mmap anywhere": (MMAP, 0, PAGE, 3, 1, Fd.MEMORY, 0),
    "mmap beyond the end": (MMAP, 0xFFFF_F000, 2 * PAGE, PROT_ALL, MAP_FIXED_SHARED, Fd.MEMORY, 0),
    "mmap of much": (MMAP, PAGE, 1 << 32, PROT_ALL, MAP_FIXED_SHARED, Fd.MEMORY, 0),
    "mmap of a descriptor that is none of its own": (MMAP, 0x800000, PAGE, PROT_ALL, MAP_FIXED_SHARED, 8, 0),
    "mmap in a window that this mode has not": (MMAP, 0x3_0000_0000, PAGE, PROT_ALL, MAP_FIXED_SHARED, Fd.MEMORY, 0),
    "open of x32": (OPEN | X32, PATH, 0),
    "a number that there is not": (999,),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_host_system_call(rig: Rig, call: str) -> None:
    """Out of the monitor's own text, so that the arguments, too, are what counts."""
    end = rig.attack((Act.CALL, *CALLS[call]), gadget=rig.gadget())
    assert end.reason == "EXECUTION_ERROR" and MADE_A_CALL in end.message
    assert rig.memory.read(RESULT, 8) == bytes(8)


def test_host_system_call_of_its_own(rig: Rig) -> None:
    """A call that the monitor may make, but not out of the guest's memory."""
    end = rig.attack((Act.CALL, MUNMAP, 0x800000, PAGE))
    assert end.reason == "EXECUTION_ERROR" and MADE_A_CALL in end.message


def test_signal_to_others(rig: Rig, bystander: subprocess.Popen[bytes]) -> None:
    kill, tgkill, pidfd_send_signal = 62, 234, 424
    for call in ((kill, bystander.pid, signal.SIGKILL), (tgkill, bystander.pid, bystander.pid, 10), (pidfd_send_signal, 0, 9)):
        with Rig() as other:
            other.wrote(b"hostile: ready")
            end = other.attack((Act.CALL, *call), gadget=other.gadget())
            assert end.reason == "EXECUTION_ERROR" and MADE_A_CALL in end.message


@pytest.mark.parametrize(
    ("name", "rights"), [("hvd-cell", "r-x"), ("hvd-cell", "rw-"), ("hvd-cell-area", "rw-"), ("[stack]", "rw-"), ("[vdso]", "r-x")]
)
def test_mapping_over_the_monitor(rig: Rig, name: str, rights: str) -> None:
    target, gadget = rig.mapping(name, rights), rig.gadget()
    attacks = [
        (MMAP, target.start, PAGE, PROT_ALL, MAP_FIXED_SHARED, Fd.MEMORY, 0), (MPROTECT, target.start, PAGE, PROT_ALL), (MUNMAP, target.start, PAGE)
    ]  # fmt: skip
    end = rig.attack((Act.CALL, *attacks[len(name) % 3]), gadget=gadget)
    assert end.reason == "EXECUTION_ERROR" and MADE_A_CALL in end.message


def test_what_the_monitor_may(rig: Rig) -> None:
    """Its own calls, made by the guest, do it no good: here it maps a page of its memory and writes to it."""
    steps = [
        (Act.CALL, MMAP, 0x7FF000, PAGE, 3, MAP_FIXED_SHARED, Fd.MEMORY, 0), (Act.FILL, 0x7FF000, 8, 0xAB), (Act.CALL, MUNMAP, 0x7FF000, PAGE)
    ]  # fmt: skip
    # Back in its own code it stands there without its stack segment, of which the host's SYSCALL made another one.
    assert rig.attack(*steps, gadget=rig.gadget()).reason in ("EXITED", "TRIPLE_FAULT")
    assert rig.memory.read(0, 8) == b"\xab" * 8


def test_memory_of_the_host_by_mprotect(rig: Rig) -> None:
    """What was reserved and is no mapping of the memory file must not become memory: a cell has no more than its guest."""
    end = rig.attack((Act.CALL, MPROTECT, 0x4000_0000, 0x8000_0000, 3), (Act.FILL, 0x4000_0000, 0x8000_0000, 1), gadget=rig.gadget())
    assert end.reason == "EXECUTION_ERROR"
    assert not Path(f"/proc/{rig.cell.pid}").exists()


def test_kernel_that_is_translated() -> None:
    """Its far jump is none of the processor's: there is no such segment in its table."""
    with Rig(mode=Mode.REWRITING) as rig:
        assert rig.attack((Act.TRAP,)).reason == "TRIPLE_FAULT"


def test_kernel_that_runs_natively_to_breakpoints() -> None:
    with Rig(mode=Mode.BREAKPOINT) as rig:
        end = rig.attack((Act.CALL, *CALLS["open"]))
        assert end.reason in ("EXECUTION_ERROR", "TRIPLE_FAULT")


GATE = 0x2_0000_0000  # gate.c


@pytest.mark.parametrize(
    "step",
    [
        (Act.CALL, *CALLS["open"]), (Act.TRAP,), (Act.JUMP, 0x1234_5678_9000, 0x110800), (Act.JUMP, GATE, 0x110800),
        (Act.JUMP, GATE + 0x40, 0x110800),
        (Act.JUMP, GATE + 0x101, 0x110800), (Act.JUMP, GATE + 0x1C0, 0x110800), (Act.FILL, GATE, 0x1000, 0x90),
    ],
)  # fmt: skip
def test_kernel_that_comes_through_the_gate_on_its_own(step: tuple[int, ...]) -> None:
    """Wherever it enters what lies between hypercall page and monitor, and with whatever in the registers: its own end."""
    with Rig(mode=Mode.PARAVIRT) as rig:
        rig.wrote(b"hostile: ready")
        rig.poke(PATH, b"/etc/passwd\0")
        assert rig.attack(step, gadget=rig.gadget()).reason in ("EXECUTION_ERROR", "TRIPLE_FAULT", "EXITED")
        assert rig.memory.read(RESULT, 8) == bytes(8)


def test_trap_in_64_bit_code(rig: Rig) -> None:
    end = rig.attack((Act.TRAP,))
    assert end.reason == "EXECUTION_ERROR" and "64-bit code" in end.message


def test_wild_jump(rig: Rig) -> None:
    end = rig.attack((Act.JUMP, 0x1234_5678_9000, 0x110800))
    assert end.reason == "EXECUTION_ERROR"


@pytest.mark.parametrize(("name", "rights"), [("hvd-cell", "rw-"), ("hvd-cell-area", "rw-"), ("[heap]", "rw-"), ("[stack]", "rw-"), ("", "rw-p")])
@pytest.mark.parametrize("value", [0, 0xFF])
def test_overwritten_cell(rig: Rig, name: str, rights: str, value: int) -> None:
    """Everything in it that can be written: that guest is lost, and nobody else."""
    targets = [m for m in rig.mappings() if (name in m.name if name else not m.name) and m.rights.startswith(rights) and m.start >> 32]
    if not targets:
        pytest.skip(f"the cell has no {name}")
    with Rig("ticker.elf") as neighbour:
        rig.order(*((Act.FILL, m.start, m.end - m.start, value) for m in targets), (Act.TRAP,))
        neighbour.wrote(b"tick 3")
        rig.kill()  # it may spin
        assert rig.wait().reason in ("KILLED", "EXECUTION_ERROR", "TRIPLE_FAULT")


def test_overwritten_figures(rig: Rig, tmp_path: Path) -> None:
    """The counters page and the trace ring lie in its address space: their readers trust no field."""
    for name in ("counters", "trace"):
        mapping = rig.mapping(f"/{name}", "rw-")
        assert mapping.end > mapping.start
    rig.attack(*((Act.FILL, m.start, PAGE, 0xFF) for m in rig.mappings() if m.name.endswith(("/counters", "/trace"))), (Act.TRAP,))
    fd = os.open(tmp_path / "counters", os.O_RDONLY)
    try:
        read_counters(fd)
    except HvdError as error:
        assert error.reason == "COUNTERS_UNREADABLE"
    finally:
        os.close(fd)


# ---- forged exits


@pytest.fixture(scope="module")
def offsets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    names = ("exit", "cpu", "devices", "console", "kick")
    return c_numbers(tmp_path_factory.mktemp("numbers"), ("area.h",), {n: f"offsetof(struct hv_cell_area, {n})" for n in names})


def forge(rig: Rig, offsets: dict[str, int], exit_: CellExit, cpu: CellCpu | None = None, devices: bytes = b"") -> None:
    """Let the guest write that into the run area, then tell the runner that it left."""
    area = rig.mapping("hvd-cell-area", "rw-").start
    parts = [("exit", bytes(exit_)), ("cpu", bytes(cpu) if cpu is not None else b""), ("devices", devices)]
    steps: list[tuple[int, ...]] = []
    place = DATA + 0x100
    for name, data in parts:
        if data:
            rig.poke(place, data)
            steps.append((Act.COPY, area + offsets[name], place, len(data)))
            place += len(data)
    rig.poke(DATA + 0x80, struct.pack("<Q", 1))
    steps.append((Act.CALL, WRITE, Fd.LEFT, DATA + 0x80, 8))
    # Then it waits as a cell does: a signal in the guest's own 64-bit code would be another end, said over this one before the runner has read it.
    steps += [(Act.CALL, READ, Fd.GO, DATA + 0x88, 8), (Act.GOTO, len(steps))]
    rig.order(*steps, gadget=rig.gadget())


FORGED = {
    "reason": CellExit(reason=77),
    "hypercall": CellExit(reason=ExitReason.HYPERCALL),
    "debug": CellExit(reason=ExitReason.DEBUG, value=1),
    "size": CellExit(reason=ExitReason.PORT_IN, address=0x70, size=3),
    "eight bytes of a port": CellExit(reason=ExitReason.PORT_OUT, address=0x70, size=8),
    "more elements than there is room for": CellExit(reason=ExitReason.PORT_OUT, address=0x1F0, size=2, count=1025),
    "port": CellExit(reason=ExitReason.PORT_OUT, address=0x10000, size=1),
    "memory": CellExit(reason=ExitReason.MMIO_READ, address=0x1000, size=4),
    "nothing there": CellExit(reason=ExitReason.MMIO_WRITE, address=1 << 63, size=4),
    "the board's own": CellExit(reason=ExitReason.MMIO_READ, address=0xFEE00000, size=4),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_exit(rig: Rig, offsets: dict[str, int], kind: str) -> None:
    forge(rig, offsets, FORGED[kind])
    end = rig.wait()
    assert end.reason == "EXECUTION_ERROR" and "forged" in end.message
    assert not Path(f"/proc/{rig.cell.pid}").exists()


def test_forged_processor_and_devices(rig: Rig, offsets: dict[str, int]) -> None:
    for cpu, devices in ((CellCpu(cpl=4), b""), (CellCpu(efer=0x500), b""), (CellCpu(halted=7), b""), (None, b"\xff" * 700)):
        with Rig() as other:
            other.wrote(b"hostile: ready")
            forge(other, offsets, CellExit(reason=ExitReason.INTERRUPTED), cpu, devices)
            end = other.wait()
            assert end.reason == "EXECUTION_ERROR" and "forged" in end.message


def test_forged_text(rig: Rig, offsets: dict[str, int]) -> None:
    """Of an error: no end, control characters."""
    forge(rig, offsets, CellExit(reason=ExitReason.ERROR, detail=b"\x1b[2J" + b"\xff" * 156))
    end = rig.wait()
    assert end.reason == "EXECUTION_ERROR" and "\x1b" not in end.message and end.message.isascii()


def test_forged_full_console(rig: Rig, offsets: dict[str, int]) -> None:
    """It says for ever that its console is full, which is not so: it can be killed nevertheless, and asked."""
    area = rig.mapping("hvd-cell-area", "rw-").start
    rig.poke(DATA + 0x80, struct.pack("<Q", 1))
    rig.poke(DATA + 0x100, bytes(CellExit(reason=ExitReason.CONSOLE_FULL)))
    rig.poke(DATA + 0x200, struct.pack("<4I", 1 << 16, 0, 0, 0))  # out_head, out_tail
    rig.order(
        (Act.COPY, area + offsets["console"], DATA + 0x200, 16),
        (Act.COPY, area + offsets["exit"], DATA + 0x100, 40),
        (Act.CALL, WRITE, Fd.LEFT, DATA + 0x80, 8),
        (Act.CALL, READ, Fd.GO, DATA + 0x88, 8),
        (Act.GOTO, 0),
        gadget=rig.gadget(),
    )
    time.sleep(0.1)
    rig.kill()
    assert rig.wait().reason in ("KILLED", "EXECUTION_ERROR")


def test_exits_without_end_do_not_keep_the_runner(rig: Rig, offsets: dict[str, int]) -> None:
    """It leaves over and over, with an exit that makes sense, and never answers a kick."""
    area = rig.mapping("hvd-cell-area", "rw-").start
    rig.poke(DATA + 0x80, struct.pack("<Q", 1))
    rig.poke(DATA + 0x100, bytes(CellExit(reason=ExitReason.PORT_IN, address=0x71, size=1)))
    rig.order(
        (Act.COPY, area + offsets["exit"], DATA + 0x100, 40),
        (Act.CALL, WRITE, Fd.LEFT, DATA + 0x80, 8),
        (Act.CALL, READ, Fd.GO, DATA + 0x88, 8),
        (Act.GOTO, 0),
        gadget=rig.gadget(),
    )
    rig.kill()
    assert rig.wait().reason in ("KILLED", "EXECUTION_ERROR")


# ---- silence


def test_spin_with_interrupts_off(rig: Rig) -> None:
    """Paused, looked at and resumed as any other."""
    rig.order((Act.SPIN32,))
    rig.wrote(b"hostile: spinning")
    for _ in range(3):
        rig.call(rig.machine.pause)
        assert rig.call(rig.cell.registers)["rflags"] & 0x200 == 0
        rig.call(rig.machine.resume)


def test_spin_in_64_bit_code(rig: Rig) -> None:
    rig.order((Act.SPIN64,))
    rig.kill()
    assert rig.wait().reason in ("KILLED", "EXECUTION_ERROR")


def test_silence(rig: Rig) -> None:
    """All signals blocked, by a signal frame of its own making: its monitor never runs again. Whoever asks gets an answer."""
    frame = DATA + 0x1000
    # struct rt_sigframe behind the return address: uc_flags, uc_link, uc_stack (24), registers r8..; arch/x86/include/uapi/asm/sigcontext.h
    spin = rig.memory.read(0x100000, 0x2200).index(b"\xeb\xfe") + 0x100000
    order = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "eflags")
    values = dict.fromkeys(order, 0) | {"rsp": frame, "rip": spin, "eflags": 0x202}
    context = struct.pack("<QQ24x", 0, 0) + struct.pack("<18Q", *values.values())
    context += struct.pack("<4H", 0x33, 0, 0, 0x2B) + struct.pack("<4Q", 0, 0, 0, 0) + struct.pack("<Q", 0) + bytes(64)
    context += struct.pack("<Q", 0xFFFF_FFFF_FFFF_FFFF)  # uc_sigmask
    rig.poke(frame, context + bytes(256))
    rig.poke(DATA + 0x40, bytes.fromhex("b80f0000000f05"))  # mov $15, %eax; syscall
    rig.order((Act.JUMP, DATA + 0x40, frame))
    until = time.monotonic() + SECONDS
    while not _blocks_all_signals(rig.cell.pid):
        assert time.monotonic() < until, "it does not do as it was told"
        time.sleep(0.01)
    rig.machine.call(rig.machine.pause, lambda result, error: None)
    end = rig.wait()
    assert end.reason == "EXECUTION_ERROR" and "does not answer" in end.message


def _blocks_all_signals(pid: int) -> bool:
    """But SIGKILL (9) and SIGSTOP (19), which nobody can."""
    blocked = re.search(r"^SigBlk:\s(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return blocked is not None and int(blocked[1], 16) == (1 << 64) - 1 & ~(1 << 8 | 1 << 18)


def test_own_end(rig: Rig) -> None:
    end = rig.attack((Act.CALL, 231, 3), gadget=rig.gadget())  # exit_group
    assert end.reason == "EXECUTION_ERROR" and "the cell ended" in end.message


def test_killed_from_outside(rig: Rig) -> None:
    os.kill(rig.cell.pid, signal.SIGKILL)
    end = rig.wait()
    assert end.reason == "EXECUTION_ERROR" and "killed from outside" in end.message


def test_flood_of_console_and_trace(tmp_path: Path) -> None:
    """Both at once, with a listener; another guest ticks on, and the flooding one answers."""
    with Rig("flood.elf", tmp_path) as flood, Rig("ticker.elf") as neighbour:
        with open(tmp_path / "trace", "rb+") as ring:
            ring.seek(12)
            ring.write(struct.pack("<I", 0xFFFF_FFFF))
        flood.wrote(b"the quick brown fox")
        neighbour.wrote(b"tick 2")
        flood.call(flood.machine.pause)
        assert flood.machine.state == "PAUSED"
        with open(tmp_path / "trace", "rb") as ring:
            assert struct.unpack("<Q", ring.read(24)[16:24])[0] > 100


def test_runner_takes_its_cell_along() -> None:
    """A cell does not outlive the thread that made it, however that ends."""
    program = (
        "import sys, time; sys.path[:0] = sys.argv[1:]\n"
        "from hostile_rig import Rig\n"
        "rig = Rig('spin.elf').__enter__(); rig.wrote(b'spin: ok'); print(rig.cell.pid, flush=True); time.sleep(60)\n"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    runner = subprocess.Popen([sys.executable, "-c", program, *paths], stdout=subprocess.PIPE)
    assert runner.stdout is not None
    cell = int(runner.stdout.readline())
    pidfd = os.pidfd_open(cell)
    runner.kill()
    runner.wait()
    ready, _, _ = select.select([pidfd], [], [], 30)
    os.close(pidfd)
    assert ready
