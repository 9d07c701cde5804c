"""The firmware's files, where they lie in memory, and the processor's state in which it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvd.board import firmware
from hvd.board.memory import GuestMemory, RegionKind
from hvd.errors import HvdError

KIB, MIB = 1 << 10, 1 << 20


def bios(size: int = 128 * KIB) -> bytes:
    return bytes(range(256)) * ((size - 16) // 256) + bytes(range(240)) + b"\xea\x5b\xe0\x00\xf0" + bytes(11)


def video(units: int = 8) -> bytes:
    rom = bytearray(b"\x55\xaa" + bytes((units,)) + bytes(units * 512 - 3))
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With good files in it."""
    (tmp_path / firmware.BIOS).write_bytes(bios())
    (tmp_path / firmware.VIDEO_BIOS).write_bytes(video())
    monkeypatch.setenv(firmware.ENVIRONMENT, str(tmp_path))
    return tmp_path


def test_good_files(directory: Path) -> None:
    assert firmware.read_bios() == bios()
    assert firmware.read_video_bios() == video()
    firmware.check(4 * MIB)


@pytest.mark.parametrize("name", [firmware.BIOS, firmware.VIDEO_BIOS])
def test_missing(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(HvdError) as caught:
        firmware.check(64 * MIB)
    assert caught.value.reason == "FIRMWARE_MISSING"
    assert name in str(caught.value) and "apt-get install seabios" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", bios()[:-1], bios()[: 64 * KIB], bios()[:-16] + bytes(16), bios() + bytes(4096), bios()[:-4096]]
)
def test_damaged_bios(directory: Path, content: bytes) -> None:
    (directory / firmware.BIOS).write_bytes(content)
    with pytest.raises(HvdError) as caught:
        firmware.check(64 * MIB)
    assert caught.value.reason == "FIRMWARE_DAMAGED"


@pytest.mark.parametrize("content", [b"", b"\x55\xaa", b"\x55\xaa\x00", video()[:-1], video()[:-1] + b"\x77", bytes(4096)])
def test_damaged_video_bios(directory: Path, content: bytes) -> None:
    (directory / firmware.VIDEO_BIOS).write_bytes(content)
    with pytest.raises(HvdError) as caught:
        firmware.check(64 * MIB)
    assert caught.value.reason == "FIRMWARE_DAMAGED"


def test_too_little_memory(directory: Path) -> None:
    with pytest.raises(HvdError) as caught:
        firmware.check(1 * MIB)
    assert caught.value.reason == "MEMORY_TOO_SMALL"


def test_rom_at_the_end_of_4_gib(directory: Path) -> None:
    with GuestMemory(2 * MIB, bios()) as memory:
        regions = {region.owner: region for region in memory.regions()}
        rom = regions["firmware"]
        assert (rom.start, rom.length, rom.kind) == (4096 * MIB - 128 * KIB, 128 * KIB, RegionKind.ROM)
        assert memory.regions()[-1] == rom
        assert memory.read(0xFFFF_FFF0, 16) == bios()[-16:]
        for address, length in ((0xFFFF_FFF0, 17), (rom.start - 1, 2)):
            with pytest.raises(HvdError):
                memory.read(address, length)
        with pytest.raises(HvdError):
            memory.write(0xFFFF_FFF0, b"x")
        with pytest.raises(ValueError, match="overlaps firmware"):
            memory.add_mmio(0xFFFF_0000, 0x1000, "device")
        memory.write(0, b"x")
        memory.clear_all()
        assert memory.read(0, 1) == b"\0" and memory.rom == bios()
        assert memory.size == 2 * MIB


def test_above_4_gib_the_rom_is_between() -> None:
    with GuestMemory(3 * 1024 * MIB + 4096, bios()) as memory:
        kinds = [region.kind for region in memory.regions()]
        assert kinds == [RegionKind.RAM, RegionKind.HOLE, RegionKind.ROM, RegionKind.RAM]
        memory.write(4096 * MIB, b"high")
        assert memory.read(4096 * MIB, 4) == b"high" and memory.rom == bios()


@pytest.mark.parametrize("length", [1, 4095, 2 << 30])
def test_rom_of_a_wrong_size(length: int) -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return length

    with pytest.raises(ValueError):
        GuestMemory(2 * MIB, Long())


def test_entry(directory: Path) -> None:
    with GuestMemory(2 * MIB, bios()) as memory:
        state = firmware.load(memory)
        assert memory.read(0xE0000, 128 * KIB) == bios()
    assert state.registers["eip"] == 0xFFF0 and state.registers["eflags"] == 2
    assert (state.segments["cs"].selector, state.segments["cs"].base) == (0xF000, 0xFFFF_0000)
    assert state.cr0 & 1 == 0


def test_a_larger_bios_shows_its_end_below_1_mib(directory: Path) -> None:
    rom = bytes(128 * KIB) + bios()
    with GuestMemory(2 * MIB, rom) as memory:
        firmware.load(memory)
        assert memory.read(0xE0000, 128 * KIB) == bios()
        assert memory.read(0xFFFC_0000, 4) == bytes(4)
