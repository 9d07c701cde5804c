"""The 8254. Its functions take the virtual time as an argument, so the tests choose the time."""

from __future__ import annotations

import ctypes
import time

import pytest
from hot_board import set_up_pics, write
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.hot import NEVER, HotBoard
from hvd.board.libhv import library
from hvd.trace.points import BackendId

HZ = 1193182
LATCH_ALL = 0xC0


class Pit:
    """struct hv_pit by its functions; `now` is the virtual time in ticks of the input clock."""

    def __init__(self) -> None:
        lib = library()
        pointer, u8, u16, u64 = ctypes.c_void_p, ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint64
        for name, result, arguments in (
            ("reset", None, [pointer, u64]),
            ("read", u8, [pointer, u16, u64]),
            ("write", None, [pointer, u16, u8, u64]),
            ("deadline", u64, [pointer, ctypes.c_bool]),
            ("advance", ctypes.c_bool, [pointer, u64, ctypes.c_bool]),
            ("output", ctypes.c_bool, [pointer, ctypes.c_uint, u64]),
        ):
            function = getattr(lib, f"hv_pit_{name}")
            function.restype, function.argtypes = result, arguments
        self.lib = lib
        self.memory = ctypes.create_string_buffer(1024)
        self.ns = 0
        lib.hv_pit_reset(self.memory, 0)

    def at(self, ticks: int) -> Pit:
        """Go to the middle of a tick."""
        self.ns = (2 * ticks + 1) * 500_000_000 // HZ
        return self

    def read(self, port: int) -> int:
        return int(self.lib.hv_pit_read(self.memory, port, self.ns))

    def write(self, port: int, *values: int) -> None:
        for value in values:
            self.lib.hv_pit_write(self.memory, port, value, self.ns)

    def load(self, channel: int, mode: int, count: int, bcd: int = 0) -> None:
        """Control word and both bytes, at a whole tick."""
        self.write(0x43, channel << 6 | 0x30 | mode << 1 | bcd)
        self.write(0x40 + channel, count & 0xFF, count >> 8 & 0xFF)

    def count(self, channel: int = 0) -> int:
        self.write(0x43, channel << 6)
        return self.read(0x40 + channel) | self.read(0x40 + channel) << 8

    def status(self, channel: int = 0) -> int:
        self.write(0x43, 0xE0 | 2 << channel)
        return self.read(0x40 + channel)

    def output(self, channel: int = 0) -> bool:
        return bool(self.lib.hv_pit_output(self.memory, channel, self.ns))

    def advance(self, taken: bool = True) -> bool:
        """taken: the guest is done with the tick before."""
        return bool(self.lib.hv_pit_advance(self.memory, self.ns, taken))

    def deadline_ns(self, taken: bool = True) -> int:
        return int(self.lib.hv_pit_deadline(self.memory, taken))

    def deadline(self) -> int | None:
        """In ticks, rounded."""
        ns = self.deadline_ns()
        return None if ns == NEVER else round(ns * HZ / 1e9)


def waveform(pit: Pit, channel: int, ticks: range) -> str:
    return "".join("-" if pit.at(tick).output(channel) else "_" for tick in ticks)


def test_mode_0_terminal_count() -> None:
    pit = Pit()
    pit.load(0, 0, 5)
    assert waveform(pit, 0, range(8)) == "_____---"
    assert [pit.at(tick).count() for tick in range(8)] == [5, 4, 3, 2, 1, 0, 0xFFFF, 0xFFFE]
    assert pit.deadline() == 5


def test_mode_0_first_byte_stops_the_count() -> None:
    pit = Pit()
    pit.load(0, 0, 5)
    pit.at(8).write(0x40, 0)
    assert not pit.output() and pit.deadline() is None
    pit.write(0x40, 1)
    assert pit.deadline() in (8 + 256, 9 + 256)  # loaded in the middle of a tick


def test_mode_2_rate_generator() -> None:
    pit = Pit()
    pit.load(0, 2, 4)
    assert waveform(pit, 0, range(9)) == "---_---_-"
    assert [pit.at(tick).count() for tick in range(6)] == [4, 3, 2, 1, 4, 3]
    assert pit.deadline() == 4


def test_mode_3_square_wave() -> None:
    pit = Pit()
    pit.load(0, 3, 6)
    assert waveform(pit, 0, range(12)) == "---___---___"
    assert [pit.at(tick).count() for tick in range(7)] == [6, 4, 2, 6, 4, 2, 6]
    pit = Pit()
    pit.load(0, 7, 5)  # 7 is 3; an odd count is high for one tick more
    assert waveform(pit, 0, range(10)) == "---__---__"
    assert [pit.at(tick).count() for tick in range(6)] == [4, 2, 0, 4, 2, 4]


