"""The keyboard controller: Intel 8042 as in the PC/AT (IBM PC/AT Technical Reference, "Keyboard controller"), ports
0x60 and 0x64, and the PS/2's system control port A, 0x92.

What the board needs of it: the reset line and the A20 bit. A keyboard is plugged in and answers its commands, but
nobody types. The A20 gate is only a bit: address line 20 is never masked, since no guest that the board loads relies
on the wrap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from hvd.board.machine import Machine

DATA, COMMAND, CONTROL_A = 0x60, 0x64, 0x92
IRQ = 1

STATUS_OUTPUT_FULL, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
MODE_INTERRUPT, MODE_SYSTEM, MODE_DISABLED, MODE_NO_AUX, MODE_TRANSLATE = 0x01, 0x04, 0x10, 0x20, 0x40
LINE_NOT_RESET, LINE_A20 = 0x01, 0x02
OUTPUT_BYTES = 16
ACK = 0xFA

# The keyboard's commands -> what it answers (IBM PC/AT Technical Reference, "Commands from the system").
KEYBOARD: dict[int, bytes] = {
    0xEE: b"\xee",  # echo
    0xF2: b"\xfa\xab\x41",  # identify: MF2, as seen through the translation
    0xF4: b"\xfa",  # enable
    0xF5: b"\xfa",  # default, disable
    0xF6: b"\xfa",  # default
    0xFF: b"\xfa\xaa",  # reset, self test passed
}
# Commands with an argument, which is acknowledged, too: LEDs, scan code set, typematic rate.
KEYBOARD_ARGUMENT = frozenset({0xED, 0xF0, 0xF3})
RESEND = 0xFE


class Keyboard:
    """Controller and keyboard."""

    name: ClassVar[str] = "keyboard"
    widest: ClassVar[int] = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._output: deque[int] = deque(maxlen=OUTPUT_BYTES)
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
        self._keyboard_awaits = False
        self._output.clear()
        self._update_irq()

    def read_port(self, port: int, size: int) -> int:
        if port == COMMAND:
            return self._status()
        if port == CONTROL_A:
            return self._lines & LINE_A20
        if not self._output:
            return 0
        value = self._output.popleft()
        # Down and, with more to come, up again: the 8259 sees an edge for every byte.
        self._machine.set_irq(IRQ, False)
        self._update_irq()
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
            self._to_keyboard(value)

    # ---- controller

    def _status(self) -> int:
        status = STATUS_UNLOCKED | (self._mode & MODE_SYSTEM)
        status |= STATUS_OUTPUT_FULL if self._output else 0
        return status | (STATUS_COMMAND if self._last_was_command else 0)

    def _command(self, command: int) -> None:
        self._awaits = None
        if 0x20 <= command < 0x40:
            self._answer(self._mode if command == 0x20 else self._ram[command & 31])
        elif 0x60 <= command < 0x80 or command in (0xD1, 0xD2, 0xD3, 0xD4):
            self._awaits = command
        elif command == 0xAA:  # self test
            self._mode |= MODE_SYSTEM
            self._answer(0x55)
        elif command == 0xA9:  # test of the second port's lines: its clock is stuck low
            self._answer(1)
        elif command == 0xAB:  # test of the keyboard's lines
            self._answer(0)
        elif command == 0xAD:
            self._mode |= MODE_DISABLED
        elif command == 0xAE:
            self._mode &= ~MODE_DISABLED
        elif command == 0xC0:  # input port: keyboard not locked
            self._answer(0x80)
        elif command == 0xD0:
            self._answer(self._lines)
        elif command in (0xDD, 0xDF):
            self._set_lines((self._lines & ~LINE_A20) | (command & LINE_A20))
        elif command >= 0xF0 and not command & LINE_NOT_RESET:  # pulse lines low
            self._machine.reset_line("keyboard controller")
        # 0xA7 and 0xA8 switch the second port, which this controller has not.

    def _argument(self, value: int) -> None:
        command, self._awaits = self._awaits, None
        if command == 0x60:
            self._mode = value | MODE_NO_AUX
            self._update_irq()
        elif command == 0xD1:
            self._set_lines(value)
        elif command in (0xD2, 0xD3):
            # 0xD3 should come back as the second port's. That it comes back as the keyboard's, and that 0xA9 fails, tells
            # a driver at once that there is no second port; without any answer Linux spins for half a second twice
            # (drivers/input/serio/i8042.c, i8042_check_aux).
            self._answer(value)
        elif command is not None and command < 0x80:
            self._ram[command & 31] = value
        # 0xD4 addresses the second port: lost.

    def _set_lines(self, lines: int) -> None:
        self._lines = lines | LINE_NOT_RESET
        if not lines & LINE_NOT_RESET:
            self._machine.reset_line("keyboard controller")

    def _answer(self, *values: int) -> None:
        self._output.extend(values)
        self._update_irq()

    def _update_irq(self) -> None:
        self._machine.set_irq(IRQ, bool(self._output) and bool(self._mode & MODE_INTERRUPT))

    # ---- keyboard

    def _to_keyboard(self, value: int) -> None:
        if self._keyboard_awaits:
            self._keyboard_awaits = False
            self._answer(ACK)
        elif value in KEYBOARD_ARGUMENT:
            self._keyboard_awaits = True
            self._answer(ACK)
        else:
            self._answer(*KEYBOARD.get(value, bytes((RESEND,))))
