"""A whole machine in the test's own process: quicker than a runner, when only its end and its console matter."""

from __future__ import annotations

import threading
from pathlib import Path

from hvd.backends.emulation.vcpu import create
from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.trace.points import BackendId

DRAIN_SECONDS = 0.002


def run_machine(
    kernel: Path, engine: str, command_line: str = "", typed: bytes = b"", seconds: float = 60
) -> tuple[End, str]:
    """Its end and what it wrote, without carriage returns. Killed after that time."""
    board = HotBoard(BackendId.EMULATION)
    with GuestMemory(16 << 20) as memory:
        flat = 0x100000 if kernel.suffix == ".bin" else 0
        spec = MachineSpec(
            kernel.stem, "emulation", engine, 16 << 20, str(kernel), command_line=command_line, flat_load_address=flat
        )
        machine = Machine(spec, board, memory, create)
        ends: list[End] = []
        over = threading.Event()

        def live() -> None:
            ends.append(machine.run())
            over.set()

        vcpu = threading.Thread(target=live)
        killer = threading.Timer(seconds, lambda: machine.call(machine.kill, lambda result, error: None))
        vcpu.start()
        killer.start()
        output = b""
        while not over.wait(DRAIN_SECONDS):
            output += board.console_take()
            machine.console_drained()
            if typed and b"\n" in output:
                typed = typed[board.console_put(typed) :]
                machine.kick()
        vcpu.join()
        killer.cancel()
        output += board.console_take()
        board.close()
    return ends[0], output.replace(b"\r", b"").decode(errors="replace")
