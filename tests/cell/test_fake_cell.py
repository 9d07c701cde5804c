"""A cell that says what it likes (fake_cell.c): the runner takes what makes sense, ends the guest at what does not, and neither dies
nor hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cell_rig import INCLUDE, ROOT, compiler
from hostile_rig import Rig, skip_without_cells

# Ways in which a machine may end whose guest does anything at random.
ENDS = {"EXECUTION_ERROR", "KILLED", "EXITED", "POWEROFF", "RESET", "HALTED", "TRIPLE_FAULT"}
SEEDS = 24


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_without_cells()
    directory = tmp_path_factory.mktemp("fake")
    sources = [Path(__file__).with_name("fake_cell.c"), ROOT / "hvd" / "board" / "native" / "clock.c"]
    command = [compiler(), "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", *INCLUDE, "-o", str(directory / "fake"), *map(str, sources)]
    subprocess.run(command, check=True, timeout=60)
    return directory / "fake"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_forged_turns(fake: Path, seed: int, tmp_path: Path) -> None:
    program = tmp_path / f"fake{seed}"
    shutil.copy(fake, program)
    with Rig("hello.elf", tmp_path, str(program)) as rig:
        if not rig.over(1.0):
            rig.kill()
        end = rig.wait(30)
        assert end.reason in ENDS, end
        assert "a bug in the hypervisor" not in end.message and "descriptors are our own" not in end.message
        rig.board.save()
    assert not os.path.exists(f"/proc/{rig.cell.pid}/exe")


def test_another_program(tmp_path: Path) -> None:
    skip_without_cells()
    with Rig("hello.elf", tmp_path, shutil.which("sleep") or "/bin/sleep") as rig:
        end = rig.wait(30)
        assert end.reason == "EXECUTION_ERROR" and "the cell ended without a word" in end.message


def test_program_that_is_missing(tmp_path: Path) -> None:
    skip_without_cells()
    with Rig("hello.elf", tmp_path, str(tmp_path / "nothing")) as rig:
        end = rig.wait(30)
        assert end.reason == "LOAD_FAILED" and end.metadata["error"] == "NATIVE_MISSING"
