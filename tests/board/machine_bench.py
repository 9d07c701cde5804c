"""A machine on a scripted vcpu, for tests of its loop."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hvapi.record import Record, decode
from scripted_vcpu import ScriptedVcpu, Step

from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError
from hvd.trace.points import BackendId, Kind

FLAT = 0x7C00
CALL, RESULT = 0x6870, 0x6874
RING = 1024


class Bench:
    """A machine, its scripted vcpu and the thread that runs it."""

    def __init__(self, directory: Path, steps: Sequence[Step], **spec: Any) -> None:
        self.directory = directory
        kernel = directory / "kernel.bin"
        kernel.write_bytes(b"\xf4" * 512)
        self.vcpu = ScriptedVcpu(steps)
        self.states: list[str] = []
        self.logged: list[bytes] = []
        self.changed = threading.Event()
        self.board = HotBoard(BackendId.EMULATION, counters=directory / "c", trace=directory / "t", trace_records=RING)
        self.memory = GuestMemory(1 << 20)
        values = {"name": "m", "backend": "emulation", "engine": "", "memory_bytes": 1 << 20, "kernel": str(kernel)}
        self.spec = MachineSpec(**values | {"flat_load_address": FLAT} | spec)
        self.machine = Machine(
            self.spec, self.board, self.memory, self.vcpu.create, on_change=self._on_change, on_log=self.logged.append
        )
        self.thread = threading.Thread(target=self.machine.run, daemon=True)

    def _on_change(self) -> None:
        self.states.append(self.machine.state)
        self.changed.set()

    def run(self) -> End:
        return self.machine.run()

    def start(self) -> None:
        self.thread.start()

    def call(self, function: Callable[[], Any]) -> Any:
        """In the vcpu thread; waits for the result."""
        answered = threading.Event()
        answer: list[Any] = []

        def done(result: Any, error: HvdError | None) -> None:
            answer.extend((result, error))
            answered.set()

        self.machine.call(function, done)
        assert answered.wait(10)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def join(self) -> End:
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert self.machine.end is not None
        return self.machine.end

    def trace(self, *kinds: Kind) -> None:
        with open(self.directory / "t", "rb+") as file:
            file.seek(12)
            file.write(struct.pack("<I", sum(1 << kind for kind in kinds)))

    def records(self) -> list[Record]:
        data = (self.directory / "t").read_bytes()
        head = int.from_bytes(data[16:24], "little")
        return list(decode(data[64 : 64 + 64 * head]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*steps: Step, **spec: Any) -> Bench:
        made.append(Bench(tmp_path, steps, **spec))
        return made[-1]

    yield make
    for one in made:
        if one.thread.is_alive():
            one.machine.call(one.machine.kill, lambda result, error: None)
            one.join()
        one.board.close()
        one.memory.close()
