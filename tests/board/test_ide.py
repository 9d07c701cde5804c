"""IDE disks, driven as drivers do (ATA/ATAPI-6)."""

from __future__ import annotations

import json

import pytest
from ide_rig import (
    CONTROL,
    COUNT,
    DEVICE,
    ERROR,
    FAILED,
    HIGH,
    LOW,
    MID,
    PRIMARY,
    REQUEST,
    SECONDARY,
    STATUS,
    MemoryImage,
    Rig,
    numbered,
)

from hvd.board.ide.identify import Geometry

SECTORS = 4096


@pytest.fixture
def image() -> MemoryImage:
    return MemoryImage(numbered(SECTORS))


@pytest.fixture
def rig(image: MemoryImage) -> Rig:
    return Rig(image)


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]


def swapped(text: list[int]) -> str:
    return b"".join(word.to_bytes(2, "big") for word in text).decode().strip()


def identify(rig: Rig) -> list[int]:
    rig.command(0xEC)
    assert rig.status() == 0x58
    return words(rig.data_in(PRIMARY, 512))


def test_identify(rig: Rig) -> None:
    answer = identify(rig)
    assert rig.status() == 0x50
    assert swapped(answer[27:47]) == "HVD HARDDISK"
    assert swapped(answer[10:20]) == "disk0"
    assert answer[60] | answer[61] << 16 == SECTORS
    assert answer[100:104] == [SECTORS, 0, 0, 0]
    assert answer[1] * answer[3] * answer[6] <= SECTORS
    assert answer[49] & 1 << 8 == 0 and answer[63] == answer[88] == 0  # no DMA of any kind


def test_read_sectors_by_word_and_by_double_word(rig: Rig) -> None:
    for size in (1, 2, 4):
        rig.command(0x20, 7, 3)
        got = b""
        for _ in range(3):
            assert rig.lines[14]
            assert rig.read(PRIMARY + STATUS) == 0x58
            assert not rig.lines[14]
            got += rig.data_in(PRIMARY, 512, size)
        assert got == numbered(10)[7 * 512 :]
        assert rig.read(PRIMARY + STATUS) == 0x50 and not rig.lines[14]


def test_a_block_costs_a_few_trips(rig: Rig) -> None:
    rig.command(0x20, 0, 100)
    before = rig.trips
    assert rig.data_in(PRIMARY, 51200) == numbered(100)
    assert rig.trips - before == 100


def test_the_last_sector_and_beyond(rig: Rig) -> None:
    rig.command(0x20, SECTORS - 1)
    assert rig.data_in(PRIMARY, 512) == numbered(SECTORS)[-512:]
    for lba, count in ((SECTORS, 1), (SECTORS - 1, 2), (0x0FFFFFFF, 1)):
        rig.command(0x20, lba, count)
        assert rig.status() & (REQUEST | FAILED) == FAILED
        assert rig.read(PRIMARY + ERROR) == 0x10  # IDNF


def test_a_count_of_0_is_256(rig: Rig) -> None:
    rig.command(0x20, 0, 0)
    assert rig.data_in(PRIMARY, 256 * 512) == numbered(256)
    assert rig.status() == 0x50


def test_48_bit(rig: Rig, image: MemoryImage) -> None:
    rig.command(0x24, 300, 0x101, wide=True)
    assert rig.data_in(PRIMARY, 0x101 * 512) == numbered(300 + 0x101)[300 * 512 :]
    assert rig.status() == 0x50
    rig.command(0x24, 1 << 40, 1, wide=True)
    assert rig.read(PRIMARY + ERROR) == 0x10
    rig.command(0x34, 5, 1, wide=True)
    rig.data_out(PRIMARY, b"w" * 512)
    assert image.content[5 * 512 : 6 * 512] == b"w" * 512
    rig.command(0x27, wide=True)  # READ NATIVE MAX ADDRESS EXT
    low = [rig.read(PRIMARY + register) for register in (LOW, MID, HIGH)]
    rig.write(PRIMARY + CONTROL, 0x80)
    high = [rig.read(PRIMARY + register) for register in (LOW, MID, HIGH)]
    assert int.from_bytes(bytes((*low, *high)), "little") == SECTORS - 1


def test_chs(rig: Rig) -> None:
    geometry = Geometry.of(SECTORS)
    rig.write(PRIMARY + DEVICE, 0xA0 | 3)
    for register, value in ((COUNT, 1), (LOW, 5), (MID, 2), (HIGH, 0), (STATUS, 0x20)):
        rig.write(PRIMARY + register, value)
    sector = (2 * geometry.heads + 3) * geometry.track + 4
    assert rig.data_in(PRIMARY, 512) == numbered(sector + 1)[-512:]
    assert [rig.read(PRIMARY + register) for register in (LOW, MID, HIGH)] == [5, 2, 0]
    rig.write(PRIMARY + LOW, 0)  # sectors count from 1
    rig.write(PRIMARY + STATUS, 0x20)
    assert rig.read(PRIMARY + ERROR) == 0x10


