"""ATAPI CD-ROMs, driven as drivers do."""

from __future__ import annotations

import json
import random

import pytest
from ide_rig import COUNT, DEVICE, ERROR, HIGH, MID, SECONDARY, STATUS, MemoryImage, Rig

FRAMES = 100
CONTENT = random.Random(1).randbytes(FRAMES * 2048)


@pytest.fixture
def image() -> MemoryImage:
    return MemoryImage(CONTENT)


@pytest.fixture
def rig(image: MemoryImage) -> Rig:
    return Rig(cdroms=[image])


def read_10(frame: int, count: int) -> bytes:
    return bytes((0x28, 0)) + frame.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def sense(rig: Rig) -> tuple[int, int]:
    answer = rig.packet(bytes((3, 0, 0, 0, 18, 0)))
    return answer[2] & 15, answer[12] << 8 | answer[13]


def failed(rig: Rig) -> bool:
    return bool(rig.read(SECONDARY + STATUS) & 1)


def test_signature_and_identify(rig: Rig) -> None:
    assert (rig.read(SECONDARY + MID), rig.read(SECONDARY + HIGH)) == (0x14, 0xEB)
    rig.command(0xEC, base=SECONDARY)
    assert rig.read(SECONDARY + STATUS) & 1 and rig.read(SECONDARY + ERROR) == 4
    assert (rig.read(SECONDARY + MID), rig.read(SECONDARY + HIGH)) == (0x14, 0xEB)
    rig.command(0xA1, base=SECONDARY)
    assert rig.lines[15]
    answer = rig.data_in(SECONDARY, 512)
    assert answer[0:2] == b"\xc0\x85" and answer[54:66] == b"VH DDCR-MO  "[:12]


def test_inquiry_cut_to_what_is_wanted(rig: Rig) -> None:
    answer = rig.packet(bytes((0x12, 0, 0, 0, 36, 0)))
    assert answer[0] == 5 and answer[8:32] == b"HVD     CD-ROM          "
    assert rig.packet(bytes((0x12, 0, 0, 0, 5, 0))) == answer[:5] + b"\0"  # the odd byte is padded by the reader


def test_capacity_and_toc(rig: Rig) -> None:
    assert rig.packet(bytes((0x25,))) == (FRAMES - 1).to_bytes(4, "big") + (2048).to_bytes(4, "big")
    toc = rig.packet(bytes((0x43, 0, 0, 0, 0, 0, 0, 0, 100, 0)))
    assert toc[:4] == bytes((0, 18, 1, 1)) and toc[5:7] == bytes((0x14, 1)) and toc[14] == 0xAA
    assert toc[16:20] == FRAMES.to_bytes(4, "big")
    assert rig.packet(bytes((0x43, 2, 0, 0, 0, 0, 0, 0, 100, 0)))[16:20] == bytes((0, 0, 3, 25))  # 2 s and 100 frames
    assert rig.packet(bytes((0x43, 0, 1, 0, 0, 0, 0, 0, 100, 0)))[:4] == bytes((0, 10, 1, 1))


@pytest.mark.parametrize(
    ("limit", "size"),
    [(2048, 2), (2048, 4), (0xFFFE, 2), (0xFFFE, 4), (0xFFFF, 2), (4096, 4), (5000, 2), (1000, 2), (1000, 4), (30, 2), (2, 2)],
)
def test_reads_in_blocks_of_any_size(rig: Rig, limit: int, size: int) -> None:
    count = 1 if limit < 100 else 9
    assert rig.packet(read_10(3, count), limit, size=size) == CONTENT[3 * 2048 : (3 + count) * 2048]
    assert not failed(rig)


def test_read_12_and_reads_of_nothing(rig: Rig) -> None:
    packet = bytes((0xA8, 0)) + (5).to_bytes(4, "big") + (2).to_bytes(4, "big")
    assert rig.packet(packet) == CONTENT[5 * 2048 : 7 * 2048]
    assert rig.packet(read_10(5, 0)) == b"" and not failed(rig)


def test_beyond_the_end(rig: Rig) -> None:
    assert rig.packet(read_10(FRAMES - 1, 2)) == b""
    assert failed(rig) and rig.read(SECONDARY + ERROR) >> 4 == 5
    assert sense(rig) == (5, 0x2100)
    assert sense(rig) == (0, 0)


