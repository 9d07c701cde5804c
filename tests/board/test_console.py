"""The console's rings between the vcpu's thread and the runner's main thread, and the board's ports around them."""

from __future__ import annotations

import os
import select
import threading

from hot_board import read, write

from hvd.board.hot import HotBoard, PortResult
from hvd.trace.points import BackendId

THR, LSR, FCR = 0x3F8, 0x3FD, 0x3FA


def test_reader_that_sleeps_is_woken_once() -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    board = HotBoard(BackendId.EMULATION, out_event=event)
    write(board, THR, ord("a"))
    assert select.select([event], [], [], 0)[0] == []  # nobody sleeps
    assert not board.console_sleep()  # there is output already
    assert board.console_take() == b"a"
    assert board.console_sleep()
    write(board, THR, ord("b"), ord("c"))
    assert os.eventfd_read(event) == 1
    assert board.console_take() == b"bc"
    os.close(event)


def test_reader_that_dozes_is_woken_when_the_guest_waits_after_writing() -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    board = HotBoard(BackendId.EMULATION, out_event=event)
    board.console_doze()
    board.console_rest()
    write(board, THR, ord("a"))
    assert select.select([event], [], [], 0)[0] == []  # nothing to be told, and then it does not wait
    board.console_rest()
    assert os.eventfd_read(event) == 1
    board.console_rest()
    assert select.select([event], [], [], 0)[0] == []  # once
    assert board.console_take() == b"a"
    board.console_doze()
    assert board.console_sleep()
    write(board, THR, ord("b"))
    board.console_rest()
    assert os.eventfd_read(event) == 1  # by the output alone
    os.close(event)


def test_input_that_does_not_fit_is_refused_not_lost() -> None:
    board = HotBoard(BackendId.EMULATION)
    assert board.console_put(bytes(5000)) == 4096
    assert board.console_put(b"x") == 0
    board.port_out(0x3F9, 1, 1)  # received data wanted
    board.advance()  # one byte goes to the UART
    assert board.console_put(b"xy") == 1


def test_bytes_cross_between_two_threads_in_order() -> None:
    """4 MB out and 256 KB in, each through a ring that wraps many times, with the reader asleep in between."""
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    board = HotBoard(BackendId.EMULATION, out_event=event)
    write(board, FCR, 1)
    outward = bytes((i * 7 + (i >> 8)) & 0xFF for i in range(1 << 18))
    inward = bytes((i * 11 + (i >> 7)) & 0xFF for i in range(1 << 14))
    received = bytearray()
    drained = threading.Event()

    def guest() -> None:
        for byte in outward:
            while board.port_out(THR, 1, byte) is PortResult.WAIT:
                drained.wait(10)
                drained.clear()
            board.advance()
            while read(board, LSR) & 1:
                received.append(read(board, THR))
        while len(received) < len(inward):
            board.advance()
            while read(board, LSR) & 1:
                received.append(read(board, THR))

    thread = threading.Thread(target=guest)
    thread.start()
    sent, taken = 0, bytearray()
    while len(taken) < len(outward) or sent < len(inward):
        sent += board.console_put(inward[sent : sent + 1000])
        data = board.console_take()
        taken += data
        drained.set()
        if not data and len(taken) < len(outward) and board.console_sleep():
            assert select.select([event], [], [], 10)[0], "the reader was not woken"
            os.eventfd_read(event)
    thread.join(30)
    assert not thread.is_alive()
    assert bytes(taken) == outward
    assert bytes(received) == inward
    os.close(event)


def test_unclaimed_ports_float_and_claimed_ones_leave() -> None:
    board = HotBoard(BackendId.EMULATION)
    for port in (0x80, 0xED, 0x2F8, 0xCF8, 0xFFFF):
        assert board.port_in(port, 1) == (PortResult.DONE, 0xFF)
        assert board.port_out(port, 4, 0) is PortResult.DONE
    assert board.port_in(0xCFC, 4) == (PortResult.DONE, 0xFFFF_FFFF)
    board.claim(range(0x70, 0x72))
    board.claim(range(0x3F8, 0x400))  # stays with the UART
    assert board.port_in(0x70, 1)[0] is board.port_out(0x71, 1, 0) is PortResult.LEAVE
    assert board.port_in(0x6F, 2)[0] is PortResult.LEAVE
    assert board.port_in(0x72, 1)[0] is board.port_in(0x3F8, 1)[0] is PortResult.DONE


def test_wide_access_is_split_over_byte_registers() -> None:
    board = HotBoard(BackendId.EMULATION)
    write(board, 0x20, 0x11)
    write(board, 0x20, 0xAB_0A, size=2)  # OCW3 to port 20, ICW2 to port 21
    write(board, 0x21, 4, 1)
    write(board, 0x21, 0xFF_5A, size=2)  # port 22 floats
    assert read(board, 0x20, 2) == 0x5A00


def test_virtual_clock_stands_while_stopped() -> None:
    board = HotBoard(BackendId.EMULATION)
    assert board.now() == 0 and board.deadline() is None
    board.start_clock()
    board.stop_clock()
    stood = board.now()
    assert stood > 0 and board.now() == stood
    board.start_clock()
    assert board.now() >= stood
    write(board, 0x43, 0x34)
    write(board, 0x40, 0, 0)
    deadline = board.deadline()
    assert deadline is not None and 0 < deadline - board.host_ns() <= 54_925_494


def test_timer_interrupts_through_the_board() -> None:
    board = HotBoard(BackendId.EMULATION)
    write(board, 0x20, 0x11)
    write(board, 0x21, 0x20, 4, 1, 0xFE)
    board.start_clock()
    write(board, 0x43, 0x34)
    write(board, 0x40, 0xA9, 0x04)  # 1 ms
    for _ in range(3):
        deadline = board.deadline()
        assert deadline is not None
        while board.host_ns() < deadline:
            select.select([], [], [], max(0, deadline - board.host_ns()) / 1e9)
        assert board.advance()
        assert board.acknowledge() == 0x20
        write(board, 0x20, 0x20)
        assert not board.pending()


def test_reset_keeps_clock_and_console() -> None:
    board = HotBoard(BackendId.EMULATION)
    board.start_clock()
    write(board, THR, ord("a"))
    write(board, 0x3FF, 0x77)
    before = board.now()
    board.reset()
    assert board.now() >= before
    assert board.console_take() == b"a"
    assert read(board, 0x3FF) == 0 and read(board, 0x21) == 0xFF