def test_another_translation(rig: Rig) -> None:
    rig.write(PRIMARY + DEVICE, 0xA0 | 3)  # 4 heads
    rig.write(PRIMARY + COUNT, 32)
    rig.write(PRIMARY + STATUS, 0x91)
    answer = identify(rig)
    assert answer[54:57] == [SECTORS // 128, 4, 32]
    rig.write(PRIMARY + DEVICE, 0xA0 | 1)
    for register, value in ((COUNT, 1), (LOW, 1), (MID, 1), (HIGH, 0), (STATUS, 0x20)):
        rig.write(PRIMARY + register, value)
    assert rig.data_in(PRIMARY, 4) == (5 * 32).to_bytes(4, "little")


def test_write_sectors(rig: Rig, image: MemoryImage) -> None:
    rig.command(0x30, 10, 2)
    assert rig.status() == 0x58 and not rig.lines[14]  # no interrupt before the first block
    rig.data_out(PRIMARY, b"a" * 512)
    assert rig.lines[14] and rig.read(PRIMARY + STATUS) == 0x58
    rig.data_out(PRIMARY, b"b" * 512, size=4)
    assert rig.lines[14] and rig.read(PRIMARY + STATUS) == 0x50
    assert image.content[10 * 512 : 12 * 512] == b"a" * 512 + b"b" * 512
    rig.command(0xE7)
    assert image.flushes == 1 and rig.status() == 0x50


def test_write_cache_off(rig: Rig, image: MemoryImage) -> None:
    rig.command(0xEF, feature=0x82)
    assert not identify(rig)[85] & 1 << 5
    flushed = image.flushes
    rig.command(0x30, 10, 1)
    rig.data_out(PRIMARY, b"a" * 512)
    assert image.flushes == flushed + 1


def test_multiple(rig: Rig, image: MemoryImage) -> None:
    assert identify(rig)[59] == 0x110  # as firmware would set it
    rig.command(0xC6, count=0)
    assert identify(rig)[59] == 0
    rig.command(0xC4)
    assert rig.read(PRIMARY + ERROR) == 0x04  # switched off
    rig.command(0xC6, count=3)
    assert rig.status() & FAILED
    rig.command(0xC6, count=8)
    assert identify(rig)[59] == 0x108
    rig.command(0xC4, 1, 20)
    got = b""
    for block in (8, 8, 4):
        assert rig.lines[14]
        rig.read(PRIMARY + STATUS)
        got += rig.data_in(PRIMARY, block * 512)
    assert got == numbered(21)[512:] and rig.status() == 0x50
    rig.command(0xC5, 100, 10)
    rig.data_out(PRIMARY, b"m" * 10 * 512)
    assert rig.status() == 0x50 and image.content[100 * 512 : 110 * 512] == b"m" * 5120


def test_two_drives_and_a_missing_one() -> None:
    rig = Rig(MemoryImage(numbered(100)), MemoryImage(numbered(200)))
    for slave, sectors in ((False, 100), (True, 200)):
        rig.command(0xEC, slave=slave)
        assert words(rig.data_in(PRIMARY, 512))[60] == sectors
    alone = Rig(MemoryImage(numbered(100)))
    alone.write(PRIMARY + DEVICE, 0xB0)
    assert alone.status() == 0 and alone.read(PRIMARY + STATUS) == 0
    alone.write(PRIMARY + STATUS, 0xEC)
    assert alone.read(PRIMARY + STATUS) == 0 and not alone.lines[14]
    assert all(not SECONDARY <= port < SECONDARY + 8 for ports in alone.ide.ports for port in ports)


def test_a_slave_alone_is_not_a_master() -> None:
    rig = Rig(cdroms=[MemoryImage(bytes(4096)), MemoryImage(bytes(4096))])
    rig.write(SECONDARY + DEVICE, 0xB0)
    assert (rig.read(SECONDARY + MID), rig.read(SECONDARY + HIGH)) == (0x14, 0xEB)


def test_a_transfer_waits_while_the_other_drive_is_selected() -> None:
    rig = Rig(MemoryImage(numbered(10)), MemoryImage(bytes(5120)))
    rig.command(0x20, 1)
    start = rig.data_in(PRIMARY, 100)
    rig.write(PRIMARY + DEVICE, 0xF0)
    assert rig.read(PRIMARY, 2) == 0
    rig.command(0x20, 2, slave=True)
    assert rig.data_in(PRIMARY, 512) == bytes(512)
    rig.write(PRIMARY + DEVICE, 0xE0)
    assert start + rig.data_in(PRIMARY, 412) == numbered(2)[512:]


def test_soft_reset_shows_the_signature(rig: Rig) -> None:
    rig.command(0x20, 5)
    rig.write(PRIMARY + CONTROL, 0x04)
    rig.write(PRIMARY + CONTROL, 0x00)
    assert [rig.read(PRIMARY + register) for register in (ERROR, COUNT, LOW, MID, HIGH)] == [1, 1, 1, 0, 0]
    assert rig.status() == 0x50 and not rig.lines[14]
    assert rig.read(PRIMARY, 2) == 0


def test_diagnostic(rig: Rig) -> None:
    rig.command(0x90)
    assert rig.lines[14] and rig.read(PRIMARY + ERROR) == 1
    assert rig.read(PRIMARY + STATUS) == 0x50


def test_no_interrupt_when_the_guest_wants_none(rig: Rig) -> None:
    rig.write(PRIMARY + CONTROL, 0x02)
    rig.command(0x20)
    assert not rig.lines[14]
    rig.write(PRIMARY + CONTROL, 0)
    assert rig.lines[14]


def test_unknown_and_dma_commands_are_aborted(rig: Rig) -> None:
    for code in (0x00, 0x25, 0x35, 0xC8, 0xCA, 0xA0, 0xA1, 0x06, 0xFF):
        rig.command(code)
        assert rig.status() == 0x51 and rig.read(PRIMARY + ERROR) == 0x04 and rig.lines[14]
    rig.command(0xEF, count=0x45, feature=3)  # Ultra DMA
    assert rig.status() == 0x51
    rig.command(0xEF, count=0x0C, feature=3)  # PIO 4
    assert rig.status() == 0x50


def test_simple_commands(rig: Rig) -> None:
    for code in (0x10, 0x40, 0x42, 0x70, 0xE0, 0xE1, 0xE5, 0xF8):
        rig.command(code, 0, 1, wide=code == 0x42)
        assert rig.status() == 0x50, hex(code)
        assert rig.lines[14]
    rig.command(0xE5)
    assert rig.read(PRIMARY + COUNT) == 0xFF


def test_a_read_that_fails(rig: Rig, image: MemoryImage) -> None:
    image.broken = {12}
    rig.command(0x20, 10, 5)
    assert rig.data_in(PRIMARY, 1024) == numbered(12)[5120:]
    assert rig.status() == 0x51 and rig.lines[14]
    assert rig.read(PRIMARY + ERROR) == 0x40  # UNC
    assert rig.read(PRIMARY + LOW) == 12
    rig.command(0x40, 0, 20)
    assert rig.read(PRIMARY + ERROR) == 0x40
    rig.command(0x20, 13)  # the disk goes on
    assert rig.data_in(PRIMARY, 512) == numbered(14)[-512:]


def test_a_write_that_fails(rig: Rig, image: MemoryImage) -> None:
    image.broken = {11, -1}
    rig.command(0x30, 10, 3)
    rig.data_out(PRIMARY, b"x" * 1024)
    assert rig.status() == 0x51 and rig.read(PRIMARY + ERROR) == 0x04
    rig.command(0xE7)
    assert rig.status() == 0x51


def test_a_read_only_disk(image: MemoryImage) -> None:
    image.read_only = True
    rig = Rig(image)
    rig.command(0x30, 10, 1)
    assert rig.status() == 0x51 and rig.read(PRIMARY + ERROR) == 0x44  # write-protected
    assert image.content == numbered(SECTORS)


@pytest.mark.parametrize("sectors", [1, 62, 63, 64, 1007, 1008, 4096, 16383 * 1008, 1 << 30])
def test_default_translation(sectors: int) -> None:
    geometry = Geometry.of(sectors)
    assert 1 <= geometry.heads <= 16 and 1 <= geometry.track <= 63 and 1 <= geometry.cylinders <= 16383
    assert 0 < geometry.sectors <= sectors


def test_save_in_the_middle_of_a_sector(rig: Rig) -> None:
    rig.command(0x20, 3, 2)
    start = rig.data_in(PRIMARY, 100)
    state = json.loads(json.dumps(rig.ide.save()))
    other = Rig(MemoryImage(numbered(SECTORS)))
    other.ide.restore(state)
    assert other.lines[14]
    assert start + other.data_in(PRIMARY, 924) == numbered(5)[3 * 512 :]
    assert other.status() == 0x50


def test_save_in_the_middle_of_a_write(rig: Rig) -> None:
    rig.command(0x34, 3, 2, wide=True)
    rig.data_out(PRIMARY, b"1" * 600)
    state = json.loads(json.dumps(rig.ide.save()))
    second = MemoryImage(bytes(rig.machine.disks[0].image.content))
    other = Rig(second)
    other.ide.restore(state)
    other.data_out(PRIMARY, b"2" * 424)
    assert second.content[3 * 512 : 5 * 512] == b"1" * 600 + b"2" * 424


@pytest.mark.parametrize(
    "change",
    [
        {"position": 9999},
        {"left": 1 << 40},
        {"step": 0},
        {"kind": "cdrom"},
        {"registers": "00"},
        {"block": "zz"},
        {"heads": 0},
        {"sector": -1},
        {"sector": 1.5},
        {"left": True},
        {"out": 1},
    ],
)
def test_nonsense_is_not_restored(rig: Rig, change: dict[str, object]) -> None:
    rig.command(0x30, 3, 2)
    state = rig.ide.save()
    state["0x1f0"]["drives"][0] |= change
    with pytest.raises((ValueError, KeyError, TypeError)):
        Rig(MemoryImage(numbered(SECTORS))).ide.restore(state)
