"""Kernels of the paravirtual ABI (docs/paravirtualisation.md): under it, under emulation, where it is absent, and with calls that make no sense."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from harness import kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_run import Final, run_to_end

from hvd.backends.paravirt.backend import BACKEND
from hvd.board.paravirt import NOTE, VERSION
from hvd.cell import paravirt
from hvd.trace.counters import decode_counters
from hvd.trace.points import BY_NAME, PARAVIRT, PARAVIRT_FIRST

AVAILABILITY = BACKEND.probe()
pytestmark = pytest.mark.skipif(not AVAILABILITY.available, reason=f"{AVAILABILITY.reason}; {AVAILABILITY.remedy}")
HEADER = Path(__file__).resolve().parents[2] / "guests" / "include" / "hv" / "paravirt.h"

KERNELS = {
    "hello": "one two", "hypercalls": "", "interrupts": "", "exceptions": "", "paging": "", "halt": "", "triple": "", "reset": "",
    "compute": "n=300000", "echo": "", "isolation": "", "ports": "n=500", "ticker": "count=2", "flood": "count=200", "virtio": "",
    "nonsense": "count=300", "exits": "slow=20 fast=200", "hole": "", "modes": "", "garbage": "", "apic": "", "limit": "", "sites": "",
    "registers": "", "spaces": "",
} | {f"garbage {n}": f"case={n}" for n in range(0, 10, 3)}  # fmt: skip


def run(name: str, append: str = "", backend: str = "paravirt", seconds: float = 60) -> Final:
    typed = b"hello\rq" if name == "echo" else b""
    engine = "native" if backend == "emulation" else ""
    return run_to_end(kernel(f"{name}.pv.elf"), append, typed, seconds, backend=backend, engine=engine)


@pytest.mark.parametrize("name", KERNELS)
def test_emulation_and_paravirt_agree(name: str) -> None:
    """Under emulation the ABI is absent, and the same file does without it."""
    emulated, own = (run(name.split()[0], KERNELS[name], backend) for backend in ("emulation", "paravirt"))
    assert own.console == emulated.console
    assert (own.end.reason, own.end.exit_code) == (emulated.end.reason, emulated.end.exit_code), (own.end, emulated.end)
    assert emulated.end.reason != "KILLED"


@pytest.mark.parametrize("backend", ["trap", "rewriting"])
def test_it_boots_where_the_abi_is_absent(backend: str) -> None:
    final = run("calls", backend=backend)
    assert (final.end.reason, final.end.exit_code, final.console.splitlines()[0]) == ("EXITED", 0, "no paravirtual ABI here")


def test_each_call_and_entry_does_what_it_is_for(tmp_path: Path) -> None:
    """What it changes, what it answers, its errors. And what each took: those of a MULTICALL lie one behind the other within it."""
    page, start_ns = tmp_path / "counters", time.monotonic_ns()
    final = run_to_end(kernel("abi.pv.elf"), "multicalls=20", backend="paravirt", engine="", counters=page)
    assert (final.end.reason, final.end.exit_code, final.console) == ("EXITED", 0, "by CONSOLE\nabi: ok\n"), final
    took_ns = time.monotonic_ns() - start_ns
    points = decode_counters(page.read_bytes()).points
    assert {name for name in PARAVIRT if points.get(BY_NAME[f"hypercall.{name}"].id)} == {*PARAVIRT}
    each, all_together = points[BY_NAME["hypercall.debug"].id], points[BY_NAME["hypercall.multicall"].id]
    assert each.count == 20 * 512 + 1
    assert each.total_ns <= all_together.total_ns + each.max_ns
    accesses = points[BY_NAME["port-in"].id]
    assert accesses.count > 16384 and accesses.total_ns <= took_ns  # REP INSB: each from the one before it


@pytest.mark.parametrize(("value", "reason"), [(0, "POWEROFF"), (1, "RESET")])
def test_power(value: int, reason: str) -> None:
    assert run("calls", f"number={number('POWER')} a={value}").end.reason == reason


def test_the_hole_is_closed() -> None:
    assert "HOLE closed" in run("hole").console


def test_what_the_monitor_fills_in_is_what_the_loader_fills_in() -> None:
    final = run("calls", f"number={number('FILL_PAGE')} a=0x200000")
    assert f"call {number('FILL_PAGE')} = 0" in final.console
    assert final.memory[0x200000:][: len(paravirt.PAGE)] == paravirt.PAGE


def test_system_calls_of_programs_that_know_nothing_need_no_signal() -> None:
    """INT 80 again and again at the same places, by programs with a limit: the first few times are signals. What each does is what it does
    under emulation (test_emulation_and_paravirt_agree)."""
    final = run("sites")
    calls = sum(map(int, re.findall(r" (\d+) calls", final.console)))
    assert final.end.reason == "EXITED" and calls > 2000, final
    assert final.signals < calls // 2


def test_registers_of_devices_are_accessed_without_a_signal() -> None:
    """By a kernel whose programs have a limit, again and again at the same places. What each does is what it does under
    emulation (test_emulation_and_paravirt_agree)."""
    own, without = run("registers"), run("registers", "unlimited=1")
    assert (own.end.reason, own.console) == (without.end.reason, without.console)
    assert own.signals < without.signals // 3, (own.signals, without.signals)


# ---- the header is the standard


def constants() -> dict[str, int]:
    text = HEADER.read_text()
    return {name: int(value, 0) for name, value in re.findall(r"^#define (HV_PV_\w+) (0x[0-9a-f]+|\d+)\b", text, re.MULTILINE)}


def number(call: str) -> int:
    return constants()[f"HV_PV_CALL_{call}"]


def test_header_and_trace_points_name_the_same_calls() -> None:
    found = constants()
    assert found["HV_PV_CALL_FIRST"] == PARAVIRT_FIRST
    assert found["HV_PV_CALL_END"] == PARAVIRT_FIRST + len(PARAVIRT)
    for index, name in enumerate(PARAVIRT):
        assert found["HV_PV_CALL_" + name.removeprefix("pv-").upper().replace("-", "_")] == PARAVIRT_FIRST + index
    assert (found["HV_PV_NOTE"], found["HV_PV_VERSION"]) == (NOTE, VERSION)
    assert (found["HV_PV_ENTRY_BYTES"], found["HV_PV_ENTRIES"]) == (paravirt.ENTRY_BYTES, paravirt.ENTRIES)


# ---- any value to any call


@pytest.mark.parametrize("seed", range(1, 4))
def test_calls_without_sense_are_refused_and_do_nothing(seed: int) -> None:
    """Thousands of them in one guest, which looks at registers, flags and memory after each."""
    final = run("calls", f"seed={seed} count=4000")
    assert (final.end.reason, final.end.exit_code) == ("EXITED", 0), (final.end, final.console)


# How a guest may end that makes one call: on its own terms, or stopped with a reason. KILLED: it sleeps for ever (IDLE).
ENDS = {"EXITED", "TRIPLE_FAULT", "RESET", "POWEROFF", "HALTED", "EXECUTION_ERROR", "KILLED"}
VALUES = st.one_of(
    st.integers(0, 0xFFFF_FFFF),
    st.sampled_from((0, 1, 4, 0x1000, 0x100000, 0x200000, 0xFFF_FFFC, 0x4000_0000, 0xFFFF_F000, 0xFFFF_FFFF)),
    st.integers(0, 512),
)
CALLS = st.one_of(st.integers(0, 8), st.integers(PARAVIRT_FIRST, PARAVIRT_FIRST + len(PARAVIRT) + 1), st.integers(0, 0xFFFF_FFFF))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=CALLS, values=st.tuples(VALUES, VALUES, VALUES, VALUES), trap=st.booleans())
def test_any_call_with_any_value(call: int, values: tuple[int, int, int, int], trap: bool) -> None:
    append = f"number={call} trap={int(trap)} " + " ".join(f"{name}={value}" for name, value in zip("abcd", values, strict=True))
    final = run("calls", append, seconds=20 if call != number("IDLE") else 1)
    assert final.end.reason in ENDS, final.end
    assert final.end.reason != "KILLED" or call in (number("IDLE"), number("IRET"), number("MULTICALL")), (append, final.end)
    assert "taken its cell over" not in final.end.message, "the runner found a forged exit record"
    assert final.end.reason != "EXECUTION_ERROR" or final.end.message
