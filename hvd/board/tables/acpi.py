"""The ACPI tables (ACPI specification 6.5, chapter 5): RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT.

They say what the board is: one processor, local APIC and IOAPIC, PCI bus 0, the ISA devices that kernels do not find by
themselves, a power button and soft-off. ACPI mode is on from the start: there is no SMI command port.
"""

from __future__ import annotations

import struct
from typing import Final

from hvd.board.hot import MMIO
from hvd.board.pci.bus import WINDOW
from hvd.board.tables import aml
from hvd.board.tables.pieces import Blob, Checksum, Pieces, Pointer
from hvd.board.tables.wiring import (
    ISA_IRQS,
    LEVEL_HIGH,
    PM1_CONTROL,
    PM1_EVENT,
    PM2_CONTROL,
    RESET_PORT,
    RESET_VALUE,
    SCI_GSI,
    SLEEP_TYPE_OFF,
    intx_routes,
)

TABLES: Final = "etc/acpi/tables"
RSDP: Final = "etc/acpi/rsdp"
OEM, OEM_TABLE, CREATOR = b"HVD   ", b"HVDBOARD", b"HVD "
HEADER_BYTES: Final = 36
RSDP_BYTES: Final = 36

# FADT (5.2.9): fixed feature flags, boot architecture flags.
WBINVD, PROC_C1, SLP_BUTTON, FIX_RTC, RESET_REG_SUP = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 10
LEGACY_DEVICES, KEYBOARD_8042 = 1 << 0, 1 << 1
NO_SUCH_STATE: Final = 0xFFFF  # a latency that says that C2 or C3 is missing
CENTURY: Final = 0x32  # of the CMOS clock
SYSTEM_IO: Final = 1
# MADT (5.2.12)
PCAT_COMPAT: Final = 1  # there is an 8259 pair, too
AS_ITS_BUS: Final = 0
ALL_PROCESSORS: Final = 0xFF


def _header(signature: bytes, revision: int, body: bytes) -> bytes:
    head = struct.pack(
        "<4sIBB6s8sI4sI", signature, HEADER_BYTES + len(body), revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1
    )
    return head + body


def dsdt() -> bytes:
    """The differentiated system description table, without its checksum."""
    prt = aml.package(*(
        aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.integer(0), aml.integer(gsi))
        for slot, pin, gsi in intx_routes()
    ))  # fmt: skip
    crs = aml.resources(
        aml.bus_range(0, 0xFF),
        aml.io(0xCF8, 8),
        aml.io_range(0, 0xCF7),
        aml.io_range(0xD00, 0xFFFF),
        aml.memory_range(0xA0000, 0xBFFFF),
        aml.memory_range(WINDOW.start, WINDOW.stop - 1),
    )

    def isa(name: str, hid: str, uid: int, *where: bytes) -> bytes:
        return aml.device(
            name, aml.name("_HID", aml.eisa_id(hid)), aml.name("_UID", aml.integer(uid)),
            aml.name("_STA", aml.integer(0xF)), aml.name("_CRS", aml.resources(*where)),
        )  # fmt: skip

    isa_bridge = aml.device(
        "ISA", aml.name("_ADR", aml.integer(1 << 16)),
        isa("COM1", "PNP0501", 1, aml.io(0x3F8, 8), aml.irq(4)),
        isa("KBD", "PNP0303", 0, aml.io(0x60, 1), aml.io(0x64, 1), aml.irq(1)),
        isa("RTC", "PNP0B00", 0, aml.io(0x70, 2), aml.irq(8)),
    )  # fmt: skip
    pci = aml.device(
        "PCI0", aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)), aml.name("_BBN", aml.integer(0)), aml.name("_CRS", crs),
        aml.name("_PRT", prt), isa_bridge,
    )  # fmt: skip
    off = aml.integer(SLEEP_TYPE_OFF)
    states = aml.name("\\_S5", aml.package(off, off, aml.integer(0), aml.integer(0)))
    return _header(b"DSDT", 2, states + aml.scope("\\_SB", pci))


