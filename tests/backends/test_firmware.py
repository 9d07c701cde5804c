"""Machines that boot from disks and CD-ROMs through the firmware, on every backend that runs real mode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, kernel

from hvd.backends.contract import Capability
from hvd.board import firmware
from hvd.board.block.overlay import create_overlay
from hvd.board.spec import DiskSpec
from hvd.errors import HvdError

GRUB = Path("/usr/lib/grub-rescue")


@pytest.fixture(autouse=True)
def boots(bench: Bench) -> None:
    """Skips what a backend says it cannot do."""
    if Capability.FIRMWARE not in bench.backend.capabilities:
        pytest.skip(f"{bench.backend.name} does not run firmware")
    try:
        firmware.check(16 << 20)
    except HvdError as error:
        pytest.skip(str(error))
    try:
        bench.backend.check(bench.spec("boot.img", **booting(disk(kernel("boot.img")))))
    except HvdError as error:
        assert error.reason == "BACKEND_UNAVAILABLE" and "real mode" in str(error) and "engine native" in str(error)
        pytest.skip(str(error))


def disk(path: Path, overlay: Path | None = None, *, bus: str = "ide", cdrom: bool = False) -> DiskSpec:
    granule = 2048 if cdrom else 512
    size = -(-path.stat().st_size // granule) * granule
    if overlay is not None:
        create_overlay(overlay, size, path)
    return DiskSpec("disk0", str(path), str(overlay or ""), size, bus, cdrom)


def booting(*disks: DiskSpec) -> dict[str, Any]:
    boot = "cdrom" if disks[0].cdrom else "disk"
    return {"kernel": None, "boot": boot, "disks": disks, "flat_load_address": 0}


def rescue(name: str) -> Path:
    path = GRUB / name
    if not path.exists():
        pytest.skip(f"{path} is missing: apt-get install grub-rescue-pc")
    return path


@pytest.mark.parametrize("bus", ["ide", "virtio"])
async def test_a_boot_sector_runs_to_its_end(bench: Bench, tmp_path: Path, bus: str) -> None:
    """Real mode, BIOS services, A20, 16-bit protected mode, unreal mode, 32-bit protected mode (guests/boot.S)."""
    one = disk(kernel("boot.img"), tmp_path / "overlay", bus=bus)
    status, console = await bench.run("boot.img", **booting(one))
    assert (status.state, status.reason, status.exit_code) == ("STOPPED", "EXITED", 7), (status, console)
    for line in ("SeaBIOS", "boot sector", "second sector", "wrote and read back", "real mode with 4 GiB"):
        assert line in console


async def test_what_was_written_is_there_at_the_next_boot(bench: Bench, tmp_path: Path) -> None:
    base = kernel("boot.img")
    one = disk(base, tmp_path / "overlay")
    before = base.read_bytes()
    for _ in range(2):
        status, _ = await bench.run("boot.img", **booting(one))
        assert status.exit_code == 7
    assert base.read_bytes() == before


async def test_a_read_only_disk_cannot_be_written(bench: Bench) -> None:
    """INT 13h reports the disk's error: the guest ends with the number of that step."""
    status, console = await bench.run("boot.img", **booting(disk(kernel("boot.img"))))
    assert (status.reason, status.exit_code) == ("EXITED", 4), (status, console)


async def test_an_unbootable_disk_says_so(bench: Bench, tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(512))
    running = await bench.start("boot.img", **booting(disk(empty)))
    await running.wrote("not a bootable disk")
    await running.wrote("No bootable device")


async def test_a_cdrom_without_a_boot_record_says_so(bench: Bench, tmp_path: Path) -> None:
    empty = tmp_path / "empty.iso"
    empty.write_bytes(bytes(64 << 10))
    running = await bench.start("boot.img", **booting(disk(empty, cdrom=True)))
    await running.wrote("Could not read from CDROM")
    await running.wrote("No bootable device")


