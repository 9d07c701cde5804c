"""ACPI and MP tables: their form, their checksums, what they say; disassembled by iasl (Debian: acpica-tools) where it is."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hvd.board.memory import GuestMemory
from hvd.board.pci.bus import WINDOW, intx_gsi
from hvd.board.tables import RSDP_ADDRESS, acpi_pieces, aml, put_tables
from hvd.board.tables.acpi import RSDP, TABLES
from hvd.board.tables.wiring import SLEEP_TYPE_OFF


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory(2 << 20)
    assert put_tables(memory) == RSDP_ADDRESS
    return memory


def table(memory: GuestMemory, address: int) -> bytes:
    """A system description table, whose checksum must be right."""
    length = struct.unpack("<I", memory.read(address + 4, 4))[0]
    data = memory.read(address, length)
    assert sum(data) & 0xFF == 0, data[:4]
    return data


def tables(memory: GuestMemory) -> dict[bytes, bytes]:
    """By signature, found as a kernel finds them: by RSDP and XSDT; the RSDT must say the same."""
    rsdp = memory.read(RSDP_ADDRESS, 36)
    assert rsdp[:8] == b"RSD PTR " and sum(rsdp[:20]) & 0xFF == 0 and sum(rsdp) & 0xFF == 0
    rsdt, _, xsdt = struct.unpack("<IIQ", rsdp[16:32])
    wide = struct.unpack("<2Q", table(memory, xsdt)[36:])
    assert struct.unpack("<2I", table(memory, rsdt)[36:]) == wide
    found = {data[:4]: data for data in (table(memory, address) for address in wide)}
    (dsdt,) = struct.unpack("<Q", found[b"FACP"][140:148])
    assert struct.unpack("<I", found[b"FACP"][40:44]) == (dsdt,)
    found[b"DSDT"] = table(memory, dsdt)
    (facs,) = struct.unpack("<I", found[b"FACP"][36:40])
    assert facs % 64 == 0 and memory.read(facs, 8) == b"FACS" + struct.pack("<I", 64)
    return found


def test_the_tables_are_found_and_whole(memory: GuestMemory) -> None:
    found = tables(memory)
    assert set(found) == {b"FACP", b"APIC", b"DSDT"}
    fadt = found[b"FACP"]
    assert len(fadt) == 268 and fadt[8] == 5
    sci, smi_command, enable = struct.unpack("<HIB", fadt[46:53])
    assert (sci, smi_command, enable) == (9, 0, 0)  # ACPI mode is on
    assert struct.unpack("<8I", fadt[56:88]) == (0x600, 0, 0x604, 0, 0xA79, 0, 0, 0)  # no timer
    assert fadt[88:92] == bytes((4, 2, 1, 0)) and fadt[196:208] == struct.pack("<BBBBQ", 1, 8, 0, 0, 0xA79)
    flags = struct.unpack("<I", fadt[112:116])[0]
    assert not flags & 1 << 4 and flags & 1 << 5  # a power button in fixed hardware, no sleep button
    assert flags & 1 << 10 and fadt[120:129] == struct.pack("<QB", 0xCF9, 0x06)  # reset register


def test_madt(memory: GuestMemory) -> None:
    madt = tables(memory)[b"APIC"]
    assert struct.unpack("<II", madt[36:44]) == (0xFEE00000, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert [entry[0] for entry in entries] == [0, 1, 2, 2, 4]
    assert struct.unpack("<I", entries[1][4:8]) == (0xFEC00000,)
    assert struct.unpack("<BIH", entries[2][3:]) == (0, 2, 0)
    assert struct.unpack("<BIH", entries[3][3:]) == (9, 9, 0xD)


def test_multiprocessor_tables(memory: GuestMemory) -> None:
    area = memory.read(0xF0000, 0x10000)
    at = area.index(b"_MP_")
    assert at % 16 == 0 and sum(area[at : at + 16]) & 0xFF == 0
    (address,) = struct.unpack("<I", area[at + 4 : at + 8])
    length, count = struct.unpack("<H", memory.read(address + 4, 2))[0], struct.unpack("<H", memory.read(address + 34, 2))[0]
    data = memory.read(address, length)
    assert data[:4] == b"PCMP" and sum(data) & 0xFF == 0
    entries, at = [], 44
    while at < length:
        size = 20 if data[at] == 0 else 8
        entries.append(data[at : at + size])
        at += size
    assert len(entries) == count
    assert [entry[0] for entry in entries] == sorted(entry[0] for entry in entries)  # as the specification orders them
    assert entries[0][1:4] == bytes((0, 0x14, 3))
    inputs = {(entry[4], entry[5]): entry[7] for entry in entries if entry[0] == 3}
    assert inputs[1, 0] == 2 and inputs[1, 4] == 4 and (1, 2) not in inputs
    for slot in (1, 2, 31):
        for pin in range(4):
            assert inputs[0, slot << 2 | pin] == intx_gsi(slot, pin)
    local = [(entry[1], entry[7]) for entry in entries if entry[0] == 4]
    assert local == [(3, 0), (1, 1)]  # ExtINT at LINT0, NMI at LINT1


def test_the_bios_data_area(memory: GuestMemory) -> None:
    words = {address: struct.unpack("<H", memory.read(address, 2))[0] for address in (0x400, 0x40E, 0x413)}
    assert words == {0x400: 0x3F8, 0x40E: 0x9FC0, 0x413: 639}


def test_no_room_for_tables() -> None:
    with GuestMemory(64 << 10) as memory:
        assert put_tables(memory) == 0
        assert memory.allocated_bytes() == 0


def test_the_loader_script_builds_the_same_tables() -> None:
    """A firmware that follows the script, at other addresses."""
    pieces = acpi_pieces()
    script = pieces.loader_script()
    assert len(script) % 128 == 0
    files = {name: bytearray(blob.data) for name, blob in pieces.blobs.items()}
    where: dict[str, int] = {}

    def text(raw: bytes) -> str:
        return raw.rstrip(b"\0").decode()

    for at in range(0, len(script), 128):
        (command,) = struct.unpack("<I", script[at : at + 4])
        rest = script[at + 4 : at + 128]
        if command == 1:
            name, alignment, zone = struct.unpack("<56sIB", rest[:61])
            assert zone == (2 if text(name) == RSDP else 1)
            where[text(name)] = (0x1234567 if zone == 1 else 0xF6A00) // alignment * alignment
        elif command == 2:
            target, source, offset, size = struct.unpack("<56s56sIB", rest[:117])
            data = files[text(target)]
            value = int.from_bytes(data[offset : offset + size], "little") + where[text(source)]
            data[offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert command == 3
            name, offset, start, length = struct.unpack("<56sIII", rest[:68])
            data = files[text(name)]
            data[offset] = (data[offset] - sum(data[start : start + length])) & 0xFF
    assert {name: bytes(data) for name, data in files.items()} == pieces.placed(where)


# ---- AML


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (2, "0a02"), (0x100, "0b0001"), (0x10000, "0c00000100"), (1 << 32, "0e0000000001000000")],
)
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_names_and_identifiers() -> None:
    assert aml.path("\\_SB") == b"\\_SB_" and aml.path("_SB.PCI0") == b"\x2e_SB_PCI0"
    assert aml.path("\\A.B.C") == b"\\\x2f\x03A___B___C___" and aml.path("\\") == b"\\\0"
    assert aml.eisa_id("PNP0A03").hex() == "0c41d00a03"


@pytest.mark.parametrize("length", [0, 1, 60, 61, 62, 63, 64, 4090, 4092, 4093, 4094, 4096, 1 << 20])
def test_package_lengths(length: int) -> None:
    """Decoded as ACPI 20.2.4 says: the length counts its own bytes."""
    encoded = aml.scope("\\", bytes(length))
    lead, more = encoded[1] & 0x3F, encoded[1] >> 6
    decoded = lead if not more else lead & 0xF | int.from_bytes(encoded[2 : 2 + more], "little") << 4
    assert decoded == len(encoded) - 1


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing (Debian: apt-get install acpica-tools)")
def test_iasl_understands_them(tmp_path: Path, memory: GuestMemory) -> None:
    for signature, data in tables(memory).items():
        path = tmp_path / f"{signature.decode().lower()}.aml"
        path.write_bytes(data)
        run = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, check=True)
        assert "Error" not in run.stderr + run.stdout, run.stderr
    source = (tmp_path / "dsdt.dsl").read_text()
    assert 'EisaId ("PNP0A03")' in source and 'EisaId ("PNP0501")' in source
    assert f"0x{WINDOW.start:08X}" in source and f"0x{WINDOW.stop - 1:08X}" in source
    assert f"0x{SLEEP_TYPE_OFF:02X}" in source[source.index("_S5") :][:200]
    again = subprocess.run(["iasl", "-p", tmp_path / "again", tmp_path / "dsdt.dsl"], capture_output=True, text=True, check=False)
    assert "0 Errors, 0 Warnings" in again.stdout, again.stdout


def test_the_blobs_stay_small() -> None:
    """They lie in the 64 KiB that kernels search."""
    assert len(acpi_pieces().blobs[TABLES].data) < 0xF000
