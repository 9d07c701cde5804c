"""What kernels do that makes a monitor slow: devices' registers read again and again (guests/busy.c)."""

from __future__ import annotations

import pytest
from harness import kernel
from machine_run import run_to_end

from hvd.backends.rewriting.backend import BACKEND

READS = 20_000


def test_an_instruction_that_reads_a_device_again_and_again_does_without_signals() -> None:
    found = BACKEND.probe()
    if not found.available:
        pytest.skip(f"{found.reason}; {found.remedy}")
    final = run_to_end(kernel("busy.elf"), f"device={READS}", backend="rewriting", engine="translate")
    assert final.end.exit_code == 0 and final.console == "busy: ok\n"
    assert final.signals < READS / 10
