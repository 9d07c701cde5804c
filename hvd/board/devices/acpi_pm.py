"""ACPI fixed hardware (ACPI specification 6.5, chapter 4.8): PM1 event and control registers, PM2 control, the power
management timer, the power button, soft-off.

ACPI mode is on from the start (SCI_EN), as the FADT's SMI_CMD 0 says. The SCI is GSI 9, level-triggered. Left out: sleep
states but S5, general-purpose events, wake-up, the global lock's release interrupt. The timer's status bit is right for a
guest that polls it; the timer raises no SCI.

What a guest writes and reads is in C (hvd/board/native/acpi.c), in registers that this device resets and saves; here is what switches off, and
what reaches beyond the registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.board.tables.wiring import PM1_CONTROL, PM1_EVENT, PM2_CONTROL, PM_TIMER

if TYPE_CHECKING:
    from hvd.board.machine import Machine

CONTROL_END: Final = PM1_CONTROL + 2
TIMER_END: Final = PM_TIMER + 4

# PM1 status and enable (4.8.3.1.1, 4.8.3.1.2). The button's status bit is not gated by its enable bit.
TIMER_STATUS, GLOBAL, POWER_BUTTON, SLEEP_BUTTON, RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10
ENABLE_BITS: Final = TIMER_STATUS | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC
# PM1 control (4.8.3.2.1)
SCI_ENABLE: Final = 1 << 0
SLEEP_TYPE: Final = 7 << 10
# PM2 control (4.8.3.4): the system arbiter is off. It holds what it is told; there is no C3 to need it.
ARBITER_DISABLE: Final = 1 << 0


class AcpiPm:
    """The power button is pressed with Machine.power_button()."""

    name: ClassVar[str] = "acpi-pm"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._registers = machine.board.acpi()
        self._registers.there = True
        self._registers.control = SCI_ENABLE

    @property
    def ports(self) -> Sequence[range]:
        return (range(PM1_EVENT, CONTROL_END), range(PM_TIMER, TIMER_END), range(PM2_CONTROL, PM2_CONTROL + 1))

    def read_port(self, port: int, size: int) -> int:
        return sum(self._machine.board.read_acpi(port + offset) << 8 * offset for offset in range(size))

    def write_port(self, port: int, size: int, value: int) -> None:
        board = self._machine.board
        for offset in range(size):
            if board.write_acpi(port + offset, value >> 8 * offset & 0xFF):
                self._machine.power_off("ACPI soft-off")
        board.drive_acpi()

    # ---- the button

    def press_power_button(self) -> bool:
        """Does the guest listen? The status is set in any case, as the hardware does."""
        self._registers.status |= POWER_BUTTON
        self._machine.board.drive_acpi()
        return bool(self._registers.enable & POWER_BUTTON)

    def reset(self) -> None:
        registers = self._registers
        registers.status = registers.enable = registers.arbiter = 0
        registers.control = SCI_ENABLE
        registers.half = self._machine.board.read_acpi(TIMER_END - 1) >> 7
        self._machine.board.drive_acpi()

    def save(self) -> dict[str, Any]:
        registers = self._registers
        return {name: getattr(registers, name) for name in ("status", "enable", "control", "arbiter", "half")}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError."""
        saved.only(state, frozenset(self.save()), self.name)
        registers = self._registers
        registers.status = saved.number(state, "status", 0xFFFF)
        registers.enable = saved.number(state, "enable", 0xFFFF) & ENABLE_BITS
        registers.control = saved.number(state, "control", 0xFFFF, SCI_ENABLE) & SLEEP_TYPE | SCI_ENABLE
        registers.arbiter = saved.number(state, "arbiter", ARBITER_DISABLE)
        registers.half = saved.number(state, "half", 1)
        self._machine.board.drive_acpi()
