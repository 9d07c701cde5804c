"""Runs tests where control groups have version 2 alone, with all its controllers, whatever this host has: in User-Mode Linux
(Debian's user-mode-linux: a kernel as a process; its root is the host's, read-only), with a disk of its own for what they write.

    .venv/bin/python -m tests.version_2 tests/backends/test_container_figures.py -q
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
TOOLS: Final = ROOT / "build" / "tools" / "usr"  # where deploy/packages.sh unpacks it
MEMORY: Final = "1G"
DISK_BYTES: Final = 2 << 30
DONE: Final = "the tests ended with"
# The paths of unix sockets are short: everything below /mnt, which is the disk.
INIT: Final = """#!/bin/sh
export PATH={path} HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run
mount -t devtmpfs dev /dev; mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t cgroup2 none /sys/fs/cgroup && echo '+cpu +io +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control
busybox insmod {overlay}
mount -t ext4 /dev/ubda /mnt && mkdir -p /mnt/tmp && chmod 1777 /mnt/tmp && export TMPDIR=/mnt/tmp
ip link set lo up
cd {root}
{command} -p no:cacheprovider --color=no --basetemp=/mnt/tmp/pytest 2>&1
echo {done} $?
umount /mnt
busybox halt -f
"""


class Unavailable(Exception):
    """It cannot be done here; the text is a reason to skip."""


def run(arguments: list[str], seconds: float = 900.0) -> tuple[int, str]:
    """pytest with these arguments: its exit code, what the console showed. Raises Unavailable."""
    program = shutil.which("linux.uml") or shutil.which("linux.uml", path=str(TOOLS / "bin"))
    if program is None:
        raise Unavailable("User-Mode Linux is missing: sh deploy/packages.sh")
    overlay = next(Path(program).parents[1].glob("lib/uml/modules/*/kernel/fs/overlayfs/overlay.ko"), None)
    if overlay is None or os.geteuid() != 0:
        raise Unavailable("needs root, and user-mode-linux with its modules")
    with tempfile.TemporaryDirectory(prefix="hvd-v2-") as name:
        directory = Path(name)
        disk, init = directory / "disk", directory / "init"
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(disk)], check=True)
        command = shlex.join([sys.executable, "-m", "pytest", *arguments])
        init.write_text(INIT.format(path=os.environ["PATH"], overlay=overlay, root=ROOT, command=command, done=DONE))
        init.chmod(0o755)
        try:
            done = subprocess.run(
                [program, "rootfstype=hostfs", "rootflags=/", "ro", f"ubd0={disk}", f"mem={MEMORY}", f"init={init}", f"umid={directory.name}",
                 "con=null", "con0=null,fd:1"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False,
                env={**os.environ, "HOME": name, "TMPDIR": name},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return 124, (error.stdout or b"").decode(errors="replace")
    text = done.stdout.decode(errors="replace")
    words = text.rpartition(DONE)[2].split() if DONE in text else []
    return int(words[0]) if words and words[0].isdigit() else 125, text


def main() -> int:
    try:
        code, text = run(sys.argv[1:])
    except Unavailable as problem:
        print(problem, file=sys.stderr)
        return 2
    print(text)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