def test_unknown_packet_and_a_limit_of_nothing(rig: Rig) -> None:
    rig.packet(bytes((0x55,)))
    assert failed(rig) and sense(rig) == (5, 0x2000)
    rig.packet(bytes((0x25,)), limit=0)
    assert failed(rig) and sense(rig) == (5, 0x2400)


def test_a_disc_that_cannot_be_read(rig: Rig, image: MemoryImage) -> None:
    image.broken = {10 * 4 + 1}
    assert rig.packet(read_10(8, 4)) == CONTENT[8 * 2048 : 10 * 2048]
    assert failed(rig) and sense(rig) == (3, 0x1100)


def test_tray(rig: Rig) -> None:
    rig.packet(bytes((0x1E, 0, 0, 0, 1)))
    rig.packet(bytes((0x1B, 0, 0, 0, 2)))
    assert failed(rig) and sense(rig) == (5, 0x5302)
    rig.packet(bytes((0x1E,)))
    rig.packet(bytes((0x1B, 0, 0, 0, 2)))
    assert not failed(rig)
    rig.packet(bytes((0,)))
    assert failed(rig) and sense(rig) == (2, 0x3A00)
    event = rig.packet(bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)))
    assert event == bytes((0, 6, 4, 16, 0, 1, 0, 0))
    rig.packet(bytes((0x1B, 0, 0, 0, 3)))
    rig.packet(bytes((0,)))
    assert not failed(rig)


def test_an_empty_disc() -> None:
    rig = Rig(cdroms=[MemoryImage(b"")])
    rig.packet(bytes((0x25,)))
    assert failed(rig) and sense(rig) == (2, 0x3A00)


def test_mode_sense_and_configuration(rig: Rig) -> None:
    answer = rig.packet(bytes((0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 128)))
    assert len(answer) == 28 and int.from_bytes(answer[:2], "big") == 26 and answer[8] == 0x2A
    assert len(rig.packet(bytes((0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 128)))) == 36
    rig.packet(bytes((0x5A, 0, 0x05, 0, 0, 0, 0, 0, 128)))
    assert failed(rig)
    answer = rig.packet(bytes((0x46, 0, 0, 0, 0, 0, 0, 0, 128)))
    assert int.from_bytes(answer[:4], "big") == len(answer) - 4 and answer[6:8] == b"\0\x08"


def test_dma_is_refused(rig: Rig) -> None:
    rig.write(SECONDARY + DEVICE, 0xA0)
    rig.write(SECONDARY + ERROR, 1)
    rig.write(SECONDARY + STATUS, 0xA0)
    assert rig.read(SECONDARY + STATUS) & 9 == 1


def test_device_reset(rig: Rig) -> None:
    rig.write(SECONDARY + STATUS, 0xA0)
    rig.write(SECONDARY + STATUS, 0x08)
    assert rig.read(SECONDARY + STATUS) == 0
    assert [rig.read(SECONDARY + r) for r in (ERROR, COUNT, MID, HIGH)] == [1, 1, 0x14, 0xEB]


def test_disk_and_cdrom_on_one_machine() -> None:
    rig = Rig(MemoryImage(bytes(1 << 20)), cdroms=[MemoryImage(CONTENT)])
    rig.command(0xEC)
    assert rig.data_in(0x1F0, 512)[0] == 0x40
    assert rig.packet(read_10(0, 1)) == CONTENT[:2048]


def test_save_in_the_middle_of_a_read(rig: Rig) -> None:
    for register, value in ((DEVICE, 0xA0), (ERROR, 0), (MID, 1000 & 0xFF), (HIGH, 1000 >> 8), (STATUS, 0xA0)):
        rig.write(SECONDARY + register, value)
    rig.data_out(SECONDARY, read_10(4, 3).ljust(12, b"\0"))
    got = rig.data_in(SECONDARY, 100)
    other = Rig(cdroms=[MemoryImage(CONTENT)])
    other.ide.restore(json.loads(json.dumps(rig.ide.save())))
    left = 900
    while other.read(SECONDARY + STATUS) & 8:
        got += other.data_in(SECONDARY, left)
        left = other.read(SECONDARY + MID) | other.read(SECONDARY + HIGH) << 8
    assert got == CONTENT[4 * 2048 : 7 * 2048]
