"""Many cells at once, and a cell of somebody who may do nothing."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hostile_rig import Rig, skip_without_cells

from hvd.cell.area import Sandbox

MANY = 20
PR_CAPBSET_DROP = 24
ALONE = """
import json, sys
sys.path[:0] = sys.argv[2:]
from hostile_rig import Rig
with Rig(sys.argv[1]) as rig:
    end = rig.wait()
    print(json.dumps([end.reason, end.exit_code, rig.console.decode(), int(rig.cell.sandbox)]))
"""


@pytest.fixture(autouse=True)
def cells() -> None:
    skip_without_cells()


def test_many_at_once() -> None:
    """They tick side by side, stand still and go on one by one, and leave nothing behind."""
    with ExitStack() as stack:
        rigs = [stack.enter_context(Rig("ticker.elf")) for _ in range(MANY)]
        for rig in rigs:
            rig.wrote(b"tick 1")
        for rig in rigs:
            rig.call(rig.machine.pause)
        assert len({rig.cell.pid for rig in rigs}) == MANY
        for rig in rigs:
            rig.call(rig.machine.resume)
        for rig in rigs:
            rig.wrote(b"tick 3")
        pids = [rig.cell.pid for rig in rigs]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("kernel", ["paging.elf", "exceptions.elf"])
def test_without_privileges(kernel: str) -> None:
    """No namespaces, no root directory of its own, no page 0; but seccomp."""

    def drop() -> None:
        prctl = ctypes.CDLL(None).prctl
        capability = 0
        while prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
            capability += 1

    here = Path(__file__).parent
    command = [sys.executable, "-c", ALONE, kernel, str(here), str(here.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=drop if os.geteuid() == 0 else None)
    assert done.returncode == 0, done.stderr
    reason, code, console, sandbox = json.loads(done.stdout)
    assert (reason, code) == ("EXITED", 0), console
    assert Sandbox(sandbox) == Sandbox.CAPABILITIES | Sandbox.SECCOMP
