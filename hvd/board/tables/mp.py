"""Intel's MultiProcessor tables (MultiProcessor Specification 1.4, chapter 4), for kernels that know no ACPI."""

from __future__ import annotations

import struct
from typing import Final

from hvd.board.hot import MMIO
from hvd.board.tables.wiring import ISA_IRQS, LEVEL_HIGH, SCI_GSI, intx_routes

FLOATING_BYTES: Final = 16
PCI_BUS, ISA_BUS = 0, 1
LOCAL_APIC_VERSION, IOAPIC_VERSION = 0x14, 0x11
PROCESSOR_ENABLED_BOOT: Final = 3
# Family 6; bit 0 of the features is the FPU's, bit 8 CMPXCHG8B's, bit 9 the APIC's (table 4-5).
SIGNATURE: Final = 0x600
FEATURES: Final = 1 << 0 | 1 << 8 | 1 << 9
INT, NMI, EXTINT = 0, 1, 3
AS_ITS_BUS: Final = 0
IOAPIC_ID, ALL_LOCAL_APICS = 0, 0xFF


def _interrupt(kind: int, type_: int, flags: int, bus: int, source: int, apic: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", kind, type_, flags, bus, source, apic, pin)


def configuration() -> bytes:
    """The MP configuration table, position-independent."""
    entries = [struct.pack("<BBBBII8x", 0, 0, LOCAL_APIC_VERSION, PROCESSOR_ENABLED_BOOT, SIGNATURE, FEATURES)]
    entries += [struct.pack("<BB6s", 1, PCI_BUS, b"PCI   "), struct.pack("<BB6s", 1, ISA_BUS, b"ISA   ")]
    entries += [struct.pack("<BBBBI", 2, IOAPIC_ID, IOAPIC_VERSION, 1, MMIO["ioapic"].start)]
    for slot, pin, gsi in intx_routes():
        entries.append(_interrupt(3, INT, AS_ITS_BUS, PCI_BUS, slot << 2 | pin, IOAPIC_ID, gsi))
    for irq, input_ in ISA_IRQS.items():
        flags = LEVEL_HIGH if irq == SCI_GSI else AS_ITS_BUS
        entries.append(_interrupt(3, INT, flags, ISA_BUS, irq, IOAPIC_ID, input_))
    entries.append(_interrupt(4, EXTINT, AS_ITS_BUS, ISA_BUS, 0, 0, 0))
    entries.append(_interrupt(4, NMI, AS_ITS_BUS, ISA_BUS, 0, ALL_LOCAL_APICS, 1))
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB", b"PCMP", 44 + len(body), 4, 0, b"HVD     ", b"HVD board   ", 0, 0, len(entries),
        MMIO["local-apic"].start, 0, 0, 0,
    )  # fmt: skip
    return _summed(header + body, 7)


def floating_pointer(address: int) -> bytes:
    """The MP floating pointer structure; address: of the configuration table. Virtual wire mode (no IMCR)."""
    return _summed(struct.pack("<4sIBBB5x", b"_MP_", address, 1, 4, 0), 10)


def _summed(data: bytes, at: int) -> bytes:
    result = bytearray(data)
    result[at] = -sum(result) & 0xFF
    return bytes(result)
