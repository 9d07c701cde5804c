"""What kernels do that makes a monitor slow: handlers longer than the timer's period, devices' registers read again and again (guests/busy.c)."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
from harness import kernel
from machine_run import run_to_end

STEPS = 300
READS = 20_000
POLLS = 5
WORK = {"breakpoint": " work=4000"}  # several periods of the timer
ENGINES = [("emulation", "native"), ("trap", ""), ("rewriting", "translate"), ("rewriting", "breakpoint")]


def require(backend: str, engine: str) -> None:
    known = import_module(f"hvd.backends.{backend}.backend").BACKEND
    found = next((one.availability for one in known.engines() if one.name == engine), known.probe())
    if not found.available:
        pytest.skip(f"{found.reason}; {found.remedy}")


@pytest.mark.parametrize("options", ["", " apic=1"], ids=["8254", "local-apic"])
@pytest.mark.parametrize(("backend", "way"), ENGINES)
def test_ticks_leave_time_for_the_rest(backend: str, way: str, options: str) -> None:
    """Under engine breakpoint the handler takes several periods; without mercy there is one instruction between two of them, and no end. A tick that
    is waited for with interrupts disabled comes all the same."""
    require(backend, way)
    final = run_to_end(kernel("busy.elf"), f"steps={STEPS} polls={POLLS}{options}{WORK.get(way, '')}", backend=backend, engine=way)
    assert final.end.exit_code == 0 and final.console.endswith("busy: ok\n"), (final.end, final.console)
    ticks = re.search(r"(\d+) ticks in", final.console)
    assert ticks and int(ticks[1]) < STEPS, final.console


def test_an_instruction_that_reads_a_device_again_and_again_does_without_signals() -> None:
    require("rewriting", "translate")
    final = run_to_end(kernel("busy.elf"), f"device={READS}", backend="rewriting", engine="translate")
    assert final.end.exit_code == 0 and final.console == "busy: ok\n"
    assert final.signals < READS / 10


@pytest.mark.parametrize(("backend", "way"), ENGINES)
def test_accesses_to_ports_change_nothing_else_whenever_ticks_come(backend: str, way: str) -> None:
    """Translated code does them in the middle of a block: a tick that comes meanwhile, and one that the access itself lets come, is taken behind."""
    require(backend, way)
    accesses = {"translate": 400_000, "native": 100_000}.get(way, 5_000)
    final = run_to_end(kernel("busy.elf"), f"ports={accesses} polls={POLLS}", backend=backend, engine=way)
    assert final.end.exit_code == 0 and final.console == "busy: ok\n", (final.end, final.console)
