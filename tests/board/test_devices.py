"""CMOS clock, keyboard controller and debug exit, against their data sheets."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator

import pytest
from hot_board import set_up_pics, write
from hypothesis import given
from hypothesis import strategies as st

from hvd.board.devices.cmos import Cmos, days_since_1970
from hvd.board.devices.debug_exit import DebugExit
from hvd.board.devices.keyboard import Keyboard
from hvd.board.hot import HotBoard, PortResult
from hvd.board.libhv import library
from hvd.trace.points import BackendId

SECOND = 1_000_000_000
UPDATE_NS = (244 + 1984) * 1000
START = calendar.timegm((2026, 11, 23, 13, 5, 9))  # a Monday


class FakeMachine:
    def __init__(self, memory_bytes: int = 64 << 20) -> None:
        self.memory_bytes = memory_bytes
        self.start_wall_ns = START * SECOND
        self.board = HotBoard(BackendId.EMULATION)
        self.virtual_ns = 0
        self.resets: list[str] = []
        self.codes: list[int] = []

    @property
    def virtual_ns(self) -> int:
        return self.board.now()

    @virtual_ns.setter
    def virtual_ns(self, ns: int) -> None:
        assert library().hv_clock_set(self.board._clock, ns)

    def clock_ns(self) -> int:
        return self.board.now()

    @property
    def irq_1(self) -> bool:
        return bool(self.board.save()["ioapic.lines"] >> 1 & 1)

    def reset_line(self, cause: str) -> None:
        self.resets.append(cause)

    def exit(self, code: int) -> None:
        self.codes.append(code)


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def cmos(machine: FakeMachine) -> Iterator[Cmos]:
    yield Cmos(machine)  # type: ignore[arg-type]


def get(cmos: Cmos, index: int) -> int:
    cmos.write_port(0x70, 1, index)
    return cmos.read_port(0x71, 1)


def put(cmos: Cmos, index: int, value: int) -> None:
    cmos.write_port(0x70, 1, index)
    cmos.write_port(0x71, 1, value)


def clock(cmos: Cmos) -> list[int]:
    return [get(cmos, index) for index in (0x32, 9, 8, 7, 4, 2, 0)]


def test_the_time_is_that_of_the_start_in_bcd(cmos: Cmos) -> None:
    assert clock(cmos) == [0x20, 0x26, 0x11, 0x23, 0x13, 0x05, 0x09]
    assert get(cmos, 6) == 2  # Monday; Sunday is 1
    assert get(cmos, 0x0D) == 0x80
    assert get(cmos, 0x0A) == 0x26
    assert get(cmos, 0x0B) == 0x02


@given(st.integers(-62_000_000_000, 253_402_300_799), st.integers(0, 1 << 60), st.sampled_from([0x00, 0x02, 0x04, 0x06]))
def test_any_time_of_day(start_s: int, virtual_ns: int, form: int) -> None:
    """Against the C library's calendar, in each of the four forms."""
    machine = FakeMachine()
    machine.start_wall_ns, machine.virtual_ns = start_s * SECOND + 5, virtual_ns
    cmos = Cmos(machine)  # type: ignore[arg-type]
    put(cmos, 0x0B, form)
    now = time.gmtime((start_s * SECOND + 5 + virtual_ns) // SECOND)

    def encoded(value: int) -> int:
        return value if form & 4 else value // 10 << 4 | value % 10

    hour = encoded(now.tm_hour) if form & 2 else encoded(now.tm_hour % 12 or 12) | (0x80 if now.tm_hour >= 12 else 0)
    date = [encoded(now.tm_year // 100 % 100), encoded(now.tm_year % 100), encoded(now.tm_mon), encoded(now.tm_mday)]
    assert clock(cmos) == [*date, hour, encoded(now.tm_min), encoded(now.tm_sec)]
    assert get(cmos, 6) == encoded((now.tm_wday + 1) % 7 + 1)
    machine.board.close()


def test_what_is_in_c(cmos: Cmos, machine: FakeMachine) -> None:
    """The index and all reading but that of the flags; each access of one byte, as the bus makes them."""
    board = machine.board
    board.claim(range(0x70, 0x72))
    for index in range(128):
        assert board.port_out(0x70, 1, index) is PortResult.DONE
        result, value = board.port_in(0x71, 1)
        assert (result is PortResult.LEAVE) if index == 0x0C else (result, value) == (PortResult.DONE, get(cmos, index))
    assert board.port_in(0x70, 1) == (PortResult.DONE, 0xFF)
    assert board.port_out(0x71, 1, 0) is board.port_out(0x70, 2, 0) is board.port_in(0x70, 2)[0] is PortResult.LEAVE


def test_the_nmi_bit_of_the_index_is_ignored(cmos: Cmos) -> None:
    assert get(cmos, 0x80 | 9) == 0x26


def test_it_follows_the_virtual_clock(cmos: Cmos, machine: FakeMachine) -> None:
    machine.virtual_ns = (11 * 3600) * SECOND
    assert clock(cmos) == [0x20, 0x26, 0x11, 0x24, 0x00, 0x05, 0x09]
    assert get(cmos, 6) == 3


@pytest.mark.parametrize(
    ("hour", "bcd", "binary"),
    [(0, 0x12, 12), (1, 0x01, 1), (11, 0x11, 11), (12, 0x92, 0x8C), (13, 0x81, 0x81), (23, 0x91, 0x8B)],
)
def test_twelve_hours(machine: FakeMachine, hour: int, bcd: int, binary: int) -> None:
    machine.start_wall_ns = (START // 86400 * 86400 + hour * 3600) * SECOND
    cmos = Cmos(machine)  # type: ignore[arg-type]
    put(cmos, 0x0B, 0x00)
    assert get(cmos, 4) == bcd
    put(cmos, 0x0B, 0x04)
    assert get(cmos, 4) == binary
    put(cmos, 4, binary)
    put(cmos, 0x0B, 0x06)
    assert get(cmos, 4) == hour


def test_update_in_progress_covers_the_end_of_a_second(cmos: Cmos, machine: FakeMachine) -> None:
    for virtual_ns, flag in (
        (0, 0),
        (SECOND - UPDATE_NS - 1, 0),
        (SECOND - UPDATE_NS, 0x80),
        (SECOND - 1, 0x80),
        (SECOND, 0),
    ):
        machine.virtual_ns = virtual_ns
        assert get(cmos, 0x0A) & 0x80 == flag, virtual_ns


def test_setting_the_clock_under_set(cmos: Cmos, machine: FakeMachine) -> None:
    put(cmos, 0x0B, 0x82)
    machine.virtual_ns += 5 * SECOND - 1  # stands meanwhile
    assert get(cmos, 0x0A) & 0x80 == 0
    assert get(cmos, 0) == 0x09
    for index, value in ((0x32, 0x20), (9, 0x30), (8, 0x02), (7, 0x28), (4, 0x23), (2, 0x59), (0, 0x58)):
        put(cmos, index, value)
    put(cmos, 0x0B, 0x02)
    assert clock(cmos) == [0x20, 0x30, 0x02, 0x28, 0x23, 0x59, 0x58]
    machine.virtual_ns += 2 * SECOND
    assert clock(cmos) == [0x20, 0x30, 0x03, 0x01, 0x00, 0x00, 0x00]


def test_setting_one_register_at_once(cmos: Cmos) -> None:
    put(cmos, 2, 0x42)
    assert clock(cmos) == [0x20, 0x26, 0x11, 0x23, 0x13, 0x42, 0x09]


@given(st.integers(1970, 9999), st.integers(1, 12), st.integers(1, 28))
def test_days(year: int, month: int, day: int) -> None:
    assert days_since_1970(year, month, day) * 86400 == calendar.timegm((year, month, day, 0, 0, 0))


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=40))
def test_no_write_hurts_it(writes: list[tuple[int, int]]) -> None:
    """Whatever a guest programs, every register still reads as a byte."""
    machine = FakeMachine()
    cmos = Cmos(machine)  # type: ignore[arg-type]
    for index, value in writes:
        machine.virtual_ns += 700_000_000
        put(cmos, index, value)
        assert all(0 <= get(cmos, register) <= 0xFF for register in (*range(14), 0x32))


def test_flags_are_seen_once(cmos: Cmos, machine: FakeMachine) -> None:
    assert get(cmos, 0x0C) == 0
    machine.virtual_ns = SECOND
    assert get(cmos, 0x0C) == 0x50  # updated, periodic (1024 Hz)
    assert get(cmos, 0x0C) == 0
    put(cmos, 0x0B, 0x12)  # with the update interrupt enabled
    machine.virtual_ns = 2 * SECOND
    assert get(cmos, 0x0C) == 0xD0
    machine.virtual_ns += SECOND // 1024
    assert get(cmos, 0x0C) == 0x40  # a period later, but not a second
    put(cmos, 0x0A, 0x20)  # rate 0
    machine.virtual_ns += SECOND // 2
    assert get(cmos, 0x0C) == 0


@pytest.mark.parametrize(
    ("memory", "extended_kib", "above_16m", "above_4g"),
    [
        (1 << 20, 0, 0, 0),
        (16 << 20, 15 << 10, 0, 0),
        (128 << 20, 0xFFFF, 112 * 16, 0),
        (5 << 30, 0xFFFF, 0xBF00, 0x8000),
    ],
)
def test_memory_size(memory: int, extended_kib: int, above_16m: int, above_4g: int) -> None:
    cmos = Cmos(FakeMachine(memory))  # type: ignore[arg-type]

    def word(index: int, length: int = 2) -> int:
        return sum(get(cmos, index + n) << 8 * n for n in range(length))

    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == extended_kib
    assert word(0x34) == above_16m
    assert word(0x5B, 3) == above_4g
    assert sum(get(cmos, index) for index in range(0x10, 0x2E)) == get(cmos, 0x2E) << 8 | get(cmos, 0x2F)


def test_memory_survives_reset_and_interrupts_do_not(cmos: Cmos) -> None:
    put(cmos, 0x40, 0x5A)
    put(cmos, 0x0B, 0x76)
    cmos.reset()
    assert get(cmos, 0x40) == 0x5A
    assert get(cmos, 0x0B) == 0x06


# ---- keyboard controller


@pytest.fixture
def keyboard(machine: FakeMachine) -> Keyboard:
    return Keyboard(machine)  # type: ignore[arg-type]


def answers(keyboard: Keyboard) -> list[int]:
    got = []
    while keyboard.read_port(0x64, 1) & 1:
        got.append(keyboard.read_port(0x60, 1))
    return got


def test_self_test_and_status(keyboard: Keyboard) -> None:
    assert keyboard.read_port(0x64, 1) == 0x14
    keyboard.write_port(0x64, 1, 0xAA)
    assert keyboard.read_port(0x64, 1) == 0x1D
    assert answers(keyboard) == [0x55]
    keyboard.write_port(0x64, 1, 0xAB)
    assert answers(keyboard) == [0]


def test_command_byte(keyboard: Keyboard) -> None:
    keyboard.write_port(0x64, 1, 0x60)
    keyboard.write_port(0x60, 1, 0x44)
    keyboard.write_port(0x64, 1, 0x20)
    assert answers(keyboard) == [0x64]  # there is no second port


def test_an_answer_raises_irq_1_and_reading_lowers_it(keyboard: Keyboard, machine: FakeMachine) -> None:
    set_up_pics(machine.board)
    assert not machine.irq_1
    keyboard.write_port(0x60, 1, 0xF2)
    for value in (0xFA, 0xAB, 0x41):  # an edge for each byte
        assert machine.irq_1 and machine.board.acknowledge() == 0x21
        write(machine.board, 0x20, 0x20)
        assert not machine.board.pending()
        assert keyboard.read_port(0x60, 1) == value
    assert not machine.irq_1 and not machine.board.pending()


def test_no_interrupt_when_it_is_disabled(keyboard: Keyboard, machine: FakeMachine) -> None:
    keyboard.write_port(0x64, 1, 0x60)
    keyboard.write_port(0x60, 1, 0x00)
    keyboard.write_port(0x60, 1, 0xEE)
    assert not machine.irq_1
    assert answers(keyboard) == [0xEE]


@pytest.mark.parametrize("writes", [[0xED, 0x02], [0xF3, 0x20], [0xF0, 0x02]])
def test_keyboard_commands_with_an_argument(keyboard: Keyboard, writes: list[int]) -> None:
    for value in writes:
        keyboard.write_port(0x60, 1, value)
        assert answers(keyboard) == [0xFA]
    keyboard.write_port(0x60, 1, 0x02)
    assert answers(keyboard) == [0xFE]  # a scan code set is no command


@pytest.mark.parametrize("command", range(0xF0, 0x100, 2))
def test_pulsing_line_0_resets(keyboard: Keyboard, machine: FakeMachine, command: int) -> None:
    keyboard.write_port(0x64, 1, command)
    assert machine.resets == ["keyboard controller"]


def test_other_reset_lines(keyboard: Keyboard, machine: FakeMachine) -> None:
    keyboard.write_port(0x64, 1, 0xFF)
    keyboard.write_port(0x92, 1, 0x02)
    assert machine.resets == []
    keyboard.write_port(0x92, 1, 0x03)
    keyboard.write_port(0x64, 1, 0xD1)
    keyboard.write_port(0x60, 1, 0xDE)
    assert machine.resets == ["fast reset, port 0x92", "keyboard controller"]


def test_a20_is_one_bit_on_all_its_ways(keyboard: Keyboard) -> None:
    assert keyboard.read_port(0x92, 1) == 2
    keyboard.write_port(0x64, 1, 0xDD)
    assert keyboard.read_port(0x92, 1) == 0
    keyboard.write_port(0x92, 1, 2)
    keyboard.write_port(0x64, 1, 0xD0)
    assert answers(keyboard) == [0x03]
    keyboard.write_port(0x64, 1, 0xD1)
    keyboard.write_port(0x60, 1, 0x01)
    assert keyboard.read_port(0x92, 1) == 0


@given(st.lists(st.tuples(st.sampled_from([0x60, 0x64, 0x92]), st.integers(0, 255)), max_size=200))
def test_nonsense_does_not_hurt_the_controller(writes: list[tuple[int, int]]) -> None:
    keyboard = Keyboard(FakeMachine())  # type: ignore[arg-type]
    for port, value in writes:
        keyboard.write_port(port, 1, value)
    assert len(answers(keyboard)) <= 16
    keyboard.reset()
    assert keyboard.read_port(0x64, 1) == 0x14


# ---- debug exit


def test_debug_exit(machine: FakeMachine) -> None:
    device = DebugExit(machine)  # type: ignore[arg-type]
    assert device.read_port(0xF4, 1) == 0xFF
    device.write_port(0xF5, 1, 1)
    assert machine.codes == []
    device.write_port(0xF4, 1, 42)
    device.write_port(0xF4, 4, 0xFFFF_FFFF)
    assert machine.codes == [42, 0xFFFF_FFFF]


def test_the_epoch_of_this_file() -> None:
    assert time.gmtime(START).tm_wday == 0
