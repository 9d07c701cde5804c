"""ACPI's fixed hardware: registers, timer, power button, soft-off."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hot_board import read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.devices.acpi_pm import AcpiPm
from hvd.board.hot import HotBoard, PortResult
from hvd.board.libhv import library
from hvd.trace.points import BackendId

STATUS, ENABLE, CONTROL, TIMER, CONTROL_2 = 0x600, 0x602, 0x604, 0x608, 0xA79
POWER_BUTTON = 1 << 8
OFF = 5 << 10 | 1 << 13


class Machine:
    def __init__(self) -> None:
        self.board = HotBoard(BackendId.EMULATION)
        self.off = ""

    @property
    def ns(self) -> int:
        return self.board.now()

    @ns.setter
    def ns(self, ns: int) -> None:
        assert library().hv_clock_set(self.board._clock, ns)

    @property
    def sci(self) -> bool:
        return bool(self.board.save()["ioapic.lines"] >> 9 & 1)

    def power_off(self, cause: str) -> None:
        self.off = self.off or cause


@pytest.fixture
def machine() -> Machine:
    return Machine()


def make(machine: Machine) -> AcpiPm:
    return AcpiPm(machine)  # type: ignore[arg-type]


def test_after_reset(machine: Machine) -> None:
    device = make(machine)
    assert [device.read_port(port, 2) for port in (STATUS, ENABLE, CONTROL)] == [0, 0, 1]  # ACPI mode is on
    assert not machine.sci


def test_the_button_is_heard_by_those_who_enabled_it(machine: Machine) -> None:
    device = make(machine)
    assert device.press_power_button() is False
    assert device.read_port(STATUS, 2) == POWER_BUTTON and not machine.sci
    device.write_port(STATUS, 2, POWER_BUTTON)
    device.write_port(ENABLE, 2, POWER_BUTTON)
    assert device.press_power_button() is True
    assert machine.sci
    device.write_port(STATUS, 2, 0)
    assert machine.sci
    device.write_port(STATUS, 2, POWER_BUTTON)
    assert not machine.sci and device.read_port(STATUS, 2) == 0


def test_a_button_pressed_before_is_told_when_it_is_enabled(machine: Machine) -> None:
    device = make(machine)
    device.press_power_button()
    device.write_port(ENABLE, 2, POWER_BUTTON)
    assert machine.sci
    device.reset()
    assert not machine.sci


def test_the_timer_runs_with_the_virtual_clock(machine: Machine) -> None:
    device = make(machine)
    machine.ns = 1_000_000_000
    assert device.read_port(TIMER, 4) == 3_579_545
    machine.ns = 1 << 60
    assert device.read_port(TIMER, 4) == (1 << 60) * 3_579_545 // 10**9 % (1 << 32)
    assert device.read_port(TIMER + 1, 1) == device.read_port(TIMER, 4) >> 8 & 0xFF


def test_the_timers_status_follows_its_highest_bit(machine: Machine) -> None:
    device = make(machine)
    machine.ns = 600 * 10**9  # 31 bits take 599.9 s
    assert device.read_port(STATUS, 2) == 1
    device.write_port(STATUS, 2, 1)
    assert device.read_port(STATUS, 2) == 0
    machine.ns += 600 * 10**9
    assert device.read_port(STATUS, 2) == 1


@pytest.mark.parametrize("bytewise", [False, True])
def test_soft_off(machine: Machine, bytewise: bool) -> None:
    device = make(machine)
    if bytewise:
        device.write_port(CONTROL, 1, OFF & 0xFF)
        device.write_port(CONTROL + 1, 1, OFF >> 8)
    else:
        device.write_port(CONTROL, 2, OFF)
    assert machine.off == "ACPI soft-off"
    assert device.read_port(CONTROL, 2) == 5 << 10 | 1  # SLP_EN reads 0


def test_other_sleep_states_are_none(machine: Machine) -> None:
    device = make(machine)
    for kind in (0, 1, 2, 3, 4, 6, 7):
        device.write_port(CONTROL, 2, kind << 10 | 1 << 13)
    device.write_port(CONTROL, 2, 5 << 10)  # the type alone
    assert not machine.off


def test_the_arbiters_bit_is_held(machine: Machine) -> None:
    device = make(machine)
    device.write_port(CONTROL_2, 1, 0xFF)
    assert device.read_port(CONTROL_2, 1) == 1
    other = make(Machine())
    other.restore(device.save())
    assert other.read_port(CONTROL_2, 1) == 1
    device.reset()
    assert device.read_port(CONTROL_2, 1) == 0
    other.restore({name: value for name, value in device.save().items() if name != "arbiter"})  # a snapshot of before it was there
    assert other.read_port(CONTROL_2, 1) == 0


def test_accesses_need_no_python_but_for_switching_off(machine: Machine) -> None:
    device = make(machine)
    for ports in device.ports:
        machine.board.claim(ports)
    write(machine.board, ENABLE, POWER_BUTTON, size=2)
    assert read(machine.board, STATUS, 4) == POWER_BUTTON << 16 and not machine.sci
    device.press_power_button()
    assert machine.sci and read(machine.board, STATUS, 2) == POWER_BUTTON
    write(machine.board, STATUS + 1, POWER_BUTTON >> 8)
    assert not machine.sci and read(machine.board, ENABLE, 4) == 1 << 16 | POWER_BUTTON
    write(machine.board, CONTROL, 5 << 10, size=2)
    write(machine.board, CONTROL_2, 0xFF)
    assert read(machine.board, CONTROL, 2) == 5 << 10 | 1 and read(machine.board, CONTROL_2) == 1
    for port, size, value in ((CONTROL, 2, OFF), (CONTROL + 1, 1, OFF >> 8), (ENABLE, 4, OFF << 16)):
        assert machine.board.port_out(port, size, value) is PortResult.LEAVE
    machine.ns = 10**9
    assert read(machine.board, TIMER, 4) == 3_579_545 and read(machine.board, TIMER + 1, 2) == 3_579_545 >> 8 & 0xFFFF
    assert machine.board.port_in(CONTROL + 1, 4)[0] is PortResult.LEAVE, "it reaches beyond the register"


ports = st.integers(0x600, 0x605) | st.integers(0x608, 0x60B) | st.just(CONTROL_2)
accesses = st.tuples(st.booleans(), ports, st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1))


@settings(max_examples=200, deadline=None)
@given(st.lists(accesses, max_size=60))
def test_any_access_and_its_snapshot(program: list[tuple[bool, int, int, int]]) -> None:
    machine = Machine()
    device = make(machine)
    for out, port, size, value in program:
        machine.ns += value
        if out:
            device.write_port(port, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= device.read_port(port, size) < 1 << 8 * size
        if value & 1:
            device.press_power_button()
    other_machine = Machine()
    other_machine.ns = machine.ns
    other = make(other_machine)
    other.restore(json.loads(json.dumps(device.save())))
    assert other_machine.sci == machine.sci
    for port in (STATUS, ENABLE, CONTROL):
        assert other.read_port(port, 2) == device.read_port(port, 2)


@pytest.mark.parametrize(
    "change", [{"status": -1}, {"enable": 1 << 16}, {"control": "x"}, {"half": None}, {"arbiter": 2}, {"status": []}]
)
def test_a_forged_snapshot_is_refused(machine: Machine, change: dict[str, Any]) -> None:
    device = make(machine)
    with pytest.raises((ValueError, KeyError, TypeError)):
        device.restore(device.save() | change)
