"""The runner's census of a machine: on request, counted, at its end. On emulation, made to say where its kernel was seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import kernel

from hvd.backends.emulation.vcpu import NativeVcpu
from hvd.board.hot import HotBoard
from hvd.board.loaders import load
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.cell.census import Census
from hvd.errors import HvdError
from hvd.runner import census
from hvd.trace.points import BackendId

SECONDS = 30


class SeenVcpu(NativeVcpu):
    """Its kernel was seen at its entry."""

    entries: Sequence[int] | None = (0x100000,)

    def executed_code(self) -> Sequence[int] | None:
        return self.entries


def create(board: HotBoard, memory: GuestMemory, cpuid: Callable[..., Any], engine: str) -> SeenVcpu:
    return SeenVcpu(board, memory, cpuid)


@contextmanager
def machine_of(name: str, command_line: str = "") -> Iterator[Machine]:
    with GuestMemory(16 << 20) as memory:
        path = kernel(name)
        board = HotBoard(BackendId.EMULATION)
        machine = Machine(MachineSpec(path.stem, "emulation", "native", 16 << 20, str(path), command_line=command_line), board, memory, create)
        machine.before_close = lambda: census.last_look(machine)
        entry = load(GuestMemory(16 << 20), path, None, "", 0).entry.registers
        SeenVcpu.entries = (entry["eip"],)
        vcpu = threading.Thread(target=machine.run)
        vcpu.start()
        over = threading.Event()

        def drain() -> None:
            while not over.wait(0.002):
                board.console_take()
                machine.console_drained()

        drainer = threading.Thread(target=drain)
        drainer.start()
        try:
            yield machine
        finally:
            machine.call(machine.kill, lambda result, error: None)
            vcpu.join()
            over.set()
            drainer.join()
            board.close()


def ask(machine: Machine, seconds: float = 0) -> tuple[Census | None, dict[int, int], HvdError | None]:
    answer: list[Any] = []
    came = threading.Event()

    def done(*result: Any) -> None:
        answer.extend(result)
        came.set()

    census.request(machine, round(seconds * 1e9), done)
    assert came.wait(SECONDS)
    return answer[0], answer[1], answer[2]


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner's current directory is its guest's."""
    monkeypatch.chdir(tmp_path)


def wait_for_vcpu(machine: Machine) -> None:
    ready = threading.Event()
    machine.call(lambda: None, lambda result, error: ready.set())
    assert ready.wait(SECONDS)


def test_census_of_a_running_kernel() -> None:
    with machine_of("ticker.elf") as machine:
        wait_for_vcpu(machine)
        found, hits, error = ask(machine)
    assert error is None and found is not None
    assert not found.findings and not hits and found.complete
    assert found.instructions > 200  # handlers of the IDT among them


def test_executions_are_counted() -> None:
    """ticker has nothing sensitive: its HLTs are counted as if they were."""
    with machine_of("ticker.elf") as machine:
        wait_for_vcpu(machine)
        code = machine.memory.read(0x100000, 0x4000)
        halts = [0x100000 + at for at in range(len(code)) if code[at : at + 3] == b"\xfb\xf4\xfa"]
        hits = census._counted(machine, [*halts, *range(0x200000, 0x200000 + 100)], 1.0)
        assert len(hits) == len(halts) + 100 and not any(hits[at] for at in hits if at >= 0x200000)
        assert sum(hits[at] for at in halts) >= 1
        assert machine.debugger is None
        found, _, error = ask(machine)  # it goes on
        assert found is not None and error is None


def test_counting_and_a_debugger_exclude_each_other() -> None:
    class Somebody:
        exited = paused = check_resume = staticmethod(lambda *arguments: None)

    with machine_of("ticker.elf") as machine:
        wait_for_vcpu(machine)
        machine.set_debugger(Somebody())  # type: ignore[arg-type]
        with pytest.raises(HvdError, match="debugger"):
            census._counted(machine, [0x100000], 1.0)
        machine.set_debugger(None)


def test_the_last_census_explains_the_end(tmp_path: Path) -> None:
    with machine_of("hole.elf") as machine:
        while machine._open:  # to its end
            pass
    found = census.read(tmp_path)
    assert found is not None and sorted(row[2] for row in found["findings"]) == ["popf", "pushf"]
    assert machine.end is not None and machine.end.metadata["sensitive_instructions"] == "2"
    assert "sensitive" not in machine.end.message  # it ended by itself: nothing to explain
    failed = census.explained(machine.end.__class__("TRIPLE_FAULT", "oops"), Census(), "x")
    assert failed.message == "oops"


def test_a_failure_is_explained(tmp_path: Path) -> None:
    from hvd.board.end import End
    from hvd.cell.census import Finding
    from hvd.cell.sensitive import POPF

    end = census.explained(End("TRIPLE_FAULT", "oops"), Census({0x1234: Finding(0x1234, b"\x9d", POPF)}), "web-1")
    assert end.message == (
        "oops; the kernel has 1 sensitive instruction that cannot trap, such as popf at 0x1234: `hvctl census web-1`"
    )


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"findings": 3}', '{"findings": [[1, "zz", "x"]], "instructions": 1, "pages": 1, "unknown": 0, "complete": true}',
     '{"findings": [[-1, "9d", "x"]], "instructions": 1, "pages": 1, "unknown": 0, "complete": true}',
     '{"findings": [], "instructions": -1, "pages": 1, "unknown": 0, "complete": true}'],
)  # fmt: skip
def test_a_census_file_is_not_trusted(tmp_path: Path, text: str) -> None:
    (tmp_path / "census.json").write_text(text)
    assert census.read(tmp_path) is None


def test_a_backend_that_misses_nothing_has_no_census() -> None:
    with machine_of("ticker.elf") as machine:
        wait_for_vcpu(machine)
        SeenVcpu.entries = None
        found, _, error = ask(machine)
    assert found is None and error is not None and error.reason == "CAPABILITY_MISSING"
