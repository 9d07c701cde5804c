"""Read-only pages of programs that go and come back, as before or otherwise (guests/again.c): what stays mapped is never the wrong page."""

from __future__ import annotations

from importlib import import_module

import pytest
from harness import kernel
from machine_run import run_to_end

ENGINES = [("emulation", "native"), ("trap", ""), ("rewriting", "translate"), ("rewriting", "breakpoint")]


@pytest.mark.parametrize(("backend", "way"), ENGINES)
def test_programs_find_what_the_tables_in_force_say(backend: str, way: str) -> None:
    known = import_module(f"hvd.backends.{backend}.backend").BACKEND
    found = next((one.availability for one in known.engines() if one.name == way), known.probe())
    if not found.available:
        pytest.skip(f"{found.reason}; {found.remedy}")
    final = run_to_end(kernel("again.elf"), "", backend=backend, engine=way)
    assert final.end.exit_code == 0 and final.console == "again: ok\n", (final.end, final.console)
