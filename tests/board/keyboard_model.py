"""A model of the keyboard and its controller, in Python, for comparing: what hvd/board/native/keyboard.c has to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Protocol

from hvd.board import saved
from hvd.board.keys import BREAK, KEYS, Stroke

# What the 8042 makes of the bytes 00-7F of a keyboard (ibidem, "Translation"); of the others it changes 83 and 84 only.
TRANSLATION: Final = (
    bytes.fromhex(
        "ff43413f3d3b3c58 644442403e0f2959 65382a701d10025a 66712c1f1e11035b"
        "672e2d201205045c 68392f211413065d 693130232215075e 6a7232241608095f"
        "6b332517180b0a60 6c34352627190c61 6d7328741a0d626e 3a361c1b752b6376"
        "55567778797a0e7b 7c4f7d4b477e7f6f 5253504c4d480145 574e514a37494654"
    )
    + bytes((0x80, 0x81, 0x82, 0x41, 0x54))
    + bytes(range(0x85, 0x100))
)


def translated(codes: bytes) -> bytes:
    """What the controller's translation makes of a keyboard's bytes."""
    result = bytearray()
    released = 0
    for code in codes:
        if code == BREAK:
            released = 0x80
        else:
            result.append(TRANSLATION[code] | released)
            released = 0
    return bytes(result)


ACK, RESEND, PASSED, ECHO = 0xFA, 0xFE, 0xAA, 0xEE
IDENTITY: Final = b"\xab\x83"
SET_LEDS, SELECT_SET, IDENTIFY, SET_RATE, ENABLE, DISABLE, DEFAULTS, SEND_AGAIN, RESET = (
    0xED, 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFE, 0xFF,
)  # fmt: skip
WITH_ARGUMENT: Final = frozenset({SET_LEDS, SELECT_SET, SET_RATE})
# Bytes of keys that wait for the controller. With the one in the controller's own buffer they are the 16 that drivers
# expect at most of a keyboard that somebody types on while they look for it (Linux, I8042_BUFFER_SIZE).
BUFFER_BYTES: Final = 15
ANSWER_BYTES: Final = 16


class Ps2Keyboard:
    """Bytes in by command(), bytes out by take(); keys in by press()."""

    def __init__(self) -> None:
        self._answers: deque[int] = deque(maxlen=ANSWER_BYTES)
        self._keys: deque[int] = deque()
        self._last = 0  # what was sent last, for SEND_AGAIN
        self.leds = 0
        self.power_on()

    def power_on(self) -> None:
        """Tested and scanning; set 2."""
        self._answers.clear()
        self._awaits: int | None = None  # the command whose argument comes next
        self._set_defaults()
        self.leds = 0
        self._scanning = True

    def _set_defaults(self) -> None:
        self._keys.clear()
        self._set = 2

    @property
    def has_output(self) -> bool:
        return bool(self._answers or self._keys)

    def take(self) -> int:
        """The next byte, answers before keys; there is one (has_output)."""
        self._last = self._answers.popleft() if self._answers else self._keys.popleft()
        return self._last

    def press(self, stroke: Stroke) -> bool:
        """Press the keys and release them in the opposite order. False = nothing of it: the buffer has no room for all
        of its codes, or the keyboard does not scan (after DISABLE). Names are those of hvd.board.keys.KEYS."""
        codes = b"".join(KEYS[key][0] for key in stroke) + b"".join(KEYS[key][1] for key in reversed(stroke))
        if self._set == 1:
            codes = translated(codes)
        if not self._scanning or len(self._keys) + len(codes) > BUFFER_BYTES:
            return False
        self._keys.extend(codes)
        return True

    def command(self, value: int) -> None:
        """A byte from the system."""
        awaits, self._awaits = self._awaits, None
        if awaits is not None and value < SET_LEDS:
            self._argument(awaits, value)
        elif value in WITH_ARGUMENT:
            self._awaits = value
            self._answers.append(ACK)
        else:
            self._simple(value)

    def _simple(self, command: int) -> None:
        answer = b"\xfa"
        if command == ECHO:
            answer = b"\xee"
        elif command == SEND_AGAIN:
            answer = bytes((self._last,))
        elif command == IDENTIFY:
            answer += IDENTITY
        elif command == RESET:
            self.power_on()
            answer += bytes((PASSED,))
        elif command in (ENABLE, DISABLE, DEFAULTS):
            if command == ENABLE:
                self._keys.clear()
            else:
                self._set_defaults()
            self._scanning = command == ENABLE or (command == DEFAULTS and self._scanning)
        else:
            answer = b"\xfe"
        self._answers.extend(answer)

    def _argument(self, command: int, value: int) -> None:
        if command == SELECT_SET and value not in (0, 1, 2):
            self._answers.append(RESEND)
            return
        self._answers.append(ACK)
        if command == SET_LEDS:
            self.leds = value & 7
        elif command == SELECT_SET and value == 0:
            self._answers.append(self._set)
        elif command == SELECT_SET:
            self._keys.clear()
            self._set = value

    # ---- snapshots

    def save(self) -> dict[str, Any]:
        return {
            "answers": bytes(self._answers).hex(),
            "keys": bytes(self._keys).hex(),
            "last": self._last,
            "leds": self.leds,
            "awaits": self._awaits,
            "set": self._set,
            "scanning": self._scanning,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As a device's."""
        saved.only(state, frozenset(self.save()), "keyboard")
        self._answers = deque(saved.data(state, "answers", b"", ANSWER_BYTES), maxlen=ANSWER_BYTES)
        self._keys = deque(saved.data(state, "keys", b"", BUFFER_BYTES))
        self._last = saved.number(state, "last", 0xFF)
        self.leds = saved.number(state, "leds", 7)
        awaits = saved.optional(state, "awaits", 0xFF)
        self._awaits = awaits if awaits in WITH_ARGUMENT else None
        self._set = saved.number(state, "set", 2, 2, least=1)
        self._scanning = saved.flag(state, "scanning", True)


