"""Limits of containers, and of machines' processes, where control groups have version 2 alone: the same tests, in another kernel."""

from __future__ import annotations

import re

import pytest

from tests.version_2 import Unavailable, run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_limits_on_version_2() -> None:
    try:
        code, text = run(["tests/backends/test_container_figures.py", "tests/backends/test_container_conformance.py",
                          "tests/e2e/test_jail_group.py", "-q", "-k",
                          "runc and (limits or fork_bomb or pause or monitor) or over_the_limit and emulation"], 800)  # fmt: skip
    except Unavailable as problem:
        pytest.skip(str(problem))
    assert code == 0 and re.search(r"\b\d+ passed", text) and "skipped" not in text, text[-5000:]
