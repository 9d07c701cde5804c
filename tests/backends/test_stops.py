"""What control registers stop in the guest's code: the same under every backend as under emulation (guests/stops.c)."""

from __future__ import annotations

import pytest
from harness import kernel
from machine_run import run_to_end

from hvd.backends.emulation.backend import BACKEND as EMULATION
from hvd.backends.rewriting.backend import BACKEND as REWRITING
from hvd.backends.trap.backend import BACKEND as TRAP

NATIVE = next(engine for engine in EMULATION.engines() if engine.name == "native").availability
AVAILABLE = TRAP.probe() if NATIVE.available else NATIVE
pytestmark = pytest.mark.skipif(not AVAILABLE.available, reason=f"{AVAILABLE.reason}; {AVAILABLE.remedy}")

NEEDS_REWRITING = pytest.mark.skipif(not REWRITING.probe().available, reason="rewriting does not run here")
REWRITTEN = [pytest.param("rewriting", engine, marks=NEEDS_REWRITING) for engine in ("translate", "breakpoint")]
FIRST, SECOND = "fninit #7 fld1 #7 fnstsw ax #7 fnstcw #7 ", "emms #6 movd mm0 #6 movd xmm0 #6 movups #6 fxsave #7 stmxcsr #6"


@pytest.mark.parametrize(("backend", "how"), [*REWRITTEN, ("trap", ""), ("paravirt", "")])
def test_as_under_emulation(backend: str, how: str) -> None:
    """Under trap and paravirt their kernels' own code is not stopped, as is said."""
    options = "" if backend == "rewriting" else "kernel=0"
    reference = run_to_end(kernel("stops.elf"), options)
    assert reference.end.exit_code == 0 and "#7" in reference.console, reference.console
    final = run_to_end(kernel("stops.pv.elf" if backend == "paravirt" else "stops.elf"), options, backend=backend, engine=how)
    assert final.console == reference.console and final.end.exit_code == 0, final.end


@pytest.mark.parametrize(("backend", "how"), REWRITTEN)
def test_both_of_them(backend: str, how: str) -> None:
    """CR0.TS and EM together: of MMX and SSE instructions EM is looked at first (SDM vol. 3A, tables 12-1 and 13-1), whatever emulation does."""
    final = run_to_end(kernel("stops.elf"), "both=1", backend=backend, engine=how)
    lines = final.console.splitlines()
    wanted = [f"{who}{mp} em ts: {FIRST}{wait}{SECOND}" for who in ("program", "kernel") for mp, wait in (("", ""), (" mp", "wait #7 "))]
    assert lines[:4] == wanted and final.end.exit_code == 0, final.console
