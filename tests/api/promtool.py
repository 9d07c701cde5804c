"""Prometheus' own tool, which reads what we serve."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Where deploy/packages.sh puts promtool.
TOOLS = Path(__file__).resolve().parents[2] / "build/tools/usr/bin"


def check_with_promtool(text: bytes) -> None:
    promtool = shutil.which("promtool") or shutil.which("promtool", path=TOOLS)
    if promtool is None:
        pytest.skip("needs promtool, of the Debian package prometheus: `make setup` fetches it")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
