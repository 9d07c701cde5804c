"""`mem translate` of a guest that runs natively: what its page tables say, and how the host has mapped the page."""

from __future__ import annotations

import json

import pytest
from real_daemon import RealDaemon, kernel

VIEWS = {"trap": ["native"], "rewriting": ["native", "kernel window"], "paravirt": ["native"]}


@pytest.mark.parametrize("backend", VIEWS)
def test_translate_shows_the_shadow(daemon: RealDaemon, backend: str) -> None:
    daemon.ok("create", "--backend", backend, "--name", "a", "--kernel", kernel("spin.pv.elf" if backend == "paravirt" else "spin.elf"))
    daemon.ok("start", "a")
    daemon.wait_logs("a", "spin: ok")  # it executes what it will go on executing
    daemon.ok("pause", "a")
    registers = {row["name"]: int(row["value"]) for row in json.loads(daemon.ok("-o", "json", "regs", "a").stdout)["registers"]}
    address = registers["rip"]
    found = json.loads(daemon.ok("-o", "json", "mem", "translate", "a", hex(address)).stdout)
    assert [shadow["view"] for shadow in found["shadows"]] == VIEWS[backend]
    # The page is executed, so trap has it mapped; where code is translated it is only read when something reads it.
    for shadow in found["shadows"]:
        if shadow["mapped"]:
            assert shadow["host_offset"] == found["host_offset"] and shadow["readable"]
    assert found["shadows"][0]["mapped"] == (backend != "rewriting")
    text = daemon.ok("mem", "translate", "a", hex(address)).stdout
    assert "shadow, native:" in text