class Line(Protocol):
    def set_irq(self, irq: int, level: bool) -> None: ...

    def reset_line(self, cause: str) -> None: ...


DATA, COMMAND, CONTROL_A = 0x60, 0x64, 0x92
IRQ = 1

STATUS_OUTPUT_FULL, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
MODE_INTERRUPT, MODE_SYSTEM, MODE_DISABLED, MODE_NO_AUX, MODE_TRANSLATE = 0x01, 0x04, 0x10, 0x20, 0x40
LINE_NOT_RESET, LINE_A20 = 0x01, 0x02
ANSWER_BYTES = 16


class Keyboard:
    """Controller and keyboard."""

    name: ClassVar[str] = "keyboard"
    widest: ClassVar[int] = 1

    def __init__(self, machine: Line) -> None:
        self._machine = machine
        self._keyboard = Ps2Keyboard()
        # Called in the vcpu thread when a stroke that type() refused may have room now.
        self.on_room: Callable[[], None] = lambda: None
        self._refused = False
        self.reset()

    @property
    def ports(self) -> Sequence[range]:
        return (range(DATA, DATA + 1), range(COMMAND, COMMAND + 1), range(CONTROL_A, CONTROL_A + 1))

    def reset(self) -> None:
        # As a BIOS leaves it: tested, enabled, translating.
        self._mode = MODE_INTERRUPT | MODE_SYSTEM | MODE_NO_AUX | MODE_TRANSLATE
        self._lines = LINE_NOT_RESET | LINE_A20
        self._ram = bytearray(32)
        self._last_was_command = False
        self._awaits: int | None = None  # the command whose data byte comes next
        self._buffer: int | None = None  # the output buffer, port 0x60
        self._answers: deque[int] = deque(maxlen=ANSWER_BYTES)  # the controller's own that wait for it
        self._released = 0  # 0x80 when the translation has swallowed a break code
        self._keyboard.power_on()
        self._fill()
        self._room()

    def read_port(self, port: int, size: int) -> int:
        if port == COMMAND:
            return self._status()
        if port == CONTROL_A:
            return self._lines & LINE_A20
        if self._buffer is None:
            return 0
        value, self._buffer = self._buffer, None
        # Down and, with more to come, up again: the interrupt controller sees an edge for every byte.
        self._machine.set_irq(IRQ, False)
        self._fill()
        self._room()
        return value

    def write_port(self, port: int, size: int, value: int) -> None:
        if port == CONTROL_A:
            self._set_lines((self._lines & ~LINE_A20) | (value & LINE_A20))
            if value & 1:
                self._machine.reset_line("fast reset, port 0x92")
            return
        self._last_was_command = port == COMMAND
        if port == COMMAND:
            self._command(value)
        elif self._awaits is not None:
            self._argument(value)
        else:
            # Talking to the keyboard lets its clock run again.
            self._mode &= ~MODE_DISABLED
            self._keyboard.command(value)
        self._fill()
        self._room()

    def type(self, strokes: Sequence[Stroke]) -> int:
        """Somebody types: so many strokes, from the first on, were taken; the others have no room yet (on_room)."""
        for taken, stroke in enumerate(strokes):
            if not self._keyboard.press(stroke):
                self._refused = True
                return taken
            self._fill()
        return len(strokes)

    def _room(self) -> None:
        if self._refused:
            self._refused = False
            self.on_room()

    # ---- controller

    def _status(self) -> int:
        status = STATUS_UNLOCKED | (self._mode & MODE_SYSTEM)
        status |= STATUS_OUTPUT_FULL if self._buffer is not None else 0
        return status | (STATUS_COMMAND if self._last_was_command else 0)

    def _command(self, command: int) -> None:
        self._awaits = None
        if 0x20 <= command < 0x40:
            self._answers.append(self._mode if command == 0x20 else self._ram[command & 31])
        elif 0x60 <= command < 0x80 or command in (0xD1, 0xD2, 0xD3, 0xD4):
            self._awaits = command
        elif command == 0xAA:  # self test
            self._mode |= MODE_SYSTEM
            self._answers.append(0x55)
        elif command == 0xA9:  # test of the second port's lines: its clock is stuck low
            self._answers.append(1)
        elif command == 0xAB:  # test of the keyboard's lines
            self._answers.append(0)
        elif command == 0xAD:
            self._mode |= MODE_DISABLED
        elif command == 0xAE:
            self._mode &= ~MODE_DISABLED
        elif command == 0xC0:  # input port: keyboard not locked
            self._answers.append(0x80)
        elif command == 0xD0:
            self._answers.append(self._lines)
        elif command in (0xDD, 0xDF):
            self._set_lines((self._lines & ~LINE_A20) | (command & LINE_A20))
        elif command >= 0xF0 and not command & LINE_NOT_RESET:  # pulse lines low
            self._machine.reset_line("keyboard controller")
        # 0xA7 and 0xA8 switch the second port, which this controller has not.

    def _argument(self, value: int) -> None:
        command, self._awaits = self._awaits, None
        if command == 0x60:
            self._mode = value | MODE_NO_AUX
        elif command == 0xD1:
            self._set_lines(value)
        elif command in (0xD2, 0xD3):
            # 0xD3 should come back as the second port's. That it comes back as the keyboard's, and that 0xA9 fails, tells
            # a driver at once that there is no second port; without any answer Linux spins for half a second twice
            # (drivers/input/serio/i8042.c, i8042_check_aux).
            self._answers.append(value)
        elif command is not None and command < 0x80:
            self._ram[command & 31] = value
        # 0xD4 addresses the second port: lost.

    def _set_lines(self, lines: int) -> None:
        self._lines = lines | LINE_NOT_RESET
        if not lines & LINE_NOT_RESET:
            self._machine.reset_line("keyboard controller")

    def _fill(self) -> None:
        """The next byte into the output buffer, when that is empty: the controller's own first, then, unless its clock
        is held, the keyboard's."""
        if self._buffer is None and self._answers:
            self._buffer = self._answers.popleft()
        while self._buffer is None and self._keyboard.has_output and not self._mode & MODE_DISABLED:
            code = self._keyboard.take()
            if not self._mode & MODE_TRANSLATE:
                self._buffer = code
            elif code == BREAK:
                self._released = 0x80
            else:
                self._buffer = TRANSLATION[code] | self._released
                self._released = 0
        self._machine.set_irq(IRQ, self._buffer is not None and bool(self._mode & MODE_INTERRUPT))

    # ---- snapshots

    def save(self) -> dict[str, Any]:
        return {
            "mode": self._mode,
            "lines": self._lines,
            "ram": self._ram.hex(),
            "last_was_command": self._last_was_command,
            "awaits": self._awaits,
            "buffer": self._buffer,
            "answers": bytes(self._answers).hex(),
            "released": self._released,
            "keyboard": self._keyboard.save(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(self.save()), self.name)
        self._mode = saved.number(state, "mode", 0xFF, self._mode)
        self._lines = saved.number(state, "lines", 0xFF, self._lines) | LINE_NOT_RESET
        self._ram = bytearray(saved.data(state, "ram", bytes(len(self._ram))))
        self._last_was_command = saved.flag(state, "last_was_command")
        self._awaits = saved.optional(state, "awaits", 0xFF)
        self._buffer = saved.optional(state, "buffer", 0xFF)
        self._answers = deque(saved.data(state, "answers", b"", ANSWER_BYTES), maxlen=ANSWER_BYTES)
        self._released = saved.number(state, "released", 0x80) & 0x80
        keyboard = state.get("keyboard", {})
        if not isinstance(keyboard, dict):
            raise TypeError("keyboard is no table of fields")
        self._keyboard.restore(keyboard)
