"""virtio-console: one port, which shares the guest's console with COM1."""

from __future__ import annotations

import pytest
from virtio_driver import BUFFERS, WRITE, Driver, FakeMachine, bus_of

from hvd.board.virtio.console import Console


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def driver(machine: FakeMachine) -> Driver:
    return Driver(machine, bus_of(machine, Console(machine))).start()  # type: ignore[arg-type]


def say(driver: Driver, text: bytes) -> None:
    driver.memory.write(BUFFERS, text)
    driver.queues[1].add([(BUFFERS, len(text) // 2, 0), (BUFFERS + len(text) // 2, len(text) - len(text) // 2, 0)])
    driver.notify(1)
    assert len(driver.queues[1].done()) == 1


def kick(machine: FakeMachine) -> None:
    for listener in machine.kicked:
        listener()


def test_output_joins_that_of_com1(driver: Driver, machine: FakeMachine) -> None:
    machine.board.port_out(0x3F8, 1, ord("a"))
    say(driver, b"hello")
    machine.board.port_out(0x3F8, 1, ord("z"))
    assert machine.board.console_take() == b"ahelloz"


def test_what_is_typed_goes_to_the_one_that_wrote_last(driver: Driver, machine: FakeMachine) -> None:
    board, queue = machine.board, driver.queues[0]
    board.port_out(0x3F9, 1, 1)  # COM1's driver is there, too: it wants interrupts
    for n in range(2):
        queue.add([(BUFFERS + 0x1000 * (1 + n), 8, WRITE)])
    driver.notify(0)
    board.console_put(b"x")
    board.advance()
    kick(machine)
    assert queue.done() == [] and board.port_in(0x3F8, 1)[1] == ord("x")
    say(driver, b"$ ")
    driver.isr()
    board.console_put(b"ls -l /tmp\n")
    kick(machine)
    assert queue.done() == [(0, 8), (1, 3)] and driver.isr() == 1
    assert driver.memory.read(BUFFERS + 0x1000, 8) + driver.memory.read(BUFFERS + 0x2000, 3) == b"ls -l /tmp\n"
    board.console_put(b"more")
    kick(machine)
    assert queue.done() == [], "no room: it waits for the driver's next buffer"
    queue.add([(BUFFERS, 64, WRITE)])
    driver.notify(0)
    assert [written for _, written in queue.done()] == [4]
    board.port_out(0x3F8, 1, ord("!"))
    board.console_put(b"y")
    board.advance()
    assert board.console_waiting() == 0 and board.port_in(0x3F8, 1)[1] == ord("y")


def test_configuration_and_emergency_write(driver: Driver, machine: FakeMachine) -> None:
    assert driver.config(0, 2) == 80 and driver.config(2, 2) == 24
    kick(machine)
    assert driver.isr() == 0
    machine.console_size = (50, 132)
    kick(machine)
    assert driver.isr() == 2 and driver.config(0, 2) == 132 and driver.config(2, 2) == 50
    driver.bus.write_mmio(driver.places[4] + 8, 4, ord("!"))
    assert machine.board.console_take() == b"!"


def test_nobody_listens(machine: FakeMachine) -> None:
    bus_of(machine, Console(machine))  # type: ignore[arg-type]
    machine.board.port_out(0x3F9, 1, 1)
    machine.board.console_put(b"x")
    kick(machine)
    machine.board.advance()
    assert machine.board.port_in(0x3F8, 1)[1] == ord("x")
