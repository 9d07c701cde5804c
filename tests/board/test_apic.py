"""Local APIC and IOAPIC: against a model, the timer at chosen times, and how both share the processor with the 8259 pair."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise

import pytest
from apic_model import LVT, Apics
from hot_board import set_up_pics, write
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvd.board.hot import NEVER, HotBoard
from hvd.board.libhv import library
from hvd.trace.points import BackendId

LOCAL, IO = 0xFEE00000, 0xFEC00000
EOI, SVR, TPR, LINT0, TIMER, ERROR = 0xB0, 0xF0, 0x80, 0x350, 0x320, 0x370
MASKED, LEVEL = 1 << 16, 1 << 15


@pytest.fixture
def board() -> Iterator[HotBoard]:
    board = HotBoard(BackendId.EMULATION)
    yield board
    board.close()


def local(board: HotBoard, offset: int, value: int) -> None:
    assert board.mmio_write(LOCAL + offset, 4, value)


def get(board: HotBoard, offset: int) -> int:
    value = board.mmio_read(LOCAL + offset, 4)
    assert value is not None
    return value


def route(board: HotBoard, pin: int, low: int, high: int = 0) -> None:
    for index, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low)):
        assert board.mmio_write(IO, 4, index) and board.mmio_write(IO + 0x10, 4, value)


def entry(board: HotBoard, pin: int) -> int:
    board.mmio_write(IO, 4, 0x10 + 2 * pin)
    value = board.mmio_read(IO + 0x10, 4)
    assert value is not None
    return value


# ---- against the model

registers = st.sampled_from(
    [0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, *LVT[1:], 0x0, 0x40, 0x2F0, 0x3F0, 0xFF0]
    + [base + 16 * n for base in (0x100, 0x180, 0x200) for n in range(8)]
)  # fmt: skip
words = st.integers(0, 0xFFFFFFFF)
vectors = st.sampled_from([0, 5, 15, 16, 0x30, 0x31, 0x3F, 0x40, 0x80, 0xFE, 0xFF])
steps = st.one_of(
    st.tuples(st.just("line"), st.integers(0, 23), st.booleans()),
    st.tuples(st.just("local"), registers, words),
    st.tuples(st.just("local"), st.just(SVR), st.sampled_from([0xFF, 0x1FF, 0x1FF])),
    st.tuples(st.just("local"), st.just(EOI), st.just(0)),
    st.tuples(st.just("local"), st.sampled_from([ERROR, 0x80, 0x300]), vectors),
    st.tuples(st.just("local"), st.just(0x300), st.builds(lambda v, s: v | s << 18, vectors, st.integers(0, 3))),
    st.tuples(st.just("read"), registers),
    st.tuples(st.just("select"), st.integers(0, 0x41)),
    st.tuples(st.just("io"), words),
    st.tuples(st.just("io"), st.builds(lambda v, level: v | level << 15, vectors, st.booleans())),
    st.tuples(st.just("msi"), st.builds(lambda d, m: LOCAL | d << 12 | m << 2, st.sampled_from([0, 1, 0xFF]), st.booleans()),
              st.builds(lambda v, level: v | level << 15, vectors, st.booleans())),
    st.tuples(st.just("acknowledge")),
)  # fmt: skip


@given(st.lists(steps, max_size=80))
@settings(max_examples=500, deadline=None)
def test_random_programs_against_the_model(program: list[tuple[object, ...]]) -> None:
    board, model = HotBoard(BackendId.EMULATION), Apics()
    local(board, SVR, 0x1FF)
    model.write_local(SVR, 0x1FF)
    for step in program:
        match step:
            case ("line", int(gsi), bool(level)):
                board.set_irq(gsi, level)
                model.set_line(gsi, level)
            case ("local", int(offset), int(value)):
                local(board, offset, value)
                model.write_local(offset, value)
            case ("read", int(offset)):
                assert get(board, offset) == model.local.read(offset), step
            case ("select", int(index)):
                board.mmio_write(IO, 4, index)
                model.index = index
            case ("io", int(value)):
                board.mmio_write(IO + 0x10, 4, value)
                model.write_io(value)
                assert board.mmio_read(IO + 0x10, 4) == model.read_io()
            case ("msi", int(address), int(data)):
                board.msi(address, data)
                model.msi(address, data)
            case ("acknowledge",):
                if model.local.on:
                    assert board.peek() == model.local.peek()
                    if model.local.peek() is not None:
                        assert board.acknowledge() == model.local.acknowledge()
        # The 8259 pair is masked: nothing but the local APIC has a word.
        assert board.peek() == model.local.peek(), step
        assert get(board, 0xA0) == model.local.priority
        assert board.cr8 == model.local.tpr >> 4
    board.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 0x1010), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)), max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_access_has_an_answer(program: list[tuple[bool, int, int, int]]) -> None:
    board = HotBoard(BackendId.EMULATION)
    board.start_clock()
    for write_, offset, size, value in program:
        for base in (LOCAL, IO):
            if write_:
                assert board.mmio_write(base + offset, size, value) == (offset < 0x1000)
            else:
                found = board.mmio_read(base + offset, size)
                assert (found is not None) == (offset < 0x1000)
                assert found is None or 0 <= found < 1 << 8 * size
        board.advance()
        board.deadline()
        board.acknowledge()
    board.close()


# ---- beside the 8259 pair


def test_firmware_leaves_virtual_wire_mode(board: HotBoard) -> None:
    set_up_pics(board)
    board.set_irq(5, True)
    assert board.peek() == 0x25
    local(board, SVR, 0x1FF)  # on: through LINT0, which passes ExtINT
    assert get(board, LINT0) == 0x700 and board.peek() == 0x25
    local(board, LINT0, 0x700 | MASKED)
    assert board.peek() is None
    local(board, LINT0, 0x400)  # another delivery mode
    assert board.peek() is None
    local(board, LINT0, 0x700)
    assert board.acknowledge() == 0x25


def test_the_ioapics_input_0_is_the_8259(board: HotBoard) -> None:
    set_up_pics(board)
    local(board, SVR, 0x1FF)
    local(board, LINT0, MASKED)
    board.set_irq(5, True)
    assert board.peek() is None
    route(board, 0, 0x700)
    assert board.acknowledge() == 0x25


def test_the_local_apic_comes_before_the_8259(board: HotBoard) -> None:
    set_up_pics(board)
    local(board, SVR, 0x1FF)
    board.set_irq(5, True)
    local(board, 0x300, 0x40031)
    assert board.acknowledge() == 0x31
    assert board.acknowledge() == 0x25  # knows no task priority
    local(board, EOI, 0)


def test_lines_reach_both(board: HotBoard) -> None:
    set_up_pics(board)
    local(board, SVR, 0x1FF)
    local(board, LINT0, MASKED)
    route(board, 2, 0x30)
    route(board, 7, 0x37)
    route(board, 20, 0x50 | LEVEL)
    for gsi, vector in ((0, 0x30), (7, 0x37), (20, 0x50)):
        board.set_irq(gsi, True)
        assert board.acknowledge() == vector
        board.set_irq(gsi, False)
        local(board, EOI, 0)
    assert board.peek() is None


def test_pci_and_sci_are_level_triggered_at_the_8259(board: HotBoard) -> None:
    set_up_pics(board)
    for irq in (9, 10, 11):
        board.set_irq(irq, True)
        for _ in range(2):
            assert board.acknowledge() == 0x20 + irq
            write(board, 0xA0, 0x20)
            write(board, 0x20, 0x20)
        board.set_irq(irq, False)
        assert board.peek() is None


def test_disabled_by_its_msr(board: HotBoard) -> None:
    set_up_pics(board)
    local(board, SVR, 0x1FF)
    local(board, LINT0, MASKED)
    board.set_irq(5, True)
    assert board.read_msr(0x1B) == 0xFEE00900
    assert board.write_msr(0x1B, 0xFEE00000)
    assert board.peek() == 0x25 and board.mmio_read(LOCAL, 4) is None
    assert board.write_msr(0x1B, 0xFEE00C00 | 0x1234 << 32)
    assert board.read_msr(0x1B) == 0xFEE00900  # neither x2APIC nor another address
    assert get(board, SVR) == 0xFF
    assert board.read_msr(0x1C) is None and not board.write_msr(0x10, 5)


def test_an_edge_on_a_masked_input_is_lost_a_level_is_not(board: HotBoard) -> None:
    local(board, SVR, 0x1FF)
    for trigger, expected in ((0, None), (LEVEL, 0x41)):
        route(board, 6, 0x41 | trigger | MASKED)
        board.set_irq(6, True)
        route(board, 6, 0x41 | trigger)
        assert board.peek() == expected
        board.set_irq(6, False)
    assert board.acknowledge() == 0x41


def test_a_level_is_asked_again_until_it_falls(board: HotBoard) -> None:
    local(board, SVR, 0x1FF)
    route(board, 16, 0x61 | LEVEL)
    board.set_irq(16, True)
    for _ in range(3):
        assert board.acknowledge() == 0x61
        assert entry(board, 16) & 1 << 14
        local(board, EOI, 0)
    board.set_irq(16, False)
    assert board.acknowledge() == 0x61  # was requested already
    local(board, EOI, 0)
    assert board.peek() is None and not entry(board, 16) & 1 << 14


def test_a_level_waits_for_an_apic_that_is_off(board: HotBoard) -> None:
    route(board, 16, 0x61 | LEVEL)
    board.set_irq(16, True)
    assert board.peek() is None and not entry(board, 16) & 1 << 14
    local(board, SVR, 0x1FF)
    assert board.acknowledge() == 0x61


def test_ticks_of_the_8254_through_the_ioapic(board: HotBoard) -> None:
    """Each is owed until the one before has ended, whichever controller it goes through."""
    board.start_clock()
    local(board, SVR, 0x1FF)
    route(board, 2, 0x30)
    write(board, 0x43, 0x34)
    write(board, 0x40, 0xFF, 0)  # 214 us
    for _ in range(5):
        while not board.advance():
            assert board.deadline() is not None
        assert board.acknowledge() == 0x30
        assert board.deadline() is None  # in service
        local(board, EOI, 0)
        assert board.deadline() is not None


# ---- the timer, at times that the test chooses


class Timer:
    """struct hv_lapic by its functions."""

    def __init__(self) -> None:
        lib = library()
        pointer, u8, u32, u64, yes = ctypes.c_void_p, ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_bool
        for name, result, arguments in (
            ("reset", None, [pointer]),
            ("read", u32, [pointer, u32, u64]),
            ("write", ctypes.c_int, [pointer, u32, u32, u64]),
            ("advance", None, [pointer, u64]),
            ("deadline", u64, [pointer]),
            ("peek", ctypes.c_int, [pointer]),
            ("acknowledge", u8, [pointer]),
            ("holds", yes, [pointer, u8]),
            ("write_deadline", None, [pointer, u64]),
            ("read_deadline", u64, [pointer]),
        ):
            function = getattr(lib, f"hv_lapic_{name}")
            function.restype, function.argtypes = result, arguments
        self.lib = lib
        self.memory = ctypes.create_string_buffer(1024)
        self.ns = 1000
        lib.hv_lapic_reset(self.memory)
        self.write(SVR, 0x1FF)
        self.write(0x3E0, 0xB)

    def write(self, offset: int, value: int) -> None:
        self.lib.hv_lapic_write(self.memory, offset, value, self.ns)

    def read(self, offset: int) -> int:
        return int(self.lib.hv_lapic_read(self.memory, offset, self.ns))

    def at(self, ns: int) -> Timer:
        self.ns = ns
        self.lib.hv_lapic_advance(self.memory, ns)
        return self

    def taken(self) -> int:
        """The vector, whose interrupt ends at once; 0 = none."""
        if self.lib.hv_lapic_peek(self.memory) < 0:
            return 0
        vector = self.lib.hv_lapic_acknowledge(self.memory)
        self.write(EOI, 0)
        return int(vector)

    @property
    def deadline(self) -> int:
        return int(self.lib.hv_lapic_deadline(self.memory))


def test_one_shot() -> None:
    timer = Timer()
    timer.write(TIMER, 0x50)
    assert timer.deadline == NEVER
    timer.write(0x380, 5000)
    assert timer.deadline == 6000
    assert timer.at(5999).taken() == 0 and timer.read(0x390) == 1
    assert timer.at(6000).taken() == 0x50 and timer.read(0x390) == 0
    assert timer.deadline == NEVER and timer.at(1 << 40).taken() == 0


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1), (4, 2), (0xF0, 2)])
def test_divide(code: int, divisor: int) -> None:
    timer = Timer()
    timer.write(0x3E0, code)
    timer.write(TIMER, 0x50)
    timer.write(0x380, 1000)
    assert timer.deadline == 1000 + 1000 * divisor
    assert timer.at(1000 + 250 * divisor).read(0x390) == 750


def test_the_divisor_changed_under_way() -> None:
    timer = Timer()
    timer.write(TIMER, 0x50)
    timer.write(0x380, 1000)
    timer.at(1600).write(0x3E0, 0)  # 400 left, by 2 now
    assert timer.deadline == 1600 + 800
    assert timer.read(0x390) == 400


def test_periodic() -> None:
    timer = Timer()
    timer.write(TIMER, 0x20050)
    timer.write(0x380, 1_000_000)
    for n in range(1, 5):
        due = 1000 + n * 1_000_000
        assert timer.deadline == due
        assert timer.at(due - 1).taken() == 0 and timer.at(due).taken() == 0x50
    assert timer.at(4_501_000).read(0x390) == 500_000


def test_ticks_that_come_late_are_owed_but_not_in_a_burst() -> None:
    timer = Timer()
    timer.write(TIMER, 0x20050)
    timer.write(0x380, 1_000_000)
    assert timer.at(10_001_000).taken() == 0x50
    given = [timer.ns]
    while len(given) < 10:
        assert timer.deadline > timer.ns
        timer.at(timer.deadline)
        assert timer.taken() == 0x50
        given.append(timer.ns)
    assert given[-1] <= 12_001_000
    assert min(b - a for a, b in pairwise(given)) >= 125_000


def test_no_tick_while_one_is_in_service() -> None:
    timer = Timer()
    timer.write(TIMER, 0x20050)
    timer.write(0x380, 1_000_000)
    timer.at(1_001_000)
    timer.lib.hv_lapic_acknowledge(timer.memory)
    assert timer.deadline == NEVER
    timer.at(3_001_000)
    assert not timer.read(0x200 + 0x20) and timer.deadline == NEVER
    timer.write(EOI, 0)
    assert timer.deadline <= 3_001_000 + 125_000


def test_a_period_of_one_tick_leaves_time_for_the_guest() -> None:
    timer = Timer()
    timer.write(TIMER, 0x20050)
    timer.write(0x380, 1)
    timer.at(2000)
    assert timer.taken() == 0x50
    assert timer.deadline >= 2000 + 50_000
    assert timer.at(1 << 60).taken() == 0x50


def test_ticks_while_masked_are_lost() -> None:
    timer = Timer()
    timer.write(TIMER, 0x20050 | MASKED)
    timer.write(0x380, 1_000_000)
    assert timer.deadline == NEVER
    timer.at(50_000_000).write(TIMER, 0x20050)
    assert timer.taken() == 0
    assert timer.deadline == 50_001_000


def test_counts_0_stop_it() -> None:
    timer = Timer()
    timer.write(TIMER, 0x20050)
    timer.write(0x380, 1000)
    timer.write(0x380, 0)
    assert timer.deadline == NEVER and timer.read(0x390) == 0
    assert timer.at(1 << 40).taken() == 0


def test_deadline_mode() -> None:
    timer = Timer()
    lib, memory = timer.lib, timer.memory
    lib.hv_lapic_write_deadline(memory, 5000)
    assert lib.hv_lapic_read_deadline(memory) == 0  # another mode: ignored
    timer.write(TIMER, 0x40050)
    lib.hv_lapic_write_deadline(memory, 5000)
    timer.write(0x380, 77)  # ignored in this mode
    assert lib.hv_lapic_read_deadline(memory) == 5000 and timer.read(0x380) == 0 and timer.read(0x390) == 0
    assert timer.at(4999).taken() == 0 and timer.at(5000).taken() == 0x50
    assert lib.hv_lapic_read_deadline(memory) == 0 and timer.deadline == NEVER
    lib.hv_lapic_write_deadline(memory, 9000)
    lib.hv_lapic_write_deadline(memory, 0)
    assert timer.deadline == NEVER
    lib.hv_lapic_write_deadline(memory, 9000)
    timer.write(TIMER, 0x50)  # changing the mode disarms it
    assert timer.deadline == NEVER


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(TIMER), st.sampled_from([0x50, 0x20050, 0x40050, 0x60050, 0x30050, 0x10050])),
            st.tuples(st.just(0x380), st.integers(0, 0xFFFFFFFF) | st.integers(0, 3)),
            st.tuples(st.just(0x3E0), st.integers(0, 15)),
            st.tuples(st.just(SVR), st.sampled_from([0xFF, 0x1FF])),
            st.tuples(st.just("deadline"), st.integers(0, 1 << 50)),
            st.tuples(st.just("pass"), st.integers(0, 1 << 45) | st.integers(0, 3)),
        ),
        max_size=60,
    )
)
@example([(TIMER, 0x20050), (0x380, 1), ("pass", 6), (TIMER, 0x50)])  # ticks were owed when it became a one-shot
@settings(max_examples=300, deadline=None)
def test_any_program_of_the_timer(program: list[tuple[object, int]]) -> None:
    """It never has a deadline in the past that advancing does not settle, and counts stay within what was written."""
    timer = Timer()
    for what, value in program:
        if what == "pass":
            timer.at(timer.ns + value)
        elif what == "deadline":
            timer.lib.hv_lapic_write_deadline(timer.memory, value)
        else:
            assert isinstance(what, int)
            timer.write(what, value)
        timer.at(timer.ns)
        timer.taken()
        assert timer.deadline > timer.ns
        assert timer.read(0x390) <= timer.read(0x380)
