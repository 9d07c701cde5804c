"""The VGA text screen against the manual, and with nonsense."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hot_board import read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd.board.devices.vga import Vga
from hvd.board.hot import HotBoard, PortResult
from hvd.board.memory import GuestMemory
from hvd.trace.points import BackendId

CRTC, STATUS, GRAPHICS, SEQUENCER, ATTRIBUTE = 0x3D4, 0x3DA, 0x3CE, 0x3C4, 0x3C0


class FakeMachine:
    def __init__(self, memory_bytes: int = 1 << 20) -> None:
        self.memory = GuestMemory(memory_bytes)
        self.board = HotBoard(BackendId.EMULATION)

    def close(self) -> None:
        self.memory.close()
        self.board.close()


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    one = FakeMachine()
    yield one
    one.close()


@pytest.fixture
def vga(machine: FakeMachine) -> Vga:
    return Vga(machine)  # type: ignore[arg-type]


def put(vga: Vga, port: int, index: int, value: int) -> None:
    vga.write_port(port, 1, index)
    vga.write_port(port + 1, 1, value)


def get(vga: Vga, port: int, index: int) -> int:
    vga.write_port(port, 1, index)
    return vga.read_port(port + 1, 1)


def write_text(machine: FakeMachine, address: int, text: str, attribute: int = 7) -> None:
    machine.memory.write(address, b"".join(bytes((ord(c), attribute)) for c in text))


def row(image: Any, number: int) -> str:
    return image.cells[2 * number * image.columns : 2 * (number + 1) * image.columns : 2].decode("latin-1").rstrip("\0")


def test_after_power_on_it_is_mode_3(vga: Vga, machine: FakeMachine) -> None:
    write_text(machine, 0xB8000, "hello")
    write_text(machine, 0xB8000 + 2 * 80 * 24, "last")
    image = vga.screen()
    assert (image.columns, image.rows, image.cursor, image.note) == (80, 25, (0, 0), "")
    assert len(image.cells) == 4000
    assert row(image, 0) == "hello" and row(image, 24) == "last"
    colors = [tuple(image.palette[3 * n : 3 * n + 3]) for n in range(16)]
    assert colors[:8] == [(0, 0, 0), (0, 0, 170), (0, 170, 0), (0, 170, 170), (170, 0, 0), (170, 0, 170), (170, 85, 0), (170, 170, 170)]
    assert colors[8] == (85, 85, 85) and colors[14] == (255, 255, 85) and colors[15] == (255, 255, 255)


def test_cursor_and_start_address(vga: Vga, machine: FakeMachine) -> None:
    write_text(machine, 0xB8000 + 2 * 80 * 3, "fourth")
    put(vga, CRTC, 0x0C, 0)
    put(vga, CRTC, 0x0D, 240)  # shown from the fourth row on
    put(vga, CRTC, 0x0E, (240 + 80 * 2 + 5) >> 8)
    put(vga, CRTC, 0x0F, (240 + 80 * 2 + 5) & 0xFF)
    image = vga.screen()
    assert row(image, 0) == "fourth" and image.cursor == (2, 5)
    put(vga, CRTC, 0x0A, 0x20)
    assert vga.screen().cursor is None
    put(vga, CRTC, 0x0A, 15)  # begins below its end
    assert vga.screen().cursor is None
    put(vga, CRTC, 0x0A, 0)
    put(vga, CRTC, 0x0E, 0)
    put(vga, CRTC, 0x0F, 0)  # above what is shown
    assert vga.screen().cursor is None


def test_the_window_wraps_where_it_ends(vga: Vga, machine: FakeMachine) -> None:
    write_text(machine, 0xB8000, "A")
    write_text(machine, 0xBFFFE, "Z")
    put(vga, CRTC, 0x0C, 0x3F)
    put(vga, CRTC, 0x0D, 0xFF)
    assert row(vga.screen(), 0) == "ZA"


def test_fifty_rows_and_forty_columns(vga: Vga) -> None:
    put(vga, CRTC, 9, 0x47)  # characters of 8 lines
    assert (vga.screen().columns, vga.screen().rows) == (80, 50)
    put(vga, CRTC, 0x11, 0x0E)  # unprotect
    put(vga, CRTC, 1, 39)
    assert (vga.screen().columns, vga.screen().rows) == (40, 50)


def test_registers_0_to_7_can_be_protected(vga: Vga) -> None:
    assert get(vga, CRTC, 0x11) == 0x8E
    put(vga, CRTC, 1, 10)
    assert get(vga, CRTC, 1) == 79
    put(vga, CRTC, 7, 0)
    assert get(vga, CRTC, 7) == 0x0F  # but for bit 4
    put(vga, CRTC, 0x11, 0x0E)
    put(vga, CRTC, 1, 10)
    assert get(vga, CRTC, 1) == 10


def test_the_attribute_controllers_flip_flop(vga: Vga) -> None:
    vga.read_port(STATUS, 1)
    vga.write_port(ATTRIBUTE, 1, 0x21)
    vga.write_port(ATTRIBUTE, 1, 0x3F)
    assert vga.read_port(ATTRIBUTE + 1, 1) == 0x3F and vga.read_port(ATTRIBUTE, 1) == 0x21
    vga.write_port(ATTRIBUTE, 1, 0x22)  # an index again
    vga.read_port(STATUS, 1)
    vga.write_port(ATTRIBUTE, 1, 0x20)  # and again: the read of the status came between
    assert vga.read_port(ATTRIBUTE + 1, 1) == 0
    assert tuple(vga.screen().palette[3:6]) == (255, 255, 255)  # 1 is what 0x3F is
    vga.write_port(ATTRIBUTE, 1, 0)
    vga.write_port(ATTRIBUTE, 1, 0x00)
    assert "off" in vga.screen().note and vga.screen().rows == 25


def test_the_palette(vga: Vga) -> None:
    vga.write_port(0x3C8, 1, 7)
    for value in (0x3F, 0x00, 0xFF, 1, 2, 3):
        vga.write_port(0x3C9, 1, value)
    assert vga.read_port(0x3C7, 1) == 0 and vga.read_port(0x3C8, 1) == 9
    vga.write_port(0x3C7, 1, 7)
    assert [vga.read_port(0x3C9, 1) for _ in range(6)] == [0x3F, 0, 0x3F, 1, 2, 3]
    assert vga.read_port(0x3C7, 1) == 3
    assert tuple(vga.screen().palette[21:24]) == (255, 0, 255)
    vga.write_port(0x3C6, 1, 0)  # the mask: all is colour 0
    assert tuple(vga.screen().palette[21:24]) == (0, 0, 0)


def test_the_retrace_comes_and_goes(vga: Vga) -> None:
    assert {vga.read_port(STATUS, 1) & 8 for _ in range(3)} == {0, 8}


def test_the_crtc_is_where_the_misc_register_says(vga: Vga) -> None:
    assert vga.read_port(0x3CC, 1) == 0x67
    assert get(vga, 0x3B4, 1) == 0xFF
    vga.write_port(0x3C2, 1, 0x66)
    assert get(vga, 0x3B4, 1) == 79 and get(vga, CRTC, 1) == 0xFF and vga.read_port(STATUS, 1) == 0xFF


@pytest.mark.parametrize(
    ("registers", "size"),
    [
        ([(GRAPHICS, 6, 0x05), (CRTC, 9, 0x41)], "640x200"),
        ([(GRAPHICS, 6, 0x05), (CRTC, 9, 0x40)], "640x400"),
    ],
)
def test_graphics_modes_are_named_not_shown(vga: Vga, registers: list[tuple[int, int, int]], size: str) -> None:
    for register in registers:
        put(vga, *register)
    image = vga.screen()
    assert (image.columns, image.rows, image.cells) == (0, 0, b"")
    assert "graphics mode" in image.note and size in image.note


def test_a_guest_without_memory_there() -> None:
    machine = FakeMachine(64 << 10)
    image = Vga(machine).screen()  # type: ignore[arg-type]
    assert image.rows == 0 and "no memory" in image.note
    machine.close()


def test_the_board_in_c_answers_and_splits_wide_accesses(vga: Vga, machine: FakeMachine) -> None:
    """As a driver's OUTW of an index with its data; what reaches beyond the ports is not for C."""
    write(machine.board, CRTC, 0x340E, size=2)
    write(machine.board, CRTC + 1, 0x12)
    assert get(vga, CRTC, 0x0E) == 0x12 and read(machine.board, CRTC, 2) == 0x120E
    assert read(machine.board, 0x3C6, 4) == 0x0000_00FF
    machine.board.claim(range(CRTC, CRTC + 2))
    assert machine.board.port_in(CRTC + 1, 2)[0] is PortResult.LEAVE


