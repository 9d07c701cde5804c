"""The reset control register, by itself and on a machine (docs/add-a-device.md walks through it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_vcpu import ScriptedVcpu, Step, port_in, port_out

from hvd.board.devices.reset_control import ResetControl
from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.machine import Machine
from hvd.board.memory import GuestMemory
from hvd.board.spec import MachineSpec
from hvd.board.vcpu import Exit, ExitReason
from hvd.trace.points import BackendId

HALT = Exit(ExitReason.HALT)


class FakeMachine:
    def __init__(self) -> None:
        self.resets: list[str] = []

    def reset_line(self, cause: str) -> None:
        self.resets.append(cause)


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def register(machine: FakeMachine) -> ResetControl:
    return ResetControl(machine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "resets"),
    [
        ((0x02,), []),
        ((0x02, 0x06), ["hard reset, port 0xcf9"]),
        ((0x02, 0x0E), ["hard reset, port 0xcf9"]),
        ((0x04,), ["soft reset, port 0xcf9"]),
        ((0x06, 0x06, 0x04), ["hard reset, port 0xcf9"]),  # it does not rise again
        ((0x06, 0x00, 0x06), ["hard reset, port 0xcf9"] * 2),
        ((0xF1,), []),
    ],
)
def test_a_rising_bit_2_resets(
    machine: FakeMachine, register: ResetControl, written: tuple[int, ...], resets: list[str]
) -> None:
    for value in written:
        register.write_port(0xCF9, 1, value)
    assert machine.resets == resets
    assert register.read_port(0xCF9, 1) == written[-1] & 0x0E


def test_reset_clears_it(register: ResetControl) -> None:
    register.write_port(0xCF9, 1, 0x0A)
    register.reset()
    assert register.read_port(0xCF9, 1) == 0


def test_a_pci_scan_does_not_reset(tmp_path: Path) -> None:
    """Accesses of two and four bytes there are PCI's, however they begin."""
    steps: list[Step] = [port_out(port, 0x0606_0606, 4) for port in range(0xCF5, 0xCFC)]
    steps += [port_out(port, 0x0606, 2) for port in range(0xCF8, 0xCFB)]
    end, vcpu, machine = run(tmp_path, *steps, port_in(0xCF9), port_out(0xCF8, 0x06), HALT)
    assert end.reason == "HALTED" and machine.resets == 0 and vcpu.answers == [0]


def run(directory: Path, *steps: Step, **spec: Any) -> tuple[End, ScriptedVcpu, Machine]:
    kernel = directory / "kernel.bin"
    kernel.write_bytes(b"\xf4")
    vcpu = ScriptedVcpu(steps)
    values = {"name": "m", "backend": "emulation", "engine": "", "memory_bytes": 1 << 20, "kernel": str(kernel)}
    machine = Machine(
        MachineSpec(**values | {"flat_load_address": 0x7C00} | spec),
        HotBoard(BackendId.EMULATION),
        GuestMemory(1 << 20),
        vcpu.create,
    )
    return machine.run(), vcpu, machine


def test_on_a_machine_as_linux_does_it(tmp_path: Path) -> None:
    """native_machine_emergency_restart, BOOT_CF9_FORCE (arch/x86/kernel/reboot.c)."""
    steps = (port_out(0xCF8, 0x8000_0600, 4), port_in(0xCF9), port_out(0xCF9, 0x02), port_out(0xCF9, 0x0E), HALT)
    end, vcpu, _ = run(tmp_path, *steps)
    assert (end.reason, end.message) == ("RESET", "the guest reset itself (hard reset, port 0xcf9)")
    assert vcpu.answers == [0]
    end, vcpu, machine = run(tmp_path, *steps, restart_on_reset=True)
    # After the reset the script goes on where it was: HALT ends it.
    assert end.reason == "HALTED" and machine.resets == 1 and len(vcpu.entries) == 2
