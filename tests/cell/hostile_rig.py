"""A machine in the test's own process, whose guest or cell is hostile: it is told what to do by a script in its memory
(guests/hostile.S)."""

from __future__ import annotations

import enum
import struct
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from hvd.backends.trap.backend import BACKEND
from hvd.board.cpuid import leaves
from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.board.vcpu import Vcpu
from hvd.cell import area, process
from hvd.cell.area import Mode
from hvd.cell.features import features
from hvd.cell.vcpu import CellVcpu
from hvd.trace.points import BackendId

GUESTS = Path(__file__).resolve().parents[2] / "build" / "guests"
MEMORY = 16 << 20
LOAD_ADDRESS = 0x100000
# Of guests/hostile.S.
SCRIPT = 0x100010
DATA = 0x110000  # for what steps point to
SECONDS = 60.0
CONSOLE_BYTES = 1 << 16


class Act(enum.IntEnum):
    END = 0
    CALL = 1
    FILL = 2
    COPY = 3
    GOTO = 4
    JUMP = 5
    SPIN64 = 6
    SPIN32 = 7
    TRAP = 8
    SEND32 = 9


@dataclass(frozen=True)
class Mapping:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    rights: str
    name: str


def skip_without_cells() -> None:
    availability = BACKEND.probe()
    if not availability.available:
        pytest.skip(f"{availability.reason}; {availability.remedy}")


def _create(program: str, mode: Mode, board: HotBoard, memory: GuestMemory, cpuid: Any, engine: str) -> Vcpu:
    return CellVcpu(board, memory, BackendId.TRAP, mode, leaves(features, process.tsc_hz()), program)


class Rig:
    """One machine, running as long as the `with` block."""

    def __init__(
        self, kernel: str = "hostile.bin", directory: Path | None = None, program: str = str(area.PROGRAM), mode: Mode = Mode.TRAP
    ) -> None:
        """directory: for counters and trace; None = there are none."""
        path = GUESTS / kernel
        if not path.exists():
            pytest.fail(f"{path} is not built: make guests")
        files = {} if directory is None else {"counters": directory / "counters", "trace": directory / "trace"}
        self.board = HotBoard(BackendId.TRAP, **files)
        self.memory = GuestMemory(MEMORY)
        flat = LOAD_ADDRESS if path.suffix == ".bin" else 0
        spec = MachineSpec(path.stem, "trap", "", MEMORY, str(path), flat_load_address=flat)
        self.machine = Machine(spec, self.board, self.memory, partial(_create, program, mode))
        self.console = b""
        self.end: End | None = None
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._live), threading.Thread(target=self._drain)]

    def _live(self) -> None:
        self.end = self.machine.run()
        self._over.set()

    def _drain(self) -> None:
        """What the runner's main thread does."""
        over = False
        while not over:
            over = self._over.wait(0.002)
            self.console += self.board.console_take()
            self.machine.console_drained()
            self.console = self.console[-CONSOLE_BYTES:]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        for thread in self._threads:
            thread.join()
        self.board.close()

    # ---- what a user does

    def call(self, function: Any, seconds: float = SECONDS) -> Any:
        """In the vcpu thread, at the next point at which the state is whole. Fails the test when that does not come."""
        done = threading.Event()
        answers: list[tuple[Any, Exception | None]] = []
        self.machine.call(function, lambda result, error: (answers.append((result, error)), done.set()))
        assert done.wait(seconds), "the machine does not answer"
        result, error = answers[0]
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        self.machine.call(self.machine.kill, lambda result, error: None)

    def over(self, seconds: float) -> bool:
        """Has it ended, or does it within that time?"""
        return self._over.wait(seconds)

    def wait(self, seconds: float = SECONDS) -> End:
        assert self._over.wait(seconds), f"the machine does not end; its console: {self.console[-200:]!r}"
        assert self.end is not None
        return self.end

    def wrote(self, text: bytes, seconds: float = SECONDS) -> None:
        until = time.monotonic() + seconds
        while text not in self.console:
            is_over = self._over.wait(0.005)
            assert text in self.console or (time.monotonic() < until and not is_over), f"{self.end}; its console: {self.console[-200:]!r}"

    # ---- what an attacker does

    @property
    def cell(self) -> CellVcpu:
        vcpu = self.machine.vcpu
        assert isinstance(vcpu, CellVcpu)
        return vcpu

    def mappings(self) -> list[Mapping]:
        """Of the cell's process."""
        found = []
        for line in Path(f"/proc/{self.cell.pid}/maps").read_text().splitlines():
            where, rights, *_, = line.split()
            start, end = (int(part, 16) for part in where.split("-"))
            found.append(Mapping(start, end, rights, line[73:].strip()))
        return found

    def mapping(self, name: str, rights: str) -> Mapping:
        """The last one of that name and rights."""
        return next(m for m in reversed(self.mappings()) if name in m.name and m.rights.startswith(rights))

    def gadget(self) -> int:
        """Where the monitor's own text has SYSCALL; RET, after a comparison of the result."""
        text = self.mapping("hvd-cell", "r-x")
        with open(f"/proc/{self.cell.pid}/mem", "rb") as memory:
            memory.seek(text.start)
            code = memory.read(text.end - text.start)
        # syscall(2) of the C library: SYSCALL; CMP $-4095, %RAX; JAE error; RET
        return text.start + code.index(bytes.fromhex("0f0548 3d01f0ffff 73 01 c3".replace(" ", "")))

    def poke(self, address: int, data: bytes) -> None:
        """Guest-physical memory, which is shared: no word to the cell."""
        self.memory.write(address, data)

    def order(self, *steps: tuple[int, ...], gadget: int = 0) -> None:
        """Let the guest do this. END is added."""
        script = b"".join(struct.pack("<8Q", *(value & (1 << 64) - 1 for value in (*step, *(0,) * (8 - len(step))))) for step in steps)
        self.poke(SCRIPT + 16, script)
        self.poke(SCRIPT + 8, struct.pack("<Q", gadget))
        self.poke(SCRIPT, struct.pack("<Q", 1))

    def attack(self, *steps: tuple[int, ...], gadget: int = 0, seconds: float = SECONDS) -> End:
        """order(), and how that ends."""
        self.wrote(b"hostile: ready")
        self.order(*steps, gadget=gadget)
        return self.wait(seconds)
