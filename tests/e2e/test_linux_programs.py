"""What people do with a Linux of Debian's, under rewriting: its compiler, its interpreter, file systems on virtio disks."""

from __future__ import annotations

import hashlib
import math
import re

import pytest
from guest_shell import quiet_shell
from real_daemon import ROOT, RealDaemon
from test_linux import needs_backend

from tests.guest_images import DISK_MODULES, GuestUnavailable, debian_programs, guest_image

IN = "chroot /mnt"
WORK = [ROOT / "guests" / "linux" / name for name in ("work.c", "work.pl")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiler_an_interpreter_and_file_systems(daemon: RealDaemon) -> None:
    needs_backend(daemon, "rewriting")
    try:
        image = guest_image("debian-686", DISK_MODULES)
        programs = debian_programs("i386", *WORK)
    except GuestUnavailable as error:
        pytest.skip(str(error))
    daemon.ok("image", "import", "programs", str(programs), timeout=300)
    process = daemon.spawn("run", "--backend", "rewriting", "--name", "a", "--memory", "256M", "--kernel", str(image.kernel),
                           "--initrd", str(image.initrd), "--append", "console=ttyS0", "--disk", "programs", "--disk", "size=64M")  # fmt: skip
    shell = quiet_shell(process)
    assert shell("mkdir -p /mnt; mount -t ext4 /dev/vda /mnt && mount -t devtmpfs dev /mnt/dev && mount -t proc proc /mnt/proc; echo $?") == "0"

    # Compiled there, run there; once more by the compiler itself.
    assert shell(f"{IN} /usr/bin/tcc -o /tmp/work /work.c -lm; echo $?") == "0"
    right = sum(math.sqrt(n) * math.sin(n) for n in range(1, 1001))
    for command in ("/tmp/work", "/usr/bin/tcc -run -lm /work.c"):
        said = shell(f"{IN} {command}")
        match = re.fullmatch(r"faults 500 500\nsignals 0 wrong, sum (\S+)\nchildren 40", said)
        assert match and math.isclose(float(match[1]), right, abs_tol=2e-6), said
    length, total, product = shell(f"{IN} /usr/bin/perl /work.pl").split()
    factorial = 1
    for n in range(1, 5001):
        factorial = factorial * n % 1000003
    assert (length, int(product)) == ("50000", factorial)
    assert math.isclose(float(total), sum(math.sqrt(n) * math.sin(n) for n in range(1, 20001)), abs_tol=1e-4)

    # A file system of its own: made, filled, synced, taken down, looked at, and read back.
    assert shell(f"{IN} /sbin/mke2fs -q -t ext4 /dev/vdb && mkdir /d && mount -t ext4 /dev/vdb /d; echo $?") == "0"
    known = hashlib.md5(b"".join(b"%d\n" % n for n in range(1, 200_001))).hexdigest()
    assert shell("seq 200000 >/d/numbers; dd if=/dev/urandom of=/d/noise bs=1M count=16 2>/dev/null; md5sum </d/numbers") == f"{known}  -"
    noise = shell("md5sum </d/noise")
    assert shell("for i in $(seq 200); do mkdir -p /d/t/$i; echo $i >/d/t/$i/f; done; rm -r /d/t/1??; sync; ls /d/t | wc -l") == "100"
    assert shell(f"umount /d; {IN} /sbin/e2fsck -fn /dev/vdb >/tmp/said 2>&1; echo $?") == "0"
    assert shell("mount -t ext4 /dev/vdb /d; md5sum </d/numbers; md5sum </d/noise; cat /d/t/77/f") == f"{known}  -\n{noise}\n77"
    assert shell("umount /d; dd if=/dev/vdb bs=1M 2>/dev/null | wc -c") == str(64 << 20)
    daemon.ok("kill", "a")
    assert process.end() == 137
