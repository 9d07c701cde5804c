"""From nothing to GRUB's menu through SeaBIOS, on the serial console, `hvctl run` beside QEMU's own translator."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.figure import Figure, alone, compared, in_turns
from bench.lab import NATIVE, Daemon, Lab, Unavailable, end, qemu

RESCUE: Final = Path("/usr/lib/grub-rescue")
# What is booted -> its file, the kind and name of its image, the options of hvctl and of QEMU.
SOURCES: Final = {
    "an IDE disk": ("grub-rescue-floppy.img", "disk", "bench-ide", ("--disk", "bench-ide,bus=ide"), "if=ide"),
    "a CD-ROM": ("grub-rescue-cdrom.iso", "cdrom", "bench-cdrom", ("--cdrom", "bench-cdrom"), "if=ide,media=cdrom"),
    "a virtio disk": ("grub-rescue-cdrom.iso", "disk", "bench-virtio", ("--disk", "bench-virtio"), "if=virtio"),
}
MENU: Final = b"GNU GRUB"
ESCAPES: Final = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
MEBIBYTES: Final = 64
NAME: Final = "firmware"


def measure(lab: Lab) -> Iterator[Figure]:
    with lab.daemon() as daemon:
        for what in SOURCES:
            yield _menu(lab, daemon, what)


def _menu(lab: Lab, daemon: Daemon, what: str) -> Figure:
    file, kind, image, options, drive = SOURCES[what]
    lab.say(f"GRUB's menu from {what}")
    path = RESCUE / file
    if not path.exists():
        raise Unavailable(f"{path} is missing: apt install grub-rescue-pc")
    daemon.run_hvctl("image", "import", image, str(path), "--kind", kind)
    words = ["--boot", kind, *options]
    name = f"GRUB's menu from {what}"
    runs = lab.runs(5)
    ways: dict[str, Callable[[], float]] = {"hvd": lambda: _hvd(daemon, words)}
    try:
        program = qemu("x86_64")
    except Unavailable as missing:
        return alone(name, "s", in_turns(ways, runs)["hvd"], note=str(missing))
    ways["qemu"] = lambda: _to_menu(_qemu(program, path, drive))
    samples = in_turns(ways, runs)
    peer = "qemu-system-x86_64 -accel tcg, same image and firmware"
    return compared(name, "s", samples["hvd"], samples["qemu"], peer, note=f"{MEBIBYTES} MiB, {file}")


def _qemu(program: str, path: Path, drive: str) -> list[str]:
    # -nographic, so that its firmware prints to the serial port, too.
    return [
        program, "-accel", "tcg", "-m", str(MEBIBYTES), "-nographic", "-no-reboot", "-net", "none",
        "-drive", f"file={path},format=raw,{drive}", "-snapshot",
    ]  # fmt: skip


def _hvd(daemon: Daemon, words: list[str]) -> float:
    seconds = _to_menu(
        daemon.hvctl("run", *NATIVE, "--name", NAME, "--memory", f"{MEBIBYTES}M", *words), daemon.environment
    )
    daemon.run_hvctl("delete", "--force", NAME)
    return seconds


def _to_menu(command: list[str], environment: dict[str, str] | None = None) -> float:
    """From the start of the process to the menu's title on its stdout."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        assert process.stdout is not None
        data = bytearray()
        while MENU not in ESCAPES.sub(b"", data):  # the firmware moves the cursor wherever it was interrupted
            fresh = os.read(process.stdout.fileno(), 65536)
            if not fresh:
                raise Unavailable(f"{command!r} ended before its menu; it said: {bytes(data[-500:])!r}")
            data += fresh
        return time.monotonic() - started
    finally:
        end(process)