def test_mode_4_strobe() -> None:
    pit = Pit()
    pit.load(0, 4, 3)
    assert waveform(pit, 0, range(7)) == "---_---"
    assert pit.deadline() == 4
    assert pit.at(5).advance()
    assert pit.deadline() is None and not pit.at(100_000).advance()


def test_modes_1_and_5_wait_for_the_gate() -> None:
    for mode, wave in ((1, "___-----"), (5, "---_----")):
        pit = Pit()
        pit.load(2, mode, 3)
        assert waveform(pit, 2, range(10)) == "-" * 10
        pit.at(10).write(0x61, 1)
        assert waveform(pit, 2, range(10, 18)) == wave, mode
        pit.write(0x61, 0)
        pit.at(20).write(0x61, 1)  # triggers again
        assert waveform(pit, 2, range(20, 28)) == wave, mode


def test_gate_freezes_mode_0() -> None:
    pit = Pit()
    pit.load(2, 0, 100)
    assert pit.at(1000).count(2) == 100  # the gate is low after reset
    pit.write(0x61, 1)
    assert pit.at(1030).count(2) == 70
    pit.write(0x61, 0)
    assert pit.at(5000).count(2) == 70
    pit.write(0x61, 1)
    assert not pit.at(5069).read(0x61) & 0x20
    assert pit.at(5071).read(0x61) & 0x20


def test_count_written_during_a_period_waits_for_its_end() -> None:
    pit = Pit()
    pit.load(0, 2, 10)
    pit.at(14).write(0x40, 4, 0)
    assert pit.status() & 0x40  # null count: not loaded yet
    assert [pit.at(tick).count() for tick in (14, 19, 20, 23, 24)] == [6, 1, 4, 1, 4]
    assert not pit.status() & 0x40


def test_bcd() -> None:
    pit = Pit()
    pit.load(0, 0, 0x1000, bcd=1)
    assert pit.at(1).count() == 0x0999
    assert pit.at(1001).count() == 0x9999
    assert pit.at(999).deadline() == 1000


def test_latch_holds_until_it_is_read() -> None:
    pit = Pit()
    pit.load(0, 2, 0x1234)
    pit.at(0x34).write(0x43, 0)
    pit.at(0x100).write(0x43, 0)  # ignored: the first latch was not read
    assert [pit.read(0x40), pit.read(0x40)] == [0x00, 0x12]
    assert pit.read(0x40) == 0x34 and pit.read(0x40) == 0x11  # live again


def test_read_back_status_then_count() -> None:
    pit = Pit()
    pit.load(0, 2, 0x1234)
    pit.at(4).write(0x43, LATCH_ALL | 2)
    assert pit.read(0x40) == 0x80 | 0x30 | 2 << 1
    assert pit.read(0x40) | pit.read(0x40) << 8 == 0x1230


def test_access_modes() -> None:
    pit = Pit()
    pit.write(0x43, 0x14)  # low byte only
    pit.write(0x40, 0x80)
    assert pit.at(0).deadline() == 0x80 and pit.read(0x40) == 0x80
    pit.write(0x43, 0x24)  # high byte only
    pit.write(0x40, 0x80)
    assert pit.read(0x40) == 0x80 and pit.deadline() in (0x8000, 0x8001)


def test_refresh_toggles() -> None:
    pit = Pit()
    assert {pit.at(tick).read(0x61) & 0x10 for tick in range(0, 60, 9)} == {0, 0x10}


def test_missed_ticks_come_one_by_one() -> None:
    pit = Pit()
    pit.load(0, 2, 11932)  # 100 Hz
    assert not pit.at(11931).advance()
    assert pit.at(11932 * 3 + 5).advance()
    assert not pit.advance(taken=False) and pit.deadline_ns(taken=False) == NEVER  # first take this one
    for _ in range(2):
        assert not pit.advance(), "the guest had no time between two ticks"
        wait = pit.deadline_ns() - pit.ns
        assert wait == 10_000_151 // 8  # an eighth of the period
        pit.ns += wait - 1
        assert not pit.advance()
        pit.ns += 1
        assert pit.advance()
    assert not pit.advance()
    assert pit.deadline() == 11932 * 4  # nothing is owed: on the old beat again


def test_no_more_than_a_second_is_owed() -> None:
    pit = Pit()
    pit.load(0, 2, 11932)
    pit.ns = 60 * 10**9
    ticks = 0
    while pit.ns < 61 * 10**9:
        ticks += pit.advance()
        pit.advance()
        pit.ns = pit.deadline_ns()
    assert ticks in (99 + 99, 99 + 100)  # that of the minute, and the second in which they were given


