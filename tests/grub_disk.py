"""A bootable disk as an installer leaves it: MBR, GRUB behind it, one partition with ext2. Made without root and loop devices."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

GRUB: Final = Path("/usr/lib/grub/i386-pc")
PARTITION_START: Final = 1 << 20  # bytes; GRUB lies between
PARTITION: Final = 64 << 20
SECTOR: Final = 512
BOOT_CODE: Final = 440
MODULES: Final = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "linux16")
TOOLS: Final = {"grub-mkimage": "grub-common", "mke2fs": "e2fsprogs"}


def missing() -> str:
    """What this machine lacks to make one; empty = nothing."""
    packages = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if not (GRUB / "boot.img").exists():
        packages.append("grub-pc-bin")
    return f"apt-get install {' '.join(packages)}" if packages else ""


def make_disk(target: Path, kernel: Path, initrd: Path, command_line: str, loader: str = "linux") -> None:
    """loader: GRUB's command, "linux" (32-bit protocol) or "linux16" (the kernel's real-mode code runs)."""
    initrd_command = loader.replace("linux", "initrd")
    with tempfile.TemporaryDirectory() as directory:
        root, core = Path(directory) / "root", Path(directory) / "core.img"
        (root / "boot" / "grub").mkdir(parents=True)
        shutil.copy(kernel, root / "boot" / "vmlinuz")
        shutil.copy(initrd, root / "boot" / "initrd")
        menu = [
            "set timeout=0",
            'menuentry "Debian" {',
            f"{loader} /boot/vmlinuz {command_line}",
            f"{initrd_command} /boot/initrd",
            "}",
        ]
        (root / "boot" / "grub" / "grub.cfg").write_text("\n".join(menu) + "\n")
        with target.open("wb") as file:
            file.truncate(PARTITION_START + PARTITION)
        blocks = str(PARTITION // 1024)
        options = ["-q", "-F", "-t", "ext2", "-b", "1024", "-d", str(root), "-E", f"offset={PARTITION_START}"]
        subprocess.run(["mke2fs", *options, str(target), blocks], check=True, capture_output=True)
        prefix = "(hd0,msdos1)/boot/grub"
        subprocess.run(["grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", str(core), *MODULES], check=True)
        entry = struct.pack(
            "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", PARTITION_START // SECTOR, PARTITION // SECTOR
        )
        boot = (GRUB / "boot.img").read_bytes()[:BOOT_CODE] + bytes(6) + entry + bytes(48) + b"\x55\xaa"
        image = boot + core.read_bytes()
        assert len(boot) == SECTOR and len(image) <= PARTITION_START
        with target.open("rb+") as file:
            file.write(image)