ports = st.sampled_from([0x3B4, 0x3B5, 0x3BA, *range(0x3C0, 0x3D0), 0x3D4, 0x3D5, 0x3DA])
accesses = st.lists(st.tuples(ports, st.integers(-1, 255)), max_size=300)


@settings(max_examples=200, deadline=None)
@given(accesses)
def test_whatever_is_written_every_register_reads_and_the_screen_is_drawn(asked: list[tuple[int, int]]) -> None:
    """-1 reads. A copy made by save() and restore() shows the same and goes on the same."""
    machine, second = FakeMachine(), FakeMachine()
    one, other = Vga(machine), Vga(second)  # type: ignore[arg-type]
    half = len(asked) // 2
    for at, (port, value) in enumerate(asked):
        if at == half:
            other.restore(one.save())
        for vga in (one, other) if at >= half else (one,):
            if value < 0:
                assert 0 <= vga.read_port(port, 1) <= 0xFF
            else:
                vga.write_port(port, 1, value)
    if asked:
        assert one.save() == other.save() and one.screen() == other.screen()
    image = one.screen()
    assert len(image.cells) == 2 * image.columns * image.rows <= 2 * 256 * 128
    assert len(image.palette) == (48 if image.rows else 0)
    assert image.rows or image.note
    machine.close()
    second.close()


json_values = st.none() | st.booleans() | st.integers(-2, 300) | st.text("0f", max_size=70) | st.just([]) | st.just({})


@given(st.data())
def test_any_state_is_taken_or_refused_and_hurts_nothing(data: st.DataObject) -> None:
    machine = FakeMachine()
    vga = Vga(machine)  # type: ignore[arg-type]
    state = vga.save()
    changes = st.dictionaries(st.sampled_from([*state, "other"]), json_values, max_size=3)
    left = data.draw(st.sets(st.sampled_from(sorted(state)), max_size=3))
    state = {name: value for name, value in (state | data.draw(changes)).items() if name not in left}
    with contextlib.suppress(ValueError, TypeError):
        vga.restore(state)
        assert "other" not in state
    for port in range(0x3C0, 0x3E0):
        assert 0 <= vga.read_port(port, 1) <= 0xFF
    vga.write_port(0x3C9, 1, 0xFF)
    assert vga.screen().rows or vga.screen().note
    machine.close()


def test_a_state_that_lacks_fields_is_that_of_a_reset(vga: Vga) -> None:
    before = vga.save()
    put(vga, CRTC, 0x0E, 7)
    state = vga.save()
    del state["crtc"]
    vga.restore(state)
    assert vga.save() == before | {"crtc_index": 0x0E, "crtc": vga.save()["crtc"]}
