"""Guests that boot from a disk or a CD-ROM through the firmware, as `hvctl` makes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from guest_shell import BOOT_SECONDS
from real_daemon import RealDaemon, kernel, wait_for

from tests import grub_disk
from tests.guest_images import PROMPT, GuestUnavailable, guest_image

RESCUE = Path("/usr/lib/grub-rescue")
SEABIOS = Path("/usr/share/seabios/bios.bin")


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    for path, package in ((SEABIOS, "seabios"), (RESCUE / "grub-rescue-cdrom.iso", "grub-rescue-pc")):
        if not path.exists():
            pytest.skip(f"{path} is missing: apt-get install {package}")


def screen(daemon: RealDaemon, name: str) -> str:
    return daemon.ok("screen", name).stdout


def wait_screen(daemon: RealDaemon, name: str, text: str) -> None:
    wait_for(lambda: text in screen(daemon, name), lambda: screen(daemon, name))


def plain(text: str) -> str:
    """Without cursor movements, which the firmware puts anywhere."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def boot(daemon: RealDaemon, name: str, *options: str) -> None:
    daemon.ok("run", "-d", "--name", name, "--backend", "emulation", "--memory", "64M", *options)


@pytest.fixture(scope="module")
def imported(shared_daemon: RealDaemon) -> None:
    """The images boot, grub (a disk) and grubcd."""
    sources = {"boot": kernel("boot.img"), "grub": RESCUE / "grub-rescue-floppy.img", "grubcd": RESCUE / "grub-rescue-cdrom.iso"}
    for name, source in sources.items():
        kind = "cdrom" if name.endswith("cd") else "disk"
        shared_daemon.ok("image", "import", name, str(source), "--kind", kind)


@pytest.fixture
def images(daemon: RealDaemon, imported: None) -> RealDaemon:
    return daemon


@pytest.mark.parametrize("disk", ["boot", "boot,bus=ide"])
def test_a_boot_sector_ends_with_its_code(images: RealDaemon, disk: str) -> None:
    done = images.hvctl("run", "--name", "sector", "--backend", "emulation", "--memory", "16M", "--disk", disk)
    assert done.returncode == 7, done
    assert "boot sector" in plain(done.stdout) and "wrote and read back" in plain(done.stdout)


@pytest.mark.parametrize("options", [("--disk", "grub,bus=ide"), ("--disk", "grub"), ("--cdrom", "grubcd", "--boot", "cdrom")])
def test_grub_is_driven_from_the_screen(images: RealDaemon, options: tuple[str, ...]) -> None:
    """Its menu stands on the screen and on COM1; keys of the guest's keyboard move in it."""
    boot(images, "menu", *options)
    wait_screen(images, "menu", "GNU GRUB")
    images.ok("type", "menu", "--key", "down")
    wait_for(lambda: "*GNU (aka GNU/Hurd)" in screen(images, "menu"), lambda: screen(images, "menu"))
    images.ok("type", "menu", "c")
    wait_screen(images, "menu", "grub>")
    images.ok("type", "menu", "echo one two", "--key", "enter")
    wait_screen(images, "menu", "\none two")
    assert "GNU GRUB" in plain(images.ok("logs", "menu").stdout)


def test_a_clone_goes_on_in_the_boot_menu(images: RealDaemon) -> None:
    """ROM, screen, keyboard, CD-ROM: what a machine in its firmware has is in a snapshot, and reads its disc afterwards."""
    boot(images, "first", "--cdrom", "grubcd")
    wait_screen(images, "first", "GNU GRUB")
    images.ok("type", "first", "c")
    wait_screen(images, "first", "grub>")
    images.ok("clone", "first", "second")
    images.ok("delete", "--force", "first")
    if images.show("second")["state"] != "RUNNING":
        images.ok("start", "second")
    wait_screen(images, "second", "grub>")
    images.ok("type", "second", "ls (cd)/", "--key", "enter")
    wait_screen(images, "second", "\nboot/")


