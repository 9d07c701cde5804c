"""Sequential and random I/O of a Linux guest on a virtio disk, beside QEMU's translator with the same kernel and as large a file."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.figure import Figure, alone, compared
from bench.lab import MIB, NATIVE, Daemon, Lab, Unavailable, end, kernel, qemu, read_until
from tests.guest_images import DISK_MODULES, PROMPT, GuestImage, GuestUnavailable, guest_image

DISK_MIB: Final = 256
GUEST_MIB: Final = 256
NAME: Final = "disk"
KIB_4, MIB_1 = 4096, MIB
# Name of the figure -> words of diskrate (guests/linux/diskrate.c): what, order, cache, bytes of a request; requests.
# The first fills the disk: what was never written need not be read from anywhere.
WORKLOADS: Final = {
    "sequential write, 1 MiB, O_DIRECT": ("write sequential direct", MIB_1, DISK_MIB),
    "sequential read, 1 MiB, O_DIRECT": ("read sequential direct", MIB_1, DISK_MIB),
    "sequential read through the guest's page cache": ("read sequential cached", MIB_1, DISK_MIB),
    "random read, 4 KiB, O_DIRECT": ("read random direct", KIB_4, 4096),
    "random write, 4 KiB, O_DIRECT": ("write random direct", KIB_4, 4096),
}  # fmt: skip
RESULT: Final = re.compile(rb"diskrate: \d+ requests, (\d+) bytes, (\d+) ns")


def measure(lab: Lab) -> Iterator[Figure]:
    try:
        image = guest_image("debian-cloud", DISK_MODULES, [kernel("diskrate")])
    except GuestUnavailable as error:
        raise Unavailable(str(error)) from error
    own: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    beside: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    program = missing = ""
    try:
        program = qemu("x86_64")
    except Unavailable as problem:
        missing = str(problem)
    with lab.daemon() as daemon:
        # One boot serves all workloads; the two take turns.
        for turn in range(lab.runs(5)):
            lab.say(f"virtio-blk, turn {turn + 1}")
            _take(_hvd(daemon, image, lab.quick), own)
            if program:
                _take(_qemu(lab, program, image, lab.quick), beside)
    note = f"Debian's cloud kernel, {GUEST_MIB} MiB, disk of {DISK_MIB} MiB, by the guest's clock"
    for name in WORKLOADS:
        title = f"virtio-blk: {name}"
        if not program:
            yield alone(title, "bytes/s", own[name], note=missing)
            continue
        peer = "qemu-system-x86_64 -accel tcg, virtio-blk-pci, raw file, cache=writeback"
        yield compared(title, "bytes/s", own[name], beside[name], peer, target=">= 1", note=note)


def _take(rates: dict[str, float], into: dict[str, list[float]]) -> None:
    for name, rate in rates.items():
        into[name].append(rate)


def _hvd(daemon: Daemon, image: GuestImage, quick: bool) -> dict[str, float]:
    command = daemon.hvctl(
        "run", *NATIVE, "--name", NAME, "--memory", f"{GUEST_MIB}M", "--kernel", str(image.kernel),
        "--initrd", str(image.initrd), "--append", image.append, "--disk", f"size={DISK_MIB}M",
    )  # fmt: skip
    try:
        return _rates(command, daemon.environment, quick)
    finally:
        daemon.run_hvctl("delete", "--force", NAME)


def _qemu(lab: Lab, program: str, image: GuestImage, quick: bool) -> dict[str, float]:
    disk = lab.new_directory("qemu") / "disk"
    disk.touch()
    os.truncate(disk, DISK_MIB * MIB)
    try:
        return _rates(_qemu_command(program, image, disk), None, quick)
    finally:
        disk.unlink()


def _qemu_command(program: str, image: GuestImage, disk: Path) -> list[str]:
    return [
        program, "-accel", "tcg", "-m", str(GUEST_MIB), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-drive", f"file={disk},format=raw,if=none,id=disk,cache=writeback", "-device", "virtio-blk-pci,drive=disk",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
    ]  # fmt: skip


def _rates(command: list[str], environment: dict[str, str] | None, quick: bool) -> dict[str, float]:
    """Bytes a second of every workload, in a guest that is booted for them."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    rates: dict[str, float] = {}
    try:
        read_until(process, PROMPT)
        for name, (words, size, count) in WORKLOADS.items():
            count = count if words.startswith("write sequential") or not quick else max(16, count // 8)
            process.stdin.write(
                b"echo 3 >/proc/sys/vm/drop_caches; diskrate /dev/vda %s %d %d\n" % (words.encode(), size, count)
            )
            process.stdin.flush()
            rates[name] = _result(process)
    finally:
        end(process)
    return rates


def _result(process: subprocess.Popen[bytes]) -> float:
    assert process.stdout is not None
    said = b""
    while (found := RESULT.search(said)) is None:
        fresh = os.read(process.stdout.fileno(), 65536)
        said += fresh
        if not fresh or b"diskrate: cannot" in said or b"diskrate: an I/O" in said:
            raise Unavailable(f"{process.args!r} said {said[-500:]!r}")
    return int(found[1]) / (int(found[2]) / 1e9)
