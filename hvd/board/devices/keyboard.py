"""The keyboard and its controller, which are in C (hvd/board/native/keyboard.c says what they are): here is who types, the reset line, and
snapshots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.board.keys import KEYS, Stroke

if TYPE_CHECKING:
    from hvd.board.device_registers import KeyBytes, Ps2Registers
    from hvd.board.machine import Machine

DATA, COMMAND, CONTROL_A = 0x60, 0x64, 0x92
LINE_NOT_RESET = 0x01
RAM_BYTES: Final = 32
ANSWER_BYTES, MOST_KEY_BYTES = 16, 15
SET_LEDS, SELECT_SET, SET_RATE = 0xED, 0xF0, 0xF3
WITH_ARGUMENT: Final = frozenset({SET_LEDS, SELECT_SET, SET_RATE})  # commands of the keyboard


class Keyboard:
    """What a guest writes and reads without Python, in registers that this device resets and saves."""

    name: ClassVar[str] = "keyboard"
    widest: ClassVar[int] = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._registers = machine.board.keyboard()
        self._registers.there = True
        # Called in the vcpu thread when a stroke that type() refused may have room now.
        self.on_room: Callable[[], None] = lambda: None
        self.reset()

    @property
    def ports(self) -> Sequence[range]:
        return (range(DATA, DATA + 1), range(COMMAND, COMMAND + 1), range(CONTROL_A, CONTROL_A + 1))

    def reset(self) -> None:
        self._machine.board.reset_keyboard()
        self._room()

    def read_port(self, port: int, size: int) -> int:
        makes_room = port == DATA and self._registers.full
        value = self._machine.board.read_keyboard(port)
        if makes_room:
            self._room()
        return value

    def write_port(self, port: int, size: int, value: int) -> None:
        if self._machine.board.write_keyboard(port, value):
            self._machine.reset_line("fast reset, port 0x92" if port == CONTROL_A else "keyboard controller")
        if port != CONTROL_A:
            self._room()

    def type(self, strokes: Sequence[Stroke]) -> int:
        """Somebody types: keys that are pressed and released in the opposite order. So many strokes, from the first on, were taken, each as a
        whole; the others have no room yet (on_room), or the keyboard does not scan. Names are those of hvd.board.keys.KEYS."""
        for taken, stroke in enumerate(strokes):
            codes = b"".join(KEYS[key][0] for key in stroke) + b"".join(KEYS[key][1] for key in reversed(stroke))
            if not self._machine.board.press(codes):
                self._registers.refused = True
                return taken
        return len(strokes)

    def _room(self) -> None:
        if self._registers.refused:
            self._registers.refused = False
            self.on_room()

    # ---- snapshots

    def save(self) -> dict[str, Any]:
        registers = self._registers
        return {
            "mode": registers.mode,
            "lines": registers.lines,
            "ram": bytes(registers.ram).hex(),
            "last_was_command": bool(registers.last_was_command),
            "awaits": registers.awaits or None,
            "buffer": registers.buffer if registers.full else None,
            "answers": registers.answers.get().hex(),
            "released": registers.released,
            "keyboard": _save(registers.ps2),
        }

    def restore(self, state: dict[str, Any]) -> None:
        saved.only(state, frozenset(self.save()), self.name)
        registers = self._registers
        registers.mode = saved.number(state, "mode", 0xFF, registers.mode)
        registers.lines = saved.number(state, "lines", 0xFF, registers.lines) | LINE_NOT_RESET
        registers.ram[:] = tuple(saved.data(state, "ram", bytes(RAM_BYTES)))
        registers.last_was_command = saved.flag(state, "last_was_command")
        registers.awaits = saved.optional(state, "awaits", 0xFF) or 0
        buffer = saved.optional(state, "buffer", 0xFF)
        registers.full, registers.buffer = buffer is not None, buffer or 0
        _wait(registers.answers, state, "answers", ANSWER_BYTES)
        registers.released = saved.number(state, "released", 0x80) & 0x80
        keyboard = state.get("keyboard", {})
        if not isinstance(keyboard, dict):
            raise TypeError("keyboard is no table of fields")
        _restore(registers.ps2, keyboard)


def _save(ps2: Ps2Registers) -> dict[str, Any]:
    return {
        "answers": ps2.answers.get().hex(),
        "keys": ps2.keys.get().hex(),
        "last": ps2.last,
        "leds": ps2.leds,
        "awaits": ps2.awaits or None,
        "set": ps2.set,
        "scanning": bool(ps2.scanning),
    }


def _restore(ps2: Ps2Registers, state: dict[str, Any]) -> None:
    saved.only(state, frozenset(_save(ps2)), "keyboard")
    _wait(ps2.answers, state, "answers", ANSWER_BYTES)
    _wait(ps2.keys, state, "keys", MOST_KEY_BYTES)
    ps2.last = saved.number(state, "last", 0xFF)
    ps2.leds = saved.number(state, "leds", 7)
    awaits = saved.optional(state, "awaits", 0xFF)
    ps2.awaits = awaits if awaits in WITH_ARGUMENT else 0
    ps2.set = saved.number(state, "set", 2, 2, least=1)
    ps2.scanning = saved.flag(state, "scanning", True)


def _wait(queue: KeyBytes, state: dict[str, Any], name: str, most: int) -> None:
    queue.set(saved.data(state, name, b"", most))
