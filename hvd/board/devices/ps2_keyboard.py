"""The keyboard at the end of the cable: a PS/2 keyboard of 102 keys (IBM Personal System/2 Hardware Interface Technical
Reference, "Keyboards (101- and 102-key)"), with scan code sets 1 and 2.

What is left out: set 3 (it is refused, as by most of today's keyboards) and typematic, which hvctl has no use for: a
key that is typed is released at once.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from hvd.board import saved
from hvd.board.keys import KEYS, Stroke, translated

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
