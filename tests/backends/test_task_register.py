"""Interrupts out of ring 3 under emulation, whatever the task register holds: a guest may end, its runner must not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from native_rig import CODE, TSS, TSS_BYTES, Rig, assemble, entry

from hvd.backends.emulation.backend import BACKEND
from hvd.board.vcpu import ExitReason, Segment

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")
LTR_BYTES = 7  # of the rig's prologue, whose LTR these guests go without
PROGRAM = """
    gate 0x80, handler, 0xee00
    gate 13, handler
    to_user program
program:
    {instruction}
    jmp .
handler:
    finish $7
"""


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.close()


def begin(rigs: list[Rig], directory: Path, instruction: str, task: Segment) -> Rig:
    rig = Rig(assemble(PROGRAM.format(instruction=instruction), directory))
    rigs.append(rig)
    state = entry(32)
    rig.vcpu.enter(
        replace(state, registers={**state.registers, "rip": CODE + LTR_BYTES}, segments={**state.segments, "tr": task})
    )
    return rig


@pytest.mark.parametrize("instruction", ["int $0x80", "cli"])
@pytest.mark.parametrize("attributes", [0x8900, 0x8B00], ids=["available", "busy"])
def test_a_task_register_that_nobody_loaded(rigs: list[Rig], tmp_path: Path, instruction: str, attributes: int) -> None:
    """As after a reset, and as loaders leave it: hardware has it busy."""
    rig = begin(rigs, tmp_path, instruction, Segment(0x28, TSS, TSS_BYTES, attributes))
    assert rig.vcpu.registers()["tr.attributes"] == 0x8B00
    assert rig.finish() == 7


@pytest.mark.parametrize("instruction", ["int $0x80", "cli"])
@pytest.mark.parametrize("task", [Segment(0, 0, 0, 0), Segment(0x28, TSS, TSS_BYTES, 0x8200), Segment(0x28, TSS, TSS_BYTES, 0x8E00)],
                         ids=["null", "local table", "gate"])  # fmt: skip
def test_no_task_at_all(rigs: list[Rig], tmp_path: Path, instruction: str, task: Segment) -> None:
    """Which no guest can bring about, only a snapshot made by hand: the translator gives up, and the guest is told to have failed."""
    rig = begin(rigs, tmp_path, instruction, task)
    with rig.kicked_after(20):
        exit_ = rig.vcpu.run()
    assert exit_.reason is ExitReason.ERROR and "gave up" in exit_.detail, exit_
    assert rig.vcpu.run().reason is ExitReason.ERROR  # and it stays so
    other = begin(rigs, tmp_path, "int $0x80", Segment(0x28, TSS, TSS_BYTES, 0x8B00))
    assert other.finish() == 7


def test_a_task_whose_stack_is_nowhere(rigs: list[Rig], tmp_path: Path) -> None:
    """The frame cannot be pushed: a double fault, and a triple fault, as on hardware."""
    rig = begin(rigs, tmp_path, "int $0x80", Segment(0x28, TSS, 3, 0x8B00))
    with rig.kicked_after(20):
        assert rig.vcpu.run().reason is ExitReason.SHUTDOWN