@pytest.mark.parametrize("program", [(0x43, 0x34), (0x40, 0x9C, 0x2E)])
def test_programming_forgives_what_is_owed(program: tuple[int, ...]) -> None:
    pit = Pit()
    pit.load(0, 2, 11932)
    assert pit.at(11932 * 50 + 5).advance()
    pit.write(*program)
    pit.ns += 5_000_000
    assert not pit.advance()


def test_a_count_of_one_does_not_flood() -> None:
    pit = Pit()
    pit.load(0, 2, 1)
    edges = 0
    for microsecond in range(10_000):
        pit.ns = microsecond * 1000
        edges += pit.advance()
    assert 100 <= edges <= 201  # 20 kHz at most


@given(
    count=st.integers(2, 0xFFFF),
    mode=st.sampled_from([2, 3]),
    stalls=st.lists(
        st.tuples(st.integers(0, 300_000_000) | st.integers(0, 3_000_000), st.integers(0, 100_000)), max_size=40
    ),
)
@settings(max_examples=200, deadline=None)
def test_no_tick_is_lost_and_none_comes_before_the_guest_took_the_last(
    count: int, mode: int, stalls: list[tuple[int, int]]
) -> None:
    """The host stops the guest again and again for up to 0.3 s; the guest takes some time for each tick."""
    pit = Pit()
    pit.load(0, mode, count)
    period_ns = count * 10**9 / HZ
    pause_ns = max(period_ns / 8, 50_000)
    ticks, acknowledged_ns = 0, -(10**9)
    for stall, service in (*stalls, *((0, 100),) * 2000):
        pit.ns += stall
        if stall == 0 and not ticks % 7:  # looked at too early, or only when there is something to do
            pit.ns += int(period_ns / 3)
        else:
            pit.ns = max(pit.ns, pit.deadline_ns())
        if pit.advance():
            assert pit.ns - acknowledged_ns >= pause_ns - 1
            assert not pit.advance(taken=False)
            assert pit.deadline_ns(taken=False) == NEVER
            pit.ns += service
            assert not pit.advance(taken=False)
            assert not pit.advance()  # acknowledged: the next one is for later
            acknowledged_ns = pit.ns
            ticks += 1
        assert pit.deadline_ns() > pit.ns
        assert pit.deadline_ns() <= pit.ns + period_ns + pause_ns + 2
    due = int((pit.ns + 1) / period_ns)  # a nanosecond for the rounding
    owed = due - ticks
    if period_ns >= 400_000 and sum(stall for stall, _ in stalls) < 400_000_000:
        assert owed in (0, 1)  # all were given: 2000 times an eighth of the period is time enough
    assert owed >= -1


