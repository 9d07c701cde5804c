"""A whole machine in the test's own process: quicker than a runner, when only its end, its console and its last state matter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.cell.vcpu import CellVcpu
from hvd.trace.points import BackendId

DRAIN_SECONDS = 0.002
MEMORY_BYTES = 16 << 20
MINOR_FAULTS = 7  # of proc(5), /proc/pid/stat, behind the name


@dataclass(frozen=True)
class Final:
    """A machine as it ended. console: without carriage returns."""

    end: End
    console: str
    registers: dict[str, int]
    memory: bytes
    signals: int = 0  # of its cell
    page_faults: int = 0  # likewise, those that the host served without a signal


def run_to_end(
    kernel: Path,
    command_line: str = "",
    typed: bytes = b"",
    seconds: float = 60,
    *,
    backend: str = "emulation",
    engine: str = "native",
    memory_bytes: int = MEMORY_BYTES,
    counters: Path | None = None,
    prepare: Callable[[GuestMemory], None] = lambda memory: None,
) -> Final:
    """Killed after that time. typed: when it has written its first line. counters: a file to make, for hvd.trace.counters. prepare: memory with
    nothing in it yet."""
    create = import_module(f"hvd.backends.{backend}.vcpu").create
    if counters is not None:
        counters.touch()
    board = HotBoard(BackendId.of(backend), counters=counters)
    output = b""
    last: list[bytes] = []
    states: list[tuple[dict[str, int], bytes]] = []
    signals: list[int] = []
    faults: list[int] = []
    with GuestMemory(memory_bytes) as memory:
        prepare(memory)
        flat = 0x100000 if kernel.suffix == ".bin" else 0
        spec = MachineSpec(kernel.stem, backend, engine, memory_bytes, str(kernel), command_line=command_line, flat_load_address=flat)
        machine = Machine(spec, board, memory, create)

        def final() -> None:
            while data := board.console_take():
                last.append(data)
            states.append((machine.vcpu.registers(), memory.read(0, memory_bytes)))
            if isinstance(machine.vcpu, CellVcpu):
                signals.append(machine.vcpu.figures()["signals"])
                faults.append(int(Path(f"/proc/{machine.vcpu.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[MINOR_FAULTS]))

        machine.before_close = final
        ends: list[End] = []
        over = threading.Event()

        def live() -> None:
            ends.append(machine.run())
            over.set()

        vcpu = threading.Thread(target=live)
        killer = threading.Timer(seconds, lambda: machine.call(machine.kill, lambda result, error: None))
        vcpu.start()
        killer.start()
        while not over.wait(DRAIN_SECONDS):
            output += board.console_take()
            machine.console_drained()
            if typed and b"\n" in output:
                typed = typed[board.console_put(typed) :]
                machine.kick()
        vcpu.join()
        killer.cancel()
        output += b"".join(last) + board.console_take()
        board.close()
    registers, content = states[0] if states else ({}, b"")
    return Final(ends[0], output.replace(b"\r", b"").decode(errors="replace"), registers, content, sum(signals), sum(faults))


def run_machine(
    kernel: Path, engine: str, command_line: str = "", typed: bytes = b"", seconds: float = 60
) -> tuple[End, str]:
    """On emulation: its end and what it wrote."""
    final = run_to_end(kernel, command_line, typed, seconds, engine=engine)
    return final.end, final.console
