"""What the tables say of the board: interrupts, once for ACPI and MultiProcessor tables, and ports of ACPI's hardware."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hvd.board.pci.bus import INTX_GSIS, SLOTS, intx_gsi

SCI_GSI: Final = 9
# hvd.board.devices.acpi_pm
PM1_EVENT, PM1_CONTROL, PM_TIMER = 0x600, 0x604, 0x608
# Where ISA Plug and Play has its write data register: this board has no ISA slots. Linux finds the port taken by ACPI, and
# does not scan for cards, which is a third of a second of delays (drivers/pnp/isapnp/core.c). A PNP0C02 device in the DSDT
# would not do: what those reserve, drivers may still take (drivers/pnp/system.c).
PM2_CONTROL: Final = 0xA79
SLEEP_TYPE_OFF: Final = 5
# hvd.board.devices.reset_control: a hard reset
RESET_PORT, RESET_VALUE = 0xCF9, 0x06
# ISA IRQ -> input of the IOAPIC. 2 is the cascade of the 8259 pair, the timer comes in at input 2; PCI has its own.
ISA_IRQS: Final = {irq: irq or 2 for irq in range(16) if irq != 2 and irq not in INTX_GSIS}
# Polarity and trigger of the SCI, in the form of both (MP specification, table 4-10; ACPI 5.2.12.5).
LEVEL_HIGH: Final = 0xD


def intx_routes() -> Iterator[tuple[int, int, int]]:
    """Slot, pin (0 = INTA) and GSI of every interrupt pin of PCI bus 0."""
    for slot in range(SLOTS):
        for pin in range(4):
            yield slot, pin, intx_gsi(slot, pin)
