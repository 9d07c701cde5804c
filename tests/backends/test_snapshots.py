"""Snapshots of the native engine: guests that are moved at any moment, the saved vcpu's form, and what forged ones can do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_run import run_machine
from moved_machine import run_moving, run_once, spec_of

from hvd.backends.emulation.backend import BACKEND
from hvd.backends.emulation.vcpu import create
from hvd.board import ia32
from hvd.board.cpuid import leaves
from hvd.board.hot import HotBoard
from hvd.board.loaders import load
from hvd.board.memory import GuestMemory
from hvd.board.vcpu import ExitReason, Vcpu
from hvd.errors import HvdError
from hvd.trace.points import BackendId

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")


@pytest.mark.parametrize("name", ["paging.elf", "long.elf", "exceptions.elf", "alias.elf"])
def test_moved_at_any_moment(name: str, tmp_path: Path) -> None:
    """Within milliseconds, which through a runner cannot be met: paging set up half, in 64-bit mode, in an exception's handler."""
    right, console = run_machine(kernel(name), "native")
    moves = 0
    for seed in range(1000):  # it runs for a millisecond: on a busy host some dozens may get away
        numbers = random.Random(seed)
        end, output, moved = run_moving(spec_of(kernel(name)), tmp_path, lambda n=numbers: n.uniform(0, 0.003), most=30)
        assert (end.reason, end.exit_code) == (right.reason, right.exit_code), output
        assert output == console
        moves += moved
        if moves >= 20 or (moves and seed >= 40):
            return
    assert moves, "it was never caught"


def test_public_engine_says_that_it_cannot(tmp_path: Path) -> None:
    spec = spec_of(kernel("spin.elf"), engine="public")
    with pytest.raises(HvdError) as error:
        run_once(spec, lambda length: length > 0, tmp_path / "one.hvdsnap")
    assert error.value.reason == "CAPABILITY_MISSING"
    assert not list(tmp_path.iterdir())
    assert BACKEND.vcpu_format("public") == "" and BACKEND.vcpu_format("native") == ia32.FORMAT


# ---- the vcpu alone


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(16 << 20) as memory:
        yield memory


def make(memory: GuestMemory) -> tuple[HotBoard, Vcpu]:
    board = HotBoard(BackendId.EMULATION)
    return board, create(board, memory, leaves, "native")


@pytest.fixture(scope="module")
def state(memory: GuestMemory) -> dict[str, Any]:
    """Of a guest that runs."""
    board, vcpu = make(memory)
    vcpu.enter(load(memory, kernel("compute.elf"), None, "n=100000000").entry)
    board.start_clock()
    vcpu.kick()
    while vcpu.run().reason is not ExitReason.INTERRUPTED:
        board.console_take()
    saved = vcpu.save()
    vcpu.close()
    return saved


def restored(memory: GuestMemory, state: dict[str, Any]) -> dict[str, Any]:
    """What a new vcpu saves after it was restored."""
    _, vcpu = make(memory)
    try:
        vcpu.restore(json.loads(json.dumps(state)))
        return vcpu.save()
    finally:
        vcpu.close()


def test_form(memory: GuestMemory, state: dict[str, Any]) -> None:
    assert state["format"] == "ia32/1"
    assert restored(memory, state) == state
    assert ia32.parse(state).registers == state["registers"]


