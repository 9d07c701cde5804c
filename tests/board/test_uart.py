"""The 16550A as a driver sees it: through the board's ports and its interrupt line."""

from __future__ import annotations

import pytest
from hot_board import read, set_up_pics, write
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.hot import HotBoard, PortResult
from hvd.trace.points import BackendId

RBR = THR = DLL = 0x3F8
IER = DLM = 0x3F9
IIR = FCR = 0x3FA
LCR, MCR, LSR, MSR, SCR = range(0x3FB, 0x400)
VECTOR = 0x24
EOI = 0x20


@pytest.fixture
def board() -> HotBoard:
    return make_board()


def make_board() -> HotBoard:
    board = HotBoard(BackendId.EMULATION)
    set_up_pics(board)
    return board


def type_bytes(board: HotBoard, data: bytes) -> None:
    assert board.console_put(data) == len(data)
    board.advance()


def test_linux_finds_a_16550a(board: HotBoard) -> None:
    """The probes of autoconfig() in Linux drivers/tty/serial/8250/8250_port.c, in their order."""
    write(board, IER, 0)
    assert read(board, IER) & 0x0F == 0
    write(board, IER, 0x0F)
    assert read(board, IER) & 0x0F == 0x0F
    write(board, IER, 0)
    write(board, MCR, 0x10 | 0x08 | 0x02)  # loopback, OUT2, RTS
    assert read(board, MSR) & 0xF0 == 0x90
    write(board, MCR, 0)
    write(board, LCR, 0xBF)  # an EFR would be here
    write(board, 0x3FA, 0)
    write(board, LCR, 0)
    write(board, FCR, 1)
    assert read(board, IIR) >> 6 == 3  # FIFOs that work: 16550A
    write(board, LCR, 0x80)
    assert read(board, 0x3FA) != 0  # no EFR: not a 16650 or 16850
    write(board, LCR, 0xBF)
    assert read(board, 0x3FA) != 0
    write(board, LCR, 0)
    write(board, FCR, 0x21)
    assert read(board, IIR) >> 5 == 6  # no 64-byte FIFO: not a 16750
    write(board, IER, 0x40)
    assert read(board, IER) & 0x40 == 0  # no UUE: not an XScale


def test_scratch_and_divisor(board: HotBoard) -> None:
    write(board, SCR, 0xA5)
    assert read(board, SCR) == 0xA5
    write(board, LCR, 0x83)
    write(board, DLL, 0x0C)
    write(board, DLM, 0x01)
    assert (read(board, DLL), read(board, DLM)) == (0x0C, 0x01)
    write(board, LCR, 0x03)
    assert read(board, IER) == 0 and board.console_take() == b""


def test_line_status_cannot_be_written(board: HotBoard) -> None:
    write(board, LSR, 0xFF)
    assert read(board, LSR) == 0x60


def test_transmitter_interrupt(board: HotBoard) -> None:
    write(board, MCR, 0x08)
    write(board, IER, 2)  # enabling it while the transmitter is empty raises it
    assert board.peek() == VECTOR
    assert board.acknowledge() == VECTOR
    assert read(board, IIR) & 0x0F == 2  # reading it clears it
    assert read(board, IIR) & 0x0F == 1
    write(board, 0x20, EOI)
    assert not board.pending()
    write(board, THR, ord("x"))
    assert board.acknowledge() == VECTOR  # sent: empty again
    write(board, THR, ord("y"))  # serves it too, and is sent at once: a new edge
    write(board, 0x20, EOI)
    assert board.acknowledge() == VECTOR
    write(board, 0x20, EOI)
    write(board, IER, 2)  # no change: no new request
    assert not board.pending()
    write(board, IER, 0)
    write(board, IER, 2)
    assert board.pending()
    assert board.console_take() == b"xy"


def test_the_interrupt_needs_no_out2(board: HotBoard) -> None:
    """xv6 leaves it off; loopback mode has no interrupt."""
    write(board, IER, 2)
    assert board.pending()
    write(board, MCR, 0x18)
    assert not board.pending()
    write(board, MCR, 0x08)
    assert board.pending()


def test_receiver_without_fifo(board: HotBoard) -> None:
    write(board, MCR, 0x08)
    write(board, IER, 1)
    type_bytes(board, b"ab")
    for expected in b"ab":
        assert board.acknowledge() == VECTOR  # one edge for each
        assert read(board, IIR) & 0x0F == 4
        assert read(board, LSR) & 1
        assert read(board, RBR) == expected
        write(board, 0x20, EOI)
    assert not board.pending() and not read(board, LSR) & 1
    assert not read(board, LSR) & 2  # nothing overran: bytes wait in the console


