"""Keys: the layout, the PS/2 keyboard that sends them, and the controller that passes them on."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hot_board import read, set_up_pics, write
from hypothesis import given, settings
from hypothesis import strategies as st
from keyboard_model import Keyboard as Model
from keyboard_model import translated

from hvd.board.devices.keyboard import Keyboard
from hvd.board.hot import HotBoard, PortResult
from hvd.board.keys import KEYS, MOST_STROKE, Stroke, of_chord, of_text
from hvd.errors import HvdError
from hvd.trace.points import BackendId


class FakeMachine:
    def __init__(self) -> None:
        self.board = HotBoard(BackendId.EMULATION)
        self.resets = 0

    @property
    def level(self) -> bool:
        """Of IRQ 1."""
        return bool(self.board.save()["ioapic.lines"] >> 1 & 1)

    def reset_line(self, cause: str) -> None:
        self.resets += 1


class ModelLine:
    def __init__(self) -> None:
        self.level = False
        self.resets = 0

    def set_irq(self, irq: int, level: bool) -> None:
        assert irq == 1
        self.level = level

    def reset_line(self, cause: str) -> None:
        self.resets += 1


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def keyboard(machine: FakeMachine) -> Keyboard:
    return Keyboard(machine)  # type: ignore[arg-type]


def read_all(keyboard: Keyboard) -> bytes:
    got = bytearray()
    while keyboard.read_port(0x64, 1) & 1:
        got.append(keyboard.read_port(0x60, 1))
    return bytes(got)


def set_mode(keyboard: Keyboard, mode: int) -> None:
    keyboard.write_port(0x64, 1, 0x60)
    keyboard.write_port(0x60, 1, mode)


def command(keyboard: Keyboard, *values: int) -> bytes:
    got = b""
    for value in values:
        keyboard.write_port(0x60, 1, value)
        got += read_all(keyboard)
    return got


# ---- the layout


def test_the_main_block_has_the_codes_of_set_1_in_order() -> None:
    """The XT numbered its 83 keys row by row; that the translation of set 2 gives these numbers proves both tables."""
    rows = ("esc 1 2 3 4 5 6 7 8 9 0 - = backspace tab q w e r t y u i o p [ ] enter leftctrl a s d f g h j k l ; ' ` leftshift \\ z x c v "
            "b n m , . / rightshift kpasterisk leftalt space capslock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 numlock scrolllock kp7 kp8 kp9 "
            "kpminus kp4 kp5 kp6 kpplus kp1 kp2 kp3 kp0 kpdot")  # fmt: skip
    keys = rows.split()
    assert [translated(KEYS[key][0]) for key in keys] == [bytes((n,)) for n in range(1, len(keys) + 1)]
    assert [translated(KEYS[key][1]) for key in keys] == [bytes((n | 0x80,)) for n in range(1, len(keys) + 1)]


@pytest.mark.parametrize(
    ("key", "pressed", "released"),
    [
        ("f11", "57", "d7"),
        ("f12", "58", "d8"),
        ("102nd", "56", "d6"),
        ("up", "e048", "e0c8"),
        ("delete", "e053", "e0d3"),
        ("rightctrl", "e01d", "e09d"),
        ("kpenter", "e01c", "e09c"),
        ("leftmeta", "e05b", "e0db"),
        ("printscreen", "e02ae037", "e0b7e0aa"),
        ("pause", "e11d45e19dc5", ""),
    ],
)
def test_keys_that_the_xt_had_not(key: str, pressed: str, released: str) -> None:
    assert [translated(codes).hex() for codes in KEYS[key]] == [pressed, released]


def test_all_codes_differ() -> None:
    assert len({codes[0] for codes in KEYS.values()}) == len(KEYS)


def test_text() -> None:
    assert of_text("aB1! \n\t") == [
        ("a",), ("leftshift", "b"), ("1",), ("leftshift", "1"), ("space",), ("enter",), ("tab",),
    ]  # fmt: skip
    printable = "".join(map(chr, range(0x20, 0x7F)))
    assert len(of_text(printable)) == len(printable)


@pytest.mark.parametrize("text", ["ä", "€", "\0", "\x01", "x" * 70000])
def test_what_a_us_keyboard_does_not_have(text: str) -> None:
    with pytest.raises(HvdError) as caught:
        of_text(text)
    assert caught.value.reason == "FIELD_INVALID"


@pytest.mark.parametrize(
    ("chord", "stroke"),
    [
        ("enter", ("enter",)),
        ("ctrl-c", ("leftctrl", "c")),
        ("Ctrl-Alt-Delete", ("leftctrl", "leftalt", "delete")),
        ("ctrl-C", ("leftctrl", "c")),
        ("shift-a", ("leftshift", "a")),
        ("ctrl--", ("leftctrl", "-")),
        ("-", ("-",)),
        ("ctrl-?", ("leftctrl", "leftshift", "/")),
        ("altgr-q", ("rightalt", "q")),
        ("alt-f2", ("leftalt", "f2")),
        ("esc", ("esc",)),
    ],
)
def test_chords(chord: str, stroke: Stroke) -> None:
    assert of_chord(chord) == stroke


@pytest.mark.parametrize("chord", ["", "ctrl-", "ctrl-nope", "--", "a-b-c-d-e-f", "ctrl-pause-printscreen"])
def test_chords_that_are_none(chord: str) -> None:
    with pytest.raises(HvdError) as caught:
        of_chord(chord)
    assert caught.value.reason == "FIELD_INVALID"


@given(st.text(max_size=12))
def test_any_chord_is_refused_or_fits_the_keyboard(chord: str) -> None:
    try:
        stroke = of_chord(chord)
    except HvdError as error:
        assert error.reason == "FIELD_INVALID"
    else:
        assert sum(len(code) for key in stroke for code in KEYS[key]) <= MOST_STROKE


# ---- keyboard and controller


def test_typed_keys_arrive_translated_with_an_edge_for_each_byte(keyboard: Keyboard, machine: FakeMachine) -> None:
    set_up_pics(machine.board)
    assert keyboard.type(of_text("aB")) == 2
    got = bytearray()
    while machine.board.pending():
        assert machine.level and machine.board.acknowledge() == 0x21
        write(machine.board, 0x20, 0x20)
        got.append(keyboard.read_port(0x60, 1))
    assert got == bytes.fromhex("1e9e 2a30b0aa") and not machine.level


def test_untranslated_and_set_1(keyboard: Keyboard) -> None:
    set_mode(keyboard, 0x05)
    keyboard.type([("a",), ("up",)])
    assert read_all(keyboard) == bytes.fromhex("1cf01c e075e0f075")
    assert command(keyboard, 0xF0, 1) == b"\xfa\xfa"
    keyboard.type([("a",), ("up",)])
    assert read_all(keyboard) == bytes.fromhex("1e9e e048e0c8")
    assert command(keyboard, 0xF0, 0) == b"\xfa\xfa\x01"
    assert command(keyboard, 0xF0, 3) == b"\xfa\xfe"
    assert command(keyboard, 0xF6) == b"\xfa"  # defaults: set 2
    assert command(keyboard, 0xF0, 0) == b"\xfa\xfa\x02"


def test_identity(keyboard: Keyboard) -> None:
    assert command(keyboard, 0xF2) == b"\xfa\xab\x41"
    set_mode(keyboard, 0x05)
    assert command(keyboard, 0xF2) == b"\xfa\xab\x83"


def test_keys_wait_for_room_and_the_waiting_are_told(keyboard: Keyboard) -> None:
    told = []
    keyboard.on_room = lambda: told.append(1)
    strokes = of_text("abcdefgh")
    # Fifteen bytes and the one in the controller's buffer: five keys of three.
    assert keyboard.type(strokes) == 5
    assert keyboard.type(strokes[5:]) == 0
    assert not told
    keyboard.read_port(0x60, 1)
    assert told == [1]
    keyboard.read_port(0x60, 1)
    assert told == [1]  # nobody was refused since
    read_all(keyboard)
    assert keyboard.type(strokes[5:]) == 3
    assert read_all(keyboard) == bytes.fromhex("21a1 22a2 23a3")


def test_a_driver_that_flushes_sees_at_most_16_bytes(keyboard: Keyboard) -> None:
    set_mode(keyboard, 0x05)
    while keyboard.type([("up",)]):
        pass
    while keyboard.type([("a",)]):
        pass
    assert len(read_all(keyboard)) <= 16


def test_a_stroke_is_typed_as_a_whole_or_not_at_all(keyboard: Keyboard) -> None:
    assert keyboard.type([("a",)] * 4) == 4
    assert keyboard.type([of_chord("ctrl-alt-delete")]) == 0
    assert read_all(keyboard) == bytes.fromhex("1e9e") * 4


def test_a_keyboard_that_is_switched_off_takes_no_keys(keyboard: Keyboard) -> None:
    assert command(keyboard, 0xF5) == b"\xfa"
    assert keyboard.type([("a",)]) == 0
    assert command(keyboard, 0xF4) == b"\xfa"
    assert keyboard.type([("a",)]) == 1
    assert command(keyboard, 0xF4) == b"\x1e\xfa"  # one byte was in the controller; the rest is cleared
    assert read_all(keyboard) == b""


def test_a_held_clock_keeps_keys_in_the_keyboard(keyboard: Keyboard, machine: FakeMachine) -> None:
    keyboard.write_port(0x64, 1, 0xAD)
    keyboard.type([("a",)])
    assert not machine.level and read_all(keyboard) == b""
    keyboard.write_port(0x64, 1, 0x20)
    assert read_all(keyboard) == b"\x75"  # the controller's own answers still come
    keyboard.write_port(0x64, 1, 0xAE)
    assert machine.level and read_all(keyboard) == b"\x1e\x9e"


def test_answers_come_before_keys(keyboard: Keyboard) -> None:
    keyboard.type([("a",)])
    keyboard.write_port(0x60, 1, 0xED)
    assert read_all(keyboard) == b"\x1e\xfa\x9e"


def test_send_again(keyboard: Keyboard) -> None:
    assert command(keyboard, 0xEE, 0xFE) == b"\xee\xee"


def test_reset_of_the_keyboard(keyboard: Keyboard) -> None:
    command(keyboard, 0xF5)
    assert command(keyboard, 0xFF) == b"\xfa\xaa"
    assert keyboard.type([("a",)]) == 1


access = st.tuples(st.sampled_from([0x60, 0x64, 0x92]), st.integers(-1, 255)) | st.lists(
    st.sampled_from(sorted(KEYS)).map(lambda key: (key,)), min_size=1, max_size=4
)


@given(st.lists(access, max_size=120))
def test_nonsense_and_typing_and_a_copy_that_goes_on_the_same(asked: list[object]) -> None:
    one, other = Keyboard(FakeMachine()), Keyboard(FakeMachine())  # type: ignore[arg-type]
    half = len(asked) // 2
    for at, entry in enumerate(asked):
        if at == half:
            other.restore(one.save())
        results = []
        for keyboard in (one, other) if at >= half else (one,):
            if isinstance(entry, list):
                results.append(keyboard.type(entry))
            elif entry[1] < 0:  # type: ignore[index]
                results.append(keyboard.read_port(entry[0], 1))  # type: ignore[index]
            else:
                keyboard.write_port(entry[0], 1, entry[1])  # type: ignore[index]
        assert len(set(results)) <= 1
    if asked:
        assert one.save() == other.save()
    assert len(read_all(one)) <= 48  # answers of controller and keyboard, keys, and one in the buffer


states = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.integers(0, 255), "lines": st.integers(0, 255), "ram": st.binary(min_size=32, max_size=32).map(bytes.hex),
        "last_was_command": st.booleans(), "awaits": st.sampled_from([None, 0x60, 0x75, 0xD1, 0xD2, 0xD4]), "buffer": st.none() | st.integers(0, 255),
        "answers": st.binary(max_size=16).map(bytes.hex), "released": st.sampled_from([0, 0x80]),
        "keyboard": st.fixed_dictionaries(
            {},
            optional={
                "answers": st.binary(max_size=16).map(bytes.hex), "keys": st.binary(max_size=15).map(bytes.hex), "last": st.integers(0, 255),
                "leds": st.integers(0, 7), "awaits": st.sampled_from([None, 0xED, 0xF0, 0xF3]), "set": st.integers(1, 2), "scanning": st.booleans(),
            },
        ),
    },
)  # fmt: skip
of_controller = [0x20, 0x60, 0x61, 0xA9, 0xAA, 0xAB, 0xAD, 0xAE, 0xC0, 0xD0, 0xD1, 0xD2, 0xD4, 0xDD, 0xDF]
of_keyboard = [0xED, 0xEE, 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFE, 0xFF]
meant = st.sampled_from(of_controller + of_keyboard)
compared = access | st.tuples(st.sampled_from([0x60, 0x64]), meant | st.just(-1) | st.integers(0, 3)) | st.just("reset")


@settings(max_examples=300, deadline=None)
@given(states, st.lists(compared, max_size=150))
def test_c_does_what_the_model_does(state: dict[str, Any], asked: list[Any]) -> None:
    """Out of any state, accesses by the board's ports where C takes them, otherwise by the device; the state is the same after each step, and so are
    interrupt, answers, and who is told of room."""
    line, machine = ModelLine(), FakeMachine()
    model, keyboard = Model(line), Keyboard(machine)  # type: ignore[arg-type]
    for ports in keyboard.ports:
        machine.board.claim(ports)
    rooms: list[str] = []
    model.on_room = lambda: rooms.append("model")
    keyboard.on_room = lambda: rooms.append("c")
    model.restore(state)
    keyboard.restore(state)
    for entry in asked:
        if entry == "reset":
            model.reset()
            keyboard.reset()
        elif isinstance(entry, list):
            assert model.type(entry) == keyboard.type(entry)
        elif entry[1] < 0:
            result, value = machine.board.port_in(entry[0], 1)
            if result is PortResult.LEAVE:
                value = keyboard.read_port(entry[0], 1)
            assert value == model.read_port(entry[0], 1)
        else:
            model.write_port(entry[0], 1, entry[1])
            if machine.board.port_out(entry[0], 1, entry[1]) is PortResult.LEAVE:
                keyboard.write_port(entry[0], 1, entry[1])
        assert keyboard.save() == model.save()
        assert machine.level == line.level and machine.resets == line.resets
        assert rooms.count("model") == rooms.count("c")
    machine.board.close()


def test_accesses_need_no_python_but_for_the_reset_line_and_room(keyboard: Keyboard, machine: FakeMachine) -> None:
    for ports in keyboard.ports:
        machine.board.claim(ports)
    write(machine.board, 0x64, 0xAA)
    assert read(machine.board, 0x60) == 0x55 and read(machine.board, 0x64) == 0x1C
    for port, value in ((0x64, 0xFE), (0x92, 1)):
        assert machine.board.port_out(port, 1, value) is PortResult.LEAVE
    write(machine.board, 0x64, 0xD1)
    assert machine.board.port_out(0x60, 1, 0xDE) is PortResult.LEAVE and machine.resets == 0
    write(machine.board, 0x64, 0xAA)
    assert keyboard.type([("a",)] * 9) < 9
    assert machine.board.port_in(0x60, 1)[0] is PortResult.LEAVE, "somebody waits for room"
    assert machine.board.port_in(0x60, 2)[0] is PortResult.LEAVE, "it reaches beyond the port"
    keyboard.read_port(0x60, 1)
    assert read(machine.board, 0x60) == 0x1E


json_values = st.none() | st.booleans() | st.integers(-2, 300) | st.text("0f", max_size=70) | st.just([]) | st.just({})


@given(st.data())
def test_any_state_is_taken_or_refused_and_hurts_nothing(data: st.DataObject) -> None:
    keyboard = Keyboard(FakeMachine())  # type: ignore[arg-type]
    state = keyboard.save()
    inner = state["keyboard"]
    for place in (state, inner):
        place.update(data.draw(st.dictionaries(st.sampled_from([*place, "other"]), json_values, max_size=2)))
        for name in data.draw(st.sets(st.sampled_from(sorted(place)), max_size=2)):
            del place[name]
    with contextlib.suppress(ValueError, TypeError):
        keyboard.restore(state)
        assert "other" not in state and "other" not in state.get("keyboard", {})
    keyboard.type([("a",)])
    for value in (0x20, 0xAA):
        keyboard.write_port(0x64, 1, value)
    assert all(0 <= value <= 0xFF for value in read_all(keyboard))