def test_every_part_comes_back(memory: GuestMemory, state: dict[str, Any]) -> None:
    """Each with a value of its own, as a 64-bit kernel with paging would have them."""
    numbers = random.Random(5)
    changed = json.loads(json.dumps(state))
    for name in ia32.GENERAL:
        changed["registers"][name] = numbers.getrandbits(64)
    changed["registers"]["rip"] = 0xFFFF_8000_0010_0000
    changed["registers"]["rflags"] = 0x40_0ED7 & ~0x100
    changed["control"] |= {"cr0": 0x8005_0033, "cr2": 0xFFFF_C900_0000_1234, "cr3": 0x30_0000, "cr4": 0x6F0 & ~0x40 | 0x20, "efer": 0xD01,
                           "cr8": 3, "xcr0": 3}  # fmt: skip
    changed["segments"]["cs"] = [0x10, 0, 0xFFFF_FFFF, 0xA0_9B00]
    changed["segments"]["ss"] = [0x18, 0, 0xFFFF_FFFF, 0xC0_9300]
    changed["segments"]["fs"] = [0, 0x7F12_3456_7000, 0xFFFF_FFFF, 0xC0_9300]
    changed["segments"]["gs"] = [0, 0xFFFF_8880_0000_0000, 0xFFFF_FFFF, 0xC0_9300]
    changed["segments"]["tr"] = [0x40, 0xFFFF_FE00_0000_3000, 0x206F, 0x8B00]
    changed["segments"]["ldtr"] = [0x50, 0x5000, 0xFF, 0x8200]
    changed["tables"] = {"gdtr": [0xFFFF_FE00_0000_1000, 0x7F], "idtr": [0xFFFF_FE00_0000_0000, 0xFFF]}
    changed["debug"] |= {"dr0": 0x1000, "dr1": 0x2000, "dr2": 0x3000, "dr3": 0x4000, "dr6": 0xFFFF_0FF1, "dr7": 0x400}
    for number in changed["msrs"]:
        changed["msrs"][number] = numbers.getrandbits(32 if number == "0x174" else 64)
    area = bytearray(bytes.fromhex(state["xsave"]))
    area[0:2], area[2:4], area[4] = (0x27F).to_bytes(2, "little"), (0x2800).to_bytes(2, "little"), 0b1110_0111
    area[6:24] = numbers.randbytes(2)[:1] + b"\1" + numbers.randbytes(16)
    area[24:28] = (0x1FA3).to_bytes(4, "little")
    for register in range(8):
        area[32 + 16 * register : 42 + 16 * register] = numbers.randbytes(7) + b"\x80\x05\x40"
    area[160:416] = numbers.randbytes(256)
    changed["xsave"] = area.hex()
    changed |= {"halted": True, "interrupt_shadow": True, "nmi_blocked": True, "nmi_pending": True, "interrupt": 0x41}
    assert restored(memory, changed) == changed


def test_older_states_lack_msrs(memory: GuestMemory, state: dict[str, Any]) -> None:
    older = json.loads(json.dumps(state))
    del older["msrs"]["0xc0000082"]
    assert restored(memory, older)["msrs"]["0xc0000082"] == 0


def test_what_does_not_fit(memory: GuestMemory, state: dict[str, Any]) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(HvdError) as error:
            restored(memory, state | changes)
        return error.value.reason

    more = [[leaf, sub, a, b, c | (1 << 28 if leaf == 1 else 0), d] for leaf, sub, a, b, c, d in state["cpuid"]]  # AVX
    assert refused(cpuid=more) == "SNAPSHOT_MISMATCH"
    slower = [[leaf, sub, a, b * 2 if leaf == 0x15 else b, c, d] for leaf, sub, a, b, c, d in state["cpuid"]]
    assert refused(cpuid=slower) == "SNAPSHOT_MISMATCH"
    assert refused(msrs=state["msrs"] | {"0x12345": 1}) == "SNAPSHOT_MISMATCH"
    restored(memory, state | {"msrs": state["msrs"] | {"0x12345": 0}})
    for broken in ({}, {"format": "ia32/2"}, {"format": "arm64/1"}, state | {"more": 1}, {name: state[name] for name in state if name != "xsave"}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            restored(memory, broken)


odd_texts = st.sampled_from(["", "zz", "00", "0x174"])
leaf = st.none() | st.booleans() | st.integers(-1, (1 << 64) + 1) | odd_texts | st.lists(st.integers(0, 9), max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_states(memory: GuestMemory, state: dict[str, Any], data: st.DataObject) -> None:
    """Any part with any value: refused, or the guest runs to an exit of some kind; the process lives."""
    forged = json.loads(json.dumps(state))
    for _ in range(data.draw(st.integers(1, 4))):
        part = data.draw(st.sampled_from(sorted(forged)))
        if isinstance(forged[part], dict) and forged[part]:
            name = data.draw(st.sampled_from(sorted(forged[part])))
            whole = forged[part][name]
            forged[part][name] = data.draw(leaf) if not isinstance(whole, list) else [data.draw(st.integers(0, (1 << 32) - 1)) for _ in whole]
        elif part == "xsave":
            forged[part] = data.draw(st.binary(min_size=576, max_size=576)).hex()
        else:
            forged[part] = data.draw(leaf)
    board, vcpu = make(memory)
    try:
        vcpu.restore(forged)
    except (HvdError, ValueError, KeyError, TypeError, AttributeError):
        vcpu.close()
        return
    board.start_clock()
    for _ in range(20):
        vcpu.kick()
        if vcpu.run().reason in (ExitReason.INTERRUPTED, ExitReason.HALT, ExitReason.SHUTDOWN, ExitReason.ERROR):
            break
        board.console_take()
    vcpu.close()
