"""Hosts on which no cell runs: the reason, and what would help."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from hvd.backends.contract import LaunchSpec
from hvd.backends.trap.backend import BACKEND
from hvd.cell import area, process
from hvd.errors import HvdError

GUESTS = Path(__file__).resolve().parents[2] / "build" / "guests"
ALL_OK = "segments ok\nldt ok\nseccomp ok\nfsgsbase ok\ntimer ok\npage-0 ok\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program of a host that answers the probe as the test says."""
    program = tmp_path / "hvd-cell"
    monkeypatch.setattr(area, "PROGRAM", program)
    monkeypatch.setattr(process, "probe", process.probe.__wrapped__)  # which keeps no answers
    return program


def answers(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "problem", "reason", "remedy"),
    [
        ("segments", "Invalid argument", "32-bit code", "CONFIG_IA32_EMULATION"),
        ("ldt", "Function not implemented", "modify_ldt", "CONFIG_MODIFY_LDT_SYSCALL"),
        ("ldt", "Operation not permitted", "Operation not permitted", "seccomp filter"),
        ("seccomp", "signal 31 (Bad system call)", "Bad system call", "SystemCallArchitectures="),
        ("fsgsbase", "Operation not supported", "RDFSBASE", "Linux 5.9"),
        ("timer", "Resource temporarily unavailable", "timer", "RLIMIT_SIGPENDING"),
    ],
)
def test_what_is_missing(host: Path, name: str, problem: str, reason: str, remedy: str) -> None:
    answers(host, ALL_OK.replace(f"{name} ok", f"{name} failed {problem}"))
    availability = BACKEND.probe()
    assert not availability.available
    assert reason in availability.reason and remedy in availability.remedy


def test_no_page_0_is_no_reason(host: Path) -> None:
    answers(host, ALL_OK.replace("page-0 ok", "page-0 failed Operation not permitted"))
    assert process.probe() == (None, False)
    answers(host, ALL_OK)
    assert process.probe() == (None, True)


def test_a_program_that_breaks_off(host: Path) -> None:
    answers(host, "segments ok\n")
    availability = BACKEND.probe()
    assert not availability.available and "ended with status" in availability.reason


def test_a_program_that_is_missing(host: Path) -> None:
    availability = BACKEND.probe()
    assert not availability.available and "make native" in availability.remedy


def test_another_processor(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    availability = BACKEND.probe()
    assert not availability.available and "aarch64" in availability.reason and availability.remedy


@pytest.mark.parametrize(("kernel", "boot"), [("long.elf", "kernel"), ("alias.elf", "kernel"), (None, "disk")])
def test_guests_that_it_does_not_take(kernel: str | None, boot: str) -> None:
    """64-bit kernels, and what a firmware starts in real mode."""
    spec = LaunchSpec(
        uid="", name="g", engine="", memory_bytes=16 << 20, cpus=1, kernel=GUESTS / kernel if kernel else None, initrd=None, command_line="",
        flat_load_address=0, restart_on_reset=False, start_paused=False, boot=boot,
    )  # fmt: skip
    with pytest.raises(HvdError) as refused:
        BACKEND.check(spec)
    assert refused.value.reason in ("BACKEND_UNAVAILABLE", "CAPABILITY_MISSING")
    assert "use emulation" in str(refused.value) or "hvctl backends" in str(refused.value)
