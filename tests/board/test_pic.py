"""The 8259 pair against its data sheet: named cases, and random programs against an independent model."""

from __future__ import annotations

from hot_board import read, set_up_pics, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pic_model import Pair

from hvd.board.hot import HotBoard
from hvd.trace.points import BackendId

EOI, ROTATE_EOI, READ_IRR, READ_ISR, POLL = 0x20, 0xA0, 0x0A, 0x0B, 0x0C


def make_board() -> HotBoard:
    board = HotBoard(BackendId.EMULATION)
    set_up_pics(board)
    return board


def test_nothing_is_delivered_before_a_guest_programs_it() -> None:
    board = HotBoard(BackendId.EMULATION)
    for irq in range(16):
        board.set_irq(irq, True)
    assert not board.pending()
    assert read(board, 0x21) == read(board, 0xA1) == 0xFF


def test_master_and_slave_vectors() -> None:
    for irq in (*range(2), *range(3, 16)):
        board = make_board()
        board.set_irq(irq, True)
        assert board.pending() and board.peek() == 0x20 + irq
        assert board.acknowledge() == 0x20 + irq
        assert not board.pending()  # an edge is served once, though its line is still high


def test_priority_and_nesting() -> None:
    board = make_board()
    board.set_irq(5, True)
    board.set_irq(3, True)
    assert board.acknowledge() == 0x23
    assert not board.pending()  # 5 waits for the end of 3
    board.set_irq(1, True)
    assert board.acknowledge() == 0x21  # 1 interrupts 3
    write(board, 0x20, EOI, READ_ISR)
    assert read(board, 0x20) == 1 << 3
    write(board, 0x20, EOI)
    assert board.acknowledge() == 0x25


def test_slave_request_during_another_needs_special_full_nesting() -> None:
    for nested in (False, True):
        board = make_board()
        if nested:
            write(board, 0x20, 0x11)
            write(board, 0x21, 0x20, 4, 0x11, 0)
        board.set_irq(12, True)
        assert board.acknowledge() == 0x2C
        board.set_irq(9, True)  # higher on the slave, the same input of the master
        assert board.pending() == nested


def test_request_that_goes_away_is_spurious() -> None:
    board = make_board()
    board.set_irq(4, True)
    board.set_irq(4, False)
    assert not board.pending()
    assert board.acknowledge() == 0x27
    write(board, 0x20, READ_ISR)
    assert read(board, 0x20) == 0  # no in-service bit: the handler must not send an EOI


def test_level_triggered_line_asks_again_until_it_falls() -> None:
    board = make_board()
    write(board, 0x4D1, 0xFF)
    assert read(board, 0x4D1) == 0xDE  # 8 and 13 stay edge-triggered
    board.set_irq(11, True)
    for _ in range(2):
        assert board.acknowledge() == 0x2B
        write(board, 0xA0, EOI)
        write(board, 0x20, EOI)
        assert board.pending()
    board.set_irq(11, False)
    assert not board.pending()


def test_automatic_eoi_with_rotation() -> None:
    board = make_board()
    write(board, 0x20, 0x11)
    write(board, 0x21, 0x20, 4, 3, 0)
    write(board, 0x20, 0x80)  # rotate in automatic EOI mode
    for irq in (3, 5):
        board.set_irq(irq, True)
    assert board.acknowledge() == 0x23
    board.set_irq(3, False)
    board.set_irq(3, True)
    assert board.acknowledge() == 0x25  # 3 is the lowest now
    assert board.acknowledge() == 0x23


def test_rotation_and_set_priority() -> None:
    board = make_board()
    write(board, 0x20, 0xC0 | 3)  # 3 is the lowest: 4 leads
    for irq in (0, 4):
        board.set_irq(irq, True)
    assert board.acknowledge() == 0x24
    write(board, 0x20, ROTATE_EOI)  # 4 is the lowest: 5, 6, 7, 0
    assert board.acknowledge() == 0x20


def test_special_mask_mode_lets_lower_ones_through() -> None:
    board = make_board()
    board.set_irq(1, True)
    board.acknowledge()
    board.set_irq(6, True)
    write(board, 0x21, 1 << 1)
    assert not board.pending()
    write(board, 0x20, 0x68)
    assert board.peek() == 0x26
    write(board, 0x20, EOI, READ_ISR)
    assert read(board, 0x20) == 1 << 1  # masked: the non-specific EOI leaves it
    write(board, 0x20, 0x61)
    assert read(board, 0x20) == 0


def test_poll_command_acknowledges() -> None:
    board = make_board()
    board.set_irq(3, True)
    write(board, 0x20, POLL)
    assert read(board, 0x20) == 0x83
    assert not board.pending()
    write(board, 0x20, POLL)
    assert read(board, 0x20) == 0
    assert read(board, 0x20) == 0  # IRR again


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("line"), st.integers(0, 20), st.booleans()),
            st.tuples(st.just("write"), st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]), st.integers(0, 255)),
            st.tuples(
                st.just("write"),
                st.sampled_from([0x20, 0xA0]),
                st.sampled_from([0x11, 0x20, 0x60, 0x61, 0x62, 0x80, 0xA0, 0xC2, 0xE3, 0x0A, 0x0B, 0x0C, 0x48, 0x68]),
            ),
            st.tuples(st.just("init"), st.sampled_from([0x20, 0xA0]), st.sampled_from([0x01, 0x03, 0x11, 0x13])),
            st.tuples(st.just("read"), st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1])),
            st.tuples(st.just("acknowledge")),
        ),
        max_size=60,
    )
)
@settings(max_examples=400, deadline=None)
def test_random_programs_against_the_model(program: list[tuple[object, ...]]) -> None:
    board, model = make_board(), Pair()
    for base, vector in ((0x20, 0x20), (0xA0, 0x28)):
        for port, value in ((base, 0x11), (base + 1, vector), (base + 1, 4), (base + 1, 1), (base + 1, 0)):
            model.write(port, value)
    for step in program:
        match step:
            case ("line", int(irq), bool(level)):
                board.set_irq(irq, level)
                model.set_line(irq, level)
            case ("write", int(port), int(value)):
                write(board, port, value)
                model.write(port, value)
            case ("init", int(port), int(icw4)):
                for where, value in ((port, 0x11), (port + 1, 0x40), (port + 1, 2), (port + 1, icw4), (port + 1, 0)):
                    write(board, where, value)
                    model.write(where, value)
            case ("read", int(port)):
                assert read(board, port) == model.read(port), step
            case ("acknowledge",):
                assert board.acknowledge() == model.acknowledge(), step
        assert board.peek() == model.peek(), step
        assert board.pending() == (model.peek() is not None)
