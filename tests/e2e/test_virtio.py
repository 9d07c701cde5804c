"""PCI and virtio under Debian's stock kernels with modules of their own: each way of interrupting, the console, a disk over a reboot."""

from __future__ import annotations

import re

import pytest
from guest_shell import Shell, quiet_shell
from real_daemon import RealDaemon

from tests.guest_images import DISK_MODULES, GuestUnavailable, guest_image

MIB = 1 << 20


def start(daemon: RealDaemon, name: str, append: str, *more: str) -> Shell:
    try:
        image = guest_image(name, DISK_MODULES)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    process = daemon.spawn("run", "--backend", "emulation", "--name", "a", "--kernel", str(image.kernel), "--initrd", str(image.initrd),
                           "--append", append, "--disk", "size=64M", *more)  # fmt: skip
    return quiet_shell(process)


@pytest.mark.parametrize(
    ("name", "append", "interrupts"),
    [
        ("debian-cloud", "console=ttyS0", "PCI-MSI .*virtio0-req"),
        pytest.param("debian-cloud", "console=ttyS0 acpi=off pci=nomsi", "virtio0", marks=pytest.mark.slow),
        pytest.param("debian-cloud", "console=ttyS0 acpi=off noapic nolapic pci=nomsi", "XT-PIC .*virtio0", marks=pytest.mark.slow),
        pytest.param("debian-686", "console=ttyS0", "PCI-MSI .*virtio0-req", marks=pytest.mark.slow),
        pytest.param("debian-686", "console=ttyS0 acpi=off noapic nolapic pci=nomsi", "XT-PIC .*virtio0", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_a_disk_with_each_kind_of_interrupt(daemon: RealDaemon, name: str, append: str, interrupts: str) -> None:
    """Written, and found again after the guest has restarted itself."""
    shell = start(daemon, name, append, "--on-reset", "restart")
    found = shell("for d in /sys/bus/pci/devices/*; do echo ${d##*/} $(cat $d/vendor $d/device); done")
    assert "0000:00:00.0 0x8086 0x1237" in found and "0000:00:01.0 0x8086 0x7000" in found and "0000:00:02.0 0x1af4 0x1042" in found
    assert shell("cat /sys/block/vda/size /sys/block/vda/serial; echo") == f"{64 * MIB // 512}\ndisk0"
    made = shell("mke2fs -q /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && seq 100000 >/mnt/numbers && sync && md5sum </mnt/numbers")
    assert re.fullmatch(r"[0-9a-f]{32}  -", made.splitlines()[-1]), made
    assert re.search(interrupts, shell("cat /proc/interrupts"))
    assert "1+0 records out" in shell("dd if=/dev/hwrng of=/dev/null bs=32 count=1 2>&1")
    shell.type("umount /mnt; reboot -f\n")
    shell.boot_again()
    assert shell("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && md5sum </mnt/numbers").splitlines()[-1] == made.splitlines()[-1]


@pytest.mark.timeout(300)
def test_hvc0_is_a_console_too(daemon: RealDaemon) -> None:
    shell = start(daemon, "debian-cloud", "console=ttyS0 console=hvc0")
    assert shell("tty") == "/dev/hvc0"
    assert shell("echo $((6*7))") == "42"
    # As much as it can: nothing is lost between guest and viewer.
    assert len(shell("seq 20000").split()) == 20000
    assert shell("echo over COM1 >/dev/ttyS0") == "over COM1"
    assert "over COM1" in daemon.ok("logs", "a").stdout
