"""ACPI fixed hardware (ACPI specification 6.5, chapter 4.8): PM1 event and control registers, PM2 control, the power
management timer, the power button, soft-off.

ACPI mode is on from the start (SCI_EN), as the FADT's SMI_CMD 0 says. The SCI is GSI 9, level-triggered. Left out: sleep
states but S5, general-purpose events, wake-up, the global lock's release interrupt. The timer's status bit is right for a
guest that polls it; the timer raises no SCI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board import saved
from hvd.board.tables.wiring import PM1_CONTROL, PM1_EVENT, PM2_CONTROL, PM_TIMER, SCI_GSI, SLEEP_TYPE_OFF

if TYPE_CHECKING:
    from hvd.board.machine import Machine

ENABLE, CONTROL, CONTROL_END = PM1_EVENT + 2, PM1_CONTROL, PM1_CONTROL + 2
END: Final = PM_TIMER + 4
TIMER_HZ: Final = 3_579_545
TIMER_MASK: Final = (1 << 32) - 1
SECOND: Final = 1_000_000_000

# PM1 status and enable (4.8.3.1.1, 4.8.3.1.2). The button's status bit is not gated by its enable bit.
TIMER_STATUS, GLOBAL, POWER_BUTTON, SLEEP_BUTTON, RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10
WAKE = 1 << 15
ENABLE_BITS: Final = TIMER_STATUS | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC
# PM1 control (4.8.3.2.1)
SCI_ENABLE, SLEEP_ENABLE = 1 << 0, 1 << 13
SLEEP_TYPE, SLEEP_TYPE_SHIFT = 7 << 10, 10
# PM2 control (4.8.3.4): the system arbiter is off. It holds what it is told; there is no C3 to need it.
ARBITER_DISABLE: Final = 1 << 0


class AcpiPm:
    """The power button is pressed with Machine.power_button()."""

    name: ClassVar[str] = "acpi-pm"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._status = self._enable = 0
        self._control = SCI_ENABLE
        self._arbiter = 0
        self._half = 0  # of the timer's range, when the guest cleared its status

    @property
    def ports(self) -> Sequence[range]:
        return (range(PM1_EVENT, CONTROL_END), range(PM_TIMER, END), range(PM2_CONTROL, PM2_CONTROL + 1))

    # ---- registers, as the bytes of one block

    def read_port(self, port: int, size: int) -> int:
        if port == PM2_CONTROL:
            return self._arbiter
        registers = (
            (self._read_status() | self._enable << 16).to_bytes(4, "little")
            + self._control.to_bytes(4, "little")
            + self._timer().to_bytes(4, "little")
        )
        offset = port - PM1_EVENT
        return int.from_bytes(registers[offset : offset + size], "little")

    def write_port(self, port: int, size: int, value: int) -> None:
        for offset in range(size):
            self._write_byte(port + offset, value >> (8 * offset) & 0xFF)
        self._drive()

    def _write_byte(self, port: int, value: int) -> None:
        shift = 8 * (port & 1)
        word = value << shift
        if port == PM2_CONTROL:
            self._arbiter = value & ARBITER_DISABLE
        elif port < ENABLE:
            self._status &= ~word  # written as 1 to clear
            if word & TIMER_STATUS:
                self._half = self._timer() >> 31
        elif port < CONTROL:
            self._enable = (self._enable & ~(0xFF << shift) | word) & ENABLE_BITS
        elif port < CONTROL_END:
            self._control = self._control & ~(0xFF << shift) & SLEEP_TYPE | word & SLEEP_TYPE | SCI_ENABLE
            if word & SLEEP_ENABLE and self._control >> SLEEP_TYPE_SHIFT & 7 == SLEEP_TYPE_OFF:
                self._machine.power_off("ACPI soft-off")

    def _timer(self) -> int:
        return self._machine.clock_ns() * TIMER_HZ // SECOND & TIMER_MASK

    def _read_status(self) -> int:
        """TMR_STS is set whenever the timer's highest bit changes (4.8.3.3)."""
        return self._status | (TIMER_STATUS if self._timer() >> 31 != self._half else 0)

    def _drive(self) -> None:
        self._machine.set_irq(SCI_GSI, bool(self._status & self._enable))

    # ---- the button

    def press_power_button(self) -> bool:
        """Does the guest listen? The status is set in any case, as the hardware does."""
        self._status |= POWER_BUTTON
        self._drive()
        return bool(self._enable & POWER_BUTTON)

    def reset(self) -> None:
        self._status = self._enable = 0
        self._control = SCI_ENABLE
        self._arbiter = 0
        self._half = self._timer() >> 31
        self._drive()

    def save(self) -> dict[str, Any]:
        return {
            "status": self._status, "enable": self._enable, "control": self._control, "arbiter": self._arbiter, "half": self._half,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError."""
        saved.only(state, frozenset({"status", "enable", "control", "arbiter", "half"}), self.name)
        self._status = saved.number(state, "status", 0xFFFF)
        self._enable = saved.number(state, "enable", 0xFFFF) & ENABLE_BITS
        self._control = saved.number(state, "control", 0xFFFF, SCI_ENABLE) & SLEEP_TYPE | SCI_ENABLE
        self._arbiter = saved.number(state, "arbiter", ARBITER_DISABLE)
        self._half = saved.number(state, "half", 1)
        self._drive()