def test_receive_fifo_trigger_and_timeout(board: HotBoard) -> None:
    write(board, FCR, 0x81)  # 8 bytes
    write(board, IER, 1)
    type_bytes(board, b"1234567")
    assert read(board, IIR) == 0xCC  # below the trigger: character timeout, due at once
    type_bytes(board, b"8")
    assert read(board, IIR) == 0xC4
    assert bytes(read(board, RBR) for _ in range(8)) == b"12345678"
    assert read(board, IIR) == 0xC1


def test_fifo_control_clears_the_receiver(board: HotBoard) -> None:
    write(board, FCR, 1)
    type_bytes(board, b"12345")
    write(board, FCR, 3)
    assert not read(board, LSR) & 1


def test_loopback_overrun(board: HotBoard) -> None:
    write(board, FCR, 1)
    write(board, MCR, 0x10)
    write(board, THR, *range(20))
    assert read(board, LSR) & 3 == 3
    assert not read(board, LSR) & 2  # reading it cleared it
    assert [read(board, RBR) for _ in range(17)] == [*range(16), 0]
    assert board.console_take() == b""


def test_modem_status_deltas(board: HotBoard) -> None:
    assert read(board, MSR) == 0xB0
    write(board, MCR, 0x10)
    assert read(board, MSR) == 0x0B  # carrier, data set ready, clear to send: all fell
    write(board, MCR, 0x14)
    assert read(board, MSR) == 0x40  # ring: its rising edge is not told
    write(board, MCR, 0x10)
    assert read(board, MSR) == 0x04


def test_full_console_makes_the_guest_wait(board: HotBoard) -> None:
    for _ in range(1 << 16):
        assert board.port_out(THR, 1, 0x61) is PortResult.DONE
    assert board.port_out(THR, 1, 0x62) is PortResult.WAIT
    assert board.port_out(LCR, 1, 3) is PortResult.DONE  # only the data register waits
    assert board.console_take() == b"a" * (1 << 16)
    assert board.port_out(THR, 1, 0x62) is PortResult.DONE
    assert board.console_take() == b"b"


@given(
    typed=st.binary(max_size=300),
    chunks=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    fcr=st.sampled_from([0, 1, 0x41, 0x81, 0xC1]),
)
@settings(max_examples=200, deadline=None)
def test_every_typed_byte_arrives_once_in_order(typed: bytes, chunks: list[int], fcr: int) -> None:
    """An interrupt-driven driver that reads one byte for each interrupt misses none."""
    board = make_board()
    write(board, FCR, fcr)
    write(board, MCR, 0x08)
    write(board, IER, 1)
    got = bytearray()
    left, turn = typed, 0
    while left or board.pending():
        size = chunks[turn % len(chunks)]
        turn += 1
        type_bytes(board, left[:size])
        left = left[size:]
        while board.pending():
            assert board.acknowledge() == VECTOR
            assert read(board, IIR) & 1 == 0
            got.append(read(board, RBR))
            write(board, 0x20, EOI)
    assert bytes(got) == typed


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0x3F0, 0x408), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)),
        max_size=80,
    )
)
@settings(max_examples=300, deadline=None)
def test_random_programs_do_no_harm(program: list[tuple[bool, int, int, int]]) -> None:
    board = make_board()
    board.console_put(b"typed" * 10)
    for is_write, port, size, value in program:
        if is_write:
            assert board.port_out(port, size, value) is PortResult.DONE
        else:
            result, got = board.port_in(port, size)
            assert result is PortResult.DONE and 0 <= got < 1 << (8 * size)
        board.advance()
    write(board, LCR, 3)
    assert read(board, LSR) & 0x60 == 0x60


def test_input_waits_for_a_guest_that_listens(board: HotBoard) -> None:
    """What is typed before a driver is up is not thrown away by the FIFO reset that drivers begin with."""
    board.console_put(b"early")
    board.advance()
    write(board, FCR, 0x07)  # FIFOs on and empty
    board.advance()
    assert not read(board, LSR) & 1
    write(board, IER, 1)  # by interrupt
    board.advance()
    received = bytearray()
    while read(board, LSR) & 1:
        received.append(read(board, RBR))
        board.advance()
    assert received == b"early"


def test_a_guest_that_polls_is_heard(board: HotBoard) -> None:
    board.console_put(b"p")
    for _ in range(100):
        if read(board, LSR) & 1:
            break
        board.advance()
    assert read(board, RBR) == ord("p")


def test_a_guest_that_only_writes_is_not_taken_for_one_that_listens(board: HotBoard) -> None:
    board.console_put(b"p")
    for character in b"a kernel's messages":
        assert not read(board, LSR) & 1  # room to send?
        write(board, RBR, character)
        board.advance()