@given(
    mode=st.integers(0, 7),
    count=st.integers(0, 0xFFFF),
    bcd=st.booleans(),
    times=st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_one_shot_counts_fall_and_periodic_ones_stay_in_range(
    mode: int, count: int, bcd: bool, times: list[int]
) -> None:
    pit = Pit()
    if bcd:
        count = int(f"{count % 10000:d}", 16)
    pit.load(0, mode, count, bcd)
    modulus = 10000 if bcd else 65536
    reload = int(f"{count:x}") if bcd else count
    reload = reload or modulus
    for ns in sorted(times):
        pit.ns = ns
        shown = pit.count()
        shown = int(f"{shown:x}") if bcd else shown
        ticks = ns * HZ // 10**9
        if mode in (0, 4):
            assert shown == (reload - ticks) % modulus
        elif mode in (2, 6):
            assert shown == (reload - ticks % reload) % modulus
        elif mode in (3, 7):
            assert shown % 2 == 0 and shown <= reload


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.sampled_from([*range(0x40, 0x44), 0x61]), st.integers(0, 255), st.integers(0, 10**9)
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_random_programs_do_no_harm(program: list[tuple[bool, int, int, int]]) -> None:
    pit = Pit()
    for is_write, port, value, step in program:
        pit.ns += step
        if is_write:
            pit.write(port, value)
        else:
            assert 0 <= pit.read(port) <= 255
        pit.advance()
        pit.advance()  # whatever was given is taken
        assert pit.deadline_ns() > pit.ns  # never a deadline that has passed: no busy host


class Clock(ctypes.Structure):
    """struct hv_clock: while it stands, its time can be set."""

    _fields_ = (("base_ns", ctypes.c_uint64), ("stopped_ns", ctypes.c_uint64), ("running", ctypes.c_bool))


class Ticker:
    """A board with 8259 and 8254 running, and a guest that counts ticks, at times that the test chooses."""

    def __init__(self, hz: int, icw4: int = 1) -> None:
        self.board = HotBoard(BackendId.EMULATION)
        self.clock = Clock.from_address(library().hv_board_clock(self.board.address))
        self.clock.stopped_ns = 1000
        self.ticks = 0
        self.auto_eoi = bool(icw4 & 2)
        set_up_pics(self.board, 0xFE, 0xFF)
        if self.auto_eoi:
            write(self.board, 0x20, 0x11)
            write(self.board, 0x21, 0x20, 4, icw4, 0xFE)
        self.count = HZ // hz
        write(self.board, 0x43, 0x34)
        write(self.board, 0x40, self.count & 0xFF, self.count >> 8)
        self.start_ns = self.clock.stopped_ns

    def expected(self) -> int:
        return int((self.clock.stopped_ns - self.start_ns) * HZ // 10**9 // self.count)

    def go(self, ns: int) -> None:
        self.clock.stopped_ns += ns

    def take(self, service_ns: int = 0, like_linux: bool = False) -> bool:
        """Take an interrupt if there is one."""
        if not self.board.advance():
            return False
        assert self.board.acknowledge() == 0x20
        self.ticks += 1
        if self.auto_eoi:
            return True
        if like_linux:  # mask_and_ack_8259A, the handler, unmask
            write(self.board, 0x21, 0xFF)
            write(self.board, 0x20, 0x60)
            self.go(service_ns)
            write(self.board, 0x21, 0xFE)
        else:
            self.go(service_ns // 2)
            assert not self.board.advance(), "a second tick while the first is in service"
            self.go(service_ns - service_ns // 2)
            write(self.board, 0x20, 0x20)
        return True


@given(
    hz=st.sampled_from([20, 100, 250, 1000]),
    how=st.sampled_from(["eoi", "linux", "auto"]),
    steps=st.lists(st.tuples(st.integers(0, 100_000_000) | st.integers(0, 100_000), st.integers(0, 200_000))),
)
@settings(max_examples=150, deadline=None)
def test_a_guest_that_counts_ticks_knows_the_time(hz: int, how: str, steps: list[tuple[int, int]]) -> None:
    ticker = Ticker(hz, icw4=3 if how == "auto" else 1)
    owed_at_most = 0
    for stall, service in steps:
        ticker.go(stall)
        ticker.take(service, how == "linux")
        owed_at_most = max(owed_at_most, ticker.expected() - ticker.ticks)
    if owed_at_most > hz * 9 // 10:
        return  # more than a second may be lost
    for _ in range(20 * hz):  # five seconds in steps of a quarter of the period
        ticker.go(10**9 // hz // 4)
        ticker.take(1000, how == "linux")
    assert 0 <= ticker.expected() - ticker.ticks <= 1


def test_a_masked_timer_owes_one_tick() -> None:
    ticker = Ticker(100)
    write(ticker.board, 0x21, 0xFF)
    ticker.go(5 * 10**9)
    write(ticker.board, 0x21, 0xFE)
    assert ticker.take()  # the request that the 8259 kept
    ticker.go(5_000_000)
    assert not ticker.take()


def test_an_initialised_controller_owes_nothing() -> None:
    ticker = Ticker(100)
    ticker.go(500_000_000)
    set_up_pics(ticker.board, 0xFE, 0xFF)
    ticker.go(4_000_000)
    assert not ticker.take()


def test_reset_owes_nothing() -> None:
    """The firmware's 18.2 Hz ran while the guest had IRQ 0 masked; unmasking gives the one request that waits."""
    ticker = Ticker(100)
    ticker.board.reset()
    ticker.go(900_000_000)
    write(ticker.board, 0x21, 0xFE)
    assert ticker.board.advance() and ticker.board.acknowledge() == 8
    write(ticker.board, 0x20, 0x20)
    ticker.go(20_000_000)
    assert not ticker.board.advance()


def test_a_pause_owes_nothing_and_owed_ticks_have_deadlines() -> None:
    ticker = Ticker(1000)
    board = ticker.board
    ticker.go(10_500_000)
    assert board.deadline() is None  # the clock stands
    time.sleep(0.05)
    assert ticker.take()
    while ticker.expected() > ticker.ticks:
        board.start_clock()
        deadline = board.deadline()
        board.stop_clock()
        assert deadline is not None and deadline - board.host_ns() <= 126_000  # an eighth of the period
        ticker.go(126_000)
        ticker.take()
    assert ticker.expected() == ticker.ticks < 20  # the pause is not among them


def test_an_untaken_tick_needs_no_deadline() -> None:
    ticker = Ticker(1000)
    ticker.go(1_000_001)
    assert ticker.board.advance()
    ticker.board.start_clock()
    assert ticker.board.deadline() is None
    assert ticker.board.acknowledge() == 0x20
    assert ticker.board.deadline() is None
    write(ticker.board, 0x20, 0x20)
    assert ticker.board.deadline() is not None