def madt() -> bytes:
    """The multiple APIC description table, without its checksum."""
    entries = (
        struct.pack("<BBBBI", 0, 8, 0, 0, 1),  # processor 0, APIC id 0, enabled
        struct.pack("<BBBBII", 1, 12, 0, 0, MMIO["ioapic"].start, 0),  # IOAPIC 0, its first GSI
        struct.pack("<BBBBIH", 2, 10, 0, 0, ISA_IRQS[0], AS_ITS_BUS),  # the timer
        struct.pack("<BBBBIH", 2, 10, 0, SCI_GSI, SCI_GSI, LEVEL_HIGH),
        struct.pack("<BBBHB", 4, 6, ALL_PROCESSORS, 0, 1),  # NMI at LINT1
    )
    return _header(b"APIC", 1, struct.pack("<II", MMIO["local-apic"].start, PCAT_COMPAT) + b"".join(entries))


def _register(bits: int, port: int) -> bytes:
    """A generic address (5.2.3.2) in I/O space; none at port 0."""
    return struct.pack("<BBBBQ", SYSTEM_IO, bits, 0, 0, port) if port else bytes(12)


def fadt(facs: int, dsdt_offset: int) -> bytes:
    """Revision 5, without its checksum; facs and dsdt_offset go where addresses belong. It names no PM timer, which ACPI 5
    leaves to the board: a 32-bit Linux that is told of one measures it against the 8254, 35 ms of its boot
    (drivers/clocksource/acpi_pm.c), and nothing needs it beside a TSC whose frequency CPUID tells."""
    flags = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | RESET_REG_SUP
    body = struct.pack("<IIBBHIBBBB", facs, dsdt_offset, 0, 0, SCI_GSI, 0, 0, 0, 0, 0)
    body += struct.pack("<8I", PM1_EVENT, 0, PM1_CONTROL, 0, PM2_CONTROL, 0, 0, 0)
    body += struct.pack("<8B", 4, 2, 1, 0, 0, 0, 0, 0)  # lengths of those blocks
    body += struct.pack("<HHHHBBBBBHBI", NO_SUCH_STATE, NO_SUCH_STATE, 0, 0, 0, 0, 0, 0, CENTURY,
                        LEGACY_DEVICES | KEYBOARD_8042, 0, flags)  # fmt: skip
    body += _register(8, RESET_PORT) + struct.pack("<B3x", RESET_VALUE)
    body += struct.pack("<QQ", 0, dsdt_offset)  # X_FIRMWARE_CTRL 0: the 32-bit one holds (5.2.9)
    body += _register(32, PM1_EVENT) + _register(0, 0) + _register(16, PM1_CONTROL) + _register(0, 0)
    body += _register(8, PM2_CONTROL) + _register(0, 0) * 3
    body += _register(0, 0) * 2  # sleep control and status, of hardware-reduced machines
    return _header(b"FACP", 5, body)


# Where the FADT has its pointers: FIRMWARE_CTRL, DSDT, X_DSDT.
FADT_POINTERS: Final = ((36, 4), (40, 4), (140, 8))


def acpi_pieces() -> Pieces:
    """All tables: one blob, and the RSDP, which kernels search for."""
    tables = bytearray(struct.pack("<4sI", b"FACS", 64).ljust(32, b"\0") + struct.pack("<B31x", 1))
    pieces = Pieces()

    def add(table: bytes) -> int:
        tables.extend(bytes(-len(tables) % 16))
        start = len(tables)
        tables.extend(table)
        pieces.checksums.append(Checksum(TABLES, start + 9, start, len(table)))
        return start

    dsdt_at = add(dsdt())
    fadt_at = add(fadt(0, dsdt_at))
    madt_at = add(madt())
    for offset, size in FADT_POINTERS:
        pieces.pointers.append(Pointer(TABLES, fadt_at + offset, size, TABLES))
    roots = {}
    for signature, form, size in ((b"RSDT", "<2I", 4), (b"XSDT", "<2Q", 8)):
        at = roots[signature] = add(_header(signature, 1, struct.pack(form, fadt_at, madt_at)))
        pieces.pointers += [Pointer(TABLES, at + HEADER_BYTES + size * n, size, TABLES) for n in range(2)]
    rsdp = struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, roots[b"RSDT"], RSDP_BYTES, roots[b"XSDT"], 0)
    pieces.blobs[TABLES] = Blob(bytes(tables), 64)
    pieces.blobs[RSDP] = Blob(rsdp, 16, low=True)
    pieces.pointers += [Pointer(RSDP, 16, 4, TABLES), Pointer(RSDP, 24, 8, TABLES)]
    pieces.checksums += [Checksum(RSDP, 8, 0, 20), Checksum(RSDP, 32, 0, RSDP_BYTES)]
    return pieces
