"""The translator's fast way for the most frequent instructions writes what its rules write, for each form that it knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cell_rig import CELL, ROOT, SANITIZE, build, sanitizers_work

# Of 512 opcodes with their ModRM and SIB bytes.
LEAST_KNOWN = 1_000_000


def test_common_forms_are_translated_as_by_the_rules(tmp_path: Path) -> None:
    sources = [ROOT / "tests/cell/common_forms.c", *(CELL / name for name in ("common.c", "pieces.c", "rules.c", "opcodes.c", "decode.c"))]
    program = build(tmp_path / "common_forms", *sources, options=SANITIZE if sanitizers_work(tmp_path) else [])
    result = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout) > LEAST_KNOWN