async def test_a_cdrom_cut_under_the_guest(bench: Bench, tmp_path: Path) -> None:
    """The image ends earlier than it did when it was opened: read errors for the guest, nothing for the runner."""
    iso = tmp_path / "cut.iso"
    iso.write_bytes(rescue("grub-rescue-cdrom.iso").read_bytes())
    running = await bench.start("boot.img", start_paused=True, **booting(disk(iso, cdrom=True)))
    os.truncate(iso, 36 << 10)
    await running.instance.resume()
    await running.wrote("No bootable device")


@pytest.mark.parametrize(
    ("image", "bus", "cdrom"),
    [("grub-rescue-floppy.img", "ide", False), ("grub-rescue-cdrom.iso", "virtio", False), ("grub-rescue-cdrom.iso", "ide", True)],
)
async def test_grub_shows_its_menu(bench: Bench, image: str, bus: str, cdrom: bool) -> None:
    running = await bench.start("boot.img", memory_bytes=64 << 20, **booting(disk(rescue(image), bus=bus, cdrom=cdrom)))
    for text in ("GNU GRUB", "Memtest86+", "The highlighted entry will be executed"):  # in the order in which it comes to paint them
        await running.wrote(text)


async def test_only_the_wanted_kind_of_disk_is_booted(bench: Bench, tmp_path: Path) -> None:
    """The first disk of the machine is bootable, but the CD-ROM is asked for."""
    empty = tmp_path / "empty.iso"
    empty.write_bytes(bytes(64 << 10))
    disks = (disk(kernel("boot.img")), disk(empty, cdrom=True))
    running = await bench.start("boot.img", **booting(*disks) | {"boot": "cdrom"})
    console = await running.wrote("No bootable device")
    assert "boot sector" not in console


async def test_the_first_disk_is_booted_whatever_its_bus(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(64 << 10))
    disks = (disk(kernel("boot.img"), tmp_path / "overlay", bus="virtio"), disk(other))
    status, console = await bench.run("boot.img", **booting(*disks))
    assert status.exit_code == 7, console


async def test_reset_boots_anew(bench: Bench) -> None:
    running = await bench.start("boot.img", memory_bytes=64 << 20, **booting(disk(rescue("grub-rescue-floppy.img"))))
    await running.wrote("The highlighted entry will be executed")
    first = running.console().count("SeaBIOS")
    await running.instance.reset()
    await running.wrote_times("SeaBIOS", 2 * first)
    await running.wrote_times("GNU GRUB", 2)


async def test_the_firmware_hands_the_boards_tables_on(bench: Bench, tmp_path: Path) -> None:
    """ACPI: what etc/table-loader tells SeaBIOS to build; MP tables: its own, for the same wiring."""
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(512))
    running = await bench.start("boot.img", **booting(disk(empty)))
    await running.wrote("No bootable device")
    area = await running.instance.read_memory(0xE0000, 0x20000, virtual=False)
    rsdp = area[area.index(b"RSD PTR ") :][:36]
    assert rsdp[9:15] == b"HVD   " and sum(rsdp) & 0xFF == 0
    xsdt = int.from_bytes(rsdp[24:32], "little")
    header = await running.instance.read_memory(xsdt, 36, virtual=False)
    table = await running.instance.read_memory(xsdt, int.from_bytes(header[4:8], "little"), virtual=False)
    assert table[:4] == b"XSDT" and sum(table) & 0xFF == 0
    pointers = [int.from_bytes(table[at : at + 8], "little") for at in range(36, len(table), 8)]
    assert [await running.instance.read_memory(at, 4, virtual=False) for at in pointers] == [b"FACP", b"APIC"]
    floating = area[area.index(b"_MP_") :][:16]
    mp = await running.instance.read_memory(int.from_bytes(floating[4:8], "little"), 1024, virtual=False)
    length, count = int.from_bytes(mp[4:6], "little"), int.from_bytes(mp[34:36], "little")
    inputs = {}
    at = 44
    for _ in range(count):
        if mp[at] == 3:
            inputs[mp[at + 4], mp[at + 5]] = mp[at + 7]
        at += 20 if mp[at] == 0 else 8
    assert at == length and sum(mp[:length]) & 0xFF == 0
    isa = max(bus for bus, _ in inputs)
    assert inputs[isa, 4] == 4 and inputs[isa, 0] == 2
