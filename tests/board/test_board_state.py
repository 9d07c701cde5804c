"""The C board's state in a snapshot: nothing is forgotten, an older board's is read, nothing of a file is believed."""

from __future__ import annotations

import ctypes
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.hot import HotBoard
from hvd.board.libhv import _Field, fields, library
from hvd.trace.points import BackendId

PORTS = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, *range(0x3F8, 0x400)]


def used_board(seed: int) -> HotBoard:
    """One that a guest has done this and that to."""
    numbers = random.Random(seed)
    board = HotBoard(BackendId.EMULATION)
    board.start_clock()
    for _ in range(3000):
        port = numbers.choice(PORTS)
        if numbers.random() < 0.6:
            board.port_out(port, 1, numbers.randrange(256))
        else:
            board.port_in(port, 1)
        if numbers.random() < 0.05:
            board.set_irq(numbers.randrange(16), numbers.random() < 0.5)
            board.advance()
        if numbers.random() < 0.02:
            board.acknowledge()
            board.console_put(bytes([numbers.randrange(256)]))
            board.console_take()
    board.stop_clock()
    return board


def raw(board: HotBoard) -> dict[str, bytes]:
    """The bytes of the devices, paddings included, by device."""
    lib = library()
    rows: list[_Field] = [lib.hv_board_field(index).contents for index in range(lib.hv_board_field_count())]
    found = {}
    for device in {row.name.split(b".")[0] for row in rows} - {b"console"}:
        own = [row for row in rows if row.name.startswith(device + b".")]
        start, end = min(row.offset for row in own), max(row.offset + row.width * row.count for row in own)
        found[device.decode()] = ctypes.string_at(board.address + start, end - start)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_forgotten(seed: int) -> None:
    """Whatever lies between a device's first and last field is the same after a restore."""
    first, second = used_board(seed), HotBoard(BackendId.EMULATION)
    state = json.loads(json.dumps(first.save()))
    second.restore(state)
    assert second.save() == state
    assert raw(second) == raw(first)
    assert second.now() == first.now() == state["clock_ns"]


@pytest.mark.parametrize("seed", range(3))
def test_it_goes_on_in_the_same_way(seed: int) -> None:
    """The same accesses have the same answers; time stands, so that nothing else tells them apart."""
    first, second = used_board(seed), HotBoard(BackendId.EMULATION)
    second.restore(first.save())
    numbers = random.Random(seed + 100)
    for _ in range(2000):
        port, value = numbers.choice(PORTS), numbers.randrange(256)
        if numbers.random() < 0.5:
            assert first.port_in(port, 1) == second.port_in(port, 1), hex(port)
        else:
            assert first.port_out(port, 1, value) == second.port_out(port, 1, value)
        assert first.advance() == second.advance()
        assert first.peek() == second.peek()
        assert first.console_take() == second.console_take()


def test_an_older_board_lacks_fields() -> None:
    plain = HotBoard(BackendId.EMULATION).save()
    state = used_board(1).save()
    for name in [name for name in state if name.startswith(("lapic", "ioapic", "uart.rx"))]:
        del state[name]
    board = HotBoard(BackendId.EMULATION)
    board.restore(state)
    restored = board.save()
    assert all(restored[name] == plain[name] for name in plain if name not in state)
    HotBoard(BackendId.EMULATION).restore({})


def test_a_newer_board_has_more() -> None:
    with pytest.raises(ValueError, match="hpet"):
        HotBoard(BackendId.EMULATION).restore({"hpet.counter": 3})


FORGED: list[Any] = [-1, 1 << 64, 1 << 200, 1.5, "1", None, True, [], [1], {}, [[]], "zz"]


@pytest.mark.parametrize("name", [field.name for field in fields()])
def test_limits(name: str) -> None:
    field = next(field for field in fields() if field.name == name)

    def of(value: Any) -> Any:
        return [value] * field.count if field.count > 1 else value

    for value in (field.least, field.most):
        board = HotBoard(BackendId.EMULATION)
        board.restore({name: of(value)})
    for value in ([field.most + 1] if field.most < 1 << 64 else []) + ([field.least - 1] if field.least else []) + FORGED:
        with pytest.raises((ValueError, TypeError)):
            HotBoard(BackendId.EMULATION).restore({name: of(value)})


names = st.sampled_from([*(field.name for field in fields()), "clock_ns", "console_in"])
values = st.integers(-1, (1 << 64) + 1) | st.integers(0, 20) | st.lists(st.integers(0, 300), max_size=40) | st.text(max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, values))
def test_any_state_is_taken_or_refused(state: dict[str, Any]) -> None:
    board = HotBoard(BackendId.EMULATION)
    try:
        board.restore(state)
    except (ValueError, TypeError):
        return
    board.start_clock()
    for port in PORTS:
        board.port_in(port, 1)
    board.advance()
    board.deadline()
