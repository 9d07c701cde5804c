"""A kernel that patches its code through an address space of its own, as Linux does (guests/poke.c)."""

from __future__ import annotations

from importlib import import_module

import pytest
from harness import kernel
from machine_run import run_to_end

ENGINES = [("emulation", "native"), ("trap", ""), ("rewriting", "translate"), ("rewriting", "breakpoint")]
POKES = 42 * 18


@pytest.mark.parametrize("options", ["", "global=1"], ids=["local", "global"])
@pytest.mark.parametrize(("backend", "way"), ENGINES)
def test_code_patched_through_an_address_space_of_its_own(backend: str, way: str, options: str) -> None:
    known = import_module(f"hvd.backends.{backend}.backend").BACKEND
    found = next((one.availability for one in known.engines() if one.name == way), known.probe())
    if not found.available:
        pytest.skip(f"{found.reason}; {found.remedy}")
    final = run_to_end(kernel("poke.elf"), options, backend=backend, engine=way)
    assert final.end.exit_code == 0 and final.console == "poke: ok\n", (final.end, final.console)
    if way == "translate":
        assert final.signals < POKES / 2  # the page is mapped, and its code forgotten, before the store