def test_without_a_kernel_the_first_disk_is_booted(images: RealDaemon) -> None:
    boot(images, "cd", "--cdrom", "grubcd")
    wait_screen(images, "cd", "GNU GRUB")
    assert any(region["kind"] == "ROM" for region in images.ok("mem", "map", "cd", "-o", "json").json["regions"])


def test_an_unbootable_disk_says_so_on_the_screen(daemon: RealDaemon) -> None:
    boot(daemon, "blank", "--disk", "size=1M", "--boot", "disk")
    wait_screen(daemon, "blank", "No bootable device.")
    assert daemon.show("blank")["state"] == "RUNNING"


def test_engine_public_refuses_with_the_reason(images: RealDaemon) -> None:
    done = images.hvctl("create", "--name", "no", "--backend", "emulation", "--engine", "public", "--disk", "boot")
    assert done.returncode and "real mode" in done.stderr and "engine native" in done.stderr


def test_too_little_memory(images: RealDaemon) -> None:
    done = images.hvctl("create", "--name", "no", "--backend", "emulation", "--memory", "1M", "--disk", "boot")
    assert done.returncode and "too few" in done.stderr and "4194304" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_machine_without_the_firmware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
    if damage == "short":
        for name in ("bios.bin", "vgabios-stdvga.bin"):
            (tmp_path / name).write_bytes((SEABIOS.parent / name).read_bytes())
        os.truncate(tmp_path / "bios.bin", 100_000)
    monkeypatch.setenv("HVD_FIRMWARE_DIR", str(tmp_path))
    with RealDaemon() as daemon:
        done = daemon.hvctl("create", "--name", "no", "--disk", "size=1M", "--boot", "disk")
        assert done.returncode
        assert ("bios.bin is not in" if damage == "missing" else "is damaged: it has 100000 bytes") in done.stderr
        assert "apt-get install" in done.stderr and "seabios" in done.stderr
        assert "no" not in daemon.listed()


@pytest.mark.slow
@pytest.mark.parametrize(("bus", "loader"), [("virtio", "linux"), ("ide", "linux16")])
def test_a_debian_kernel_from_a_disk_with_grub(daemon: RealDaemon, tmp_path: Path, bus: str, loader: str) -> None:
    """MBR, GRUB, its menu, kernel and initramfs from a file system on the disk: to the shell, and back by a reboot."""
    if lacking := grub_disk.missing():
        pytest.skip(lacking)
    try:
        debian = guest_image("debian-cloud", ("virtio_pci", "virtio_blk", "ata_piix", "sd_mod"))
    except GuestUnavailable as error:
        pytest.skip(str(error))
    disk = tmp_path / "debian.img"
    grub_disk.make_disk(disk, debian.kernel, debian.initrd, "console=ttyS0", loader)
    daemon.ok("image", "import", f"debian-{bus}", str(disk), "--kind", "disk")
    name = f"debian-{bus}"
    daemon.ok("run", "-d", "--name", name, "--backend", "emulation", "--memory", "256M", "--disk", f"debian-{bus},bus={bus}")
    daemon.wait_logs(name, PROMPT.decode(), BOOT_SECONDS)
    console = daemon.spawn("console", name)
    console.type("ls /sys/block\n")
    console.wait_out("vda" if bus == "virtio" else "sda")
    block = "vda" if bus == "virtio" else "sda"
    console.type(f"echo 'kept by the disk' | dd of=/dev/{block} bs=512 seek=2000 conv=sync,fsync\n")
    console.wait_out("records out")
    console.type(f"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/{block} bs=512 skip=2000 count=1 | tr a-z A-Z\n")
    console.wait_out("KEPT BY THE DISK")
    console.type("dmesg | grep 'RSDP'\n")
    console.wait_out("HVD")
    daemon.ok("delete", "--force", name)
    daemon.ok("image", "delete", f"debian-{bus}")
