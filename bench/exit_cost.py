"""What one access to a device costs the guest, device by device, beside QEMU's translator: port and MMIO reads in a loop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.figure import Figure, alone, compared
from bench.lab import NATIVE, SMALL_MEMORY, Daemon, Lab, Unavailable, end, kernel, qemu

NAME: Final = "exits"
FAST, SLOW = 2_000_000, 20_000  # accesses to each device in C, in Python; QEMU has all in C
# What guests/exits.c prints -> what it is.
DEVICES: Final = {
    "8259": "8259 (port, in C)",
    "8254": "8254 (port, in C)",
    "uart": "UART (port, in C)",
    "unclaimed-port": "a port that nobody claims",
    "local-apic": "local APIC (MMIO, in C)",
    "ioapic": "IOAPIC (MMIO, in C)",
    "cmos": "CMOS clock (port, in C)",
    "keyboard": "keyboard controller (port, in C)",
    "vga": "VGA register (port, in C)",
    "pci-configuration": "PCI configuration (port, in C)",
    "virtio-configuration": "virtio common configuration (MMIO, in C)",
    "virtio-isr": "virtio ISR status (MMIO, in C)",
    "acpi": "ACPI PM1 (port, in C)",
    "reset-control": "reset control register (port, in Python)",
}


def measure(lab: Lab) -> Iterator[Figure]:
    path = kernel("exits.elf")
    own: dict[str, list[float]] = {name: [] for name in DEVICES}
    beside: dict[str, list[float]] = {name: [] for name in DEVICES}
    share = 10 if lab.quick else 1
    program = missing = ""
    try:
        program = qemu("i386")
    except Unavailable as problem:
        missing = str(problem)
    with lab.daemon() as daemon:
        for turn in range(-1, lab.runs(7)):  # the first turn warms up
            lab.say(f"cost of an access, turn {turn + 1}")
            found_own = _hvd(daemon, path, f"fast={FAST // share} slow={SLOW // share}")
            found_beside = _qemu(program, path, f"fast={FAST // share} slow={FAST // share}") if program else {}
            for samples, found in ((own, found_own), (beside, found_beside)):
                for name, seconds in found.items():
                    if turn >= 0:
                        samples[name].append(seconds)
    for name, what in DEVICES.items():
        if len(beside[name]) == len(own[name]):
            yield compared(
                f"an access: {what}", "s", own[name], beside[name], "qemu-system-i386 -accel tcg, same guest"
            )
        else:
            yield alone(f"an access: {what}", "s", own[name], note=missing)


def _hvd(daemon: Daemon, path: Path, append: str) -> dict[str, float]:
    command = daemon.hvctl(
        "run", *NATIVE, "--name", NAME, "--memory", str(SMALL_MEMORY), "--kernel", str(path), "--append", append
    )  # fmt: skip
    try:
        return _costs(command, daemon.environment)
    finally:
        daemon.run_hvctl("delete", "--force", NAME)


def _qemu(program: str, path: Path, append: str) -> dict[str, float]:
    command = [
        program, "-accel", "tcg", "-m", str(SMALL_MEMORY >> 20), "-nodefaults", "-vga", "std", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-device", "isa-debug-exit,iobase=0xf4", "-device", "virtio-rng-pci,disable-legacy=on", "-kernel", str(path),
        "-append", append,
    ]  # fmt: skip
    return _costs(command, None)


def _costs(command: list[str], environment: dict[str, str] | None) -> dict[str, float]:
    """Seconds of an access, by device. The lines before and after each loop are timed as they come."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout is not None
    costs: dict[str, float] = {}
    name, count, began = "", 1, 0.0
    lines: list[bytes] = []
    try:
        for line in process.stdout:
            now, words = time.monotonic(), line.decode(errors="replace").split()
            lines.append(line)
            if words[:1] == ["done"] and name:
                costs[name], name = (now - began) / count, ""
            elif len(words) == 2 and words[0] in DEVICES:
                name, count, began = words[0], int(words[1]), now
    finally:
        end(process)
    if set(costs) != set(DEVICES):
        raise Unavailable(f"{command!r} said {b''.join(lines)[-500:]!r}")
    return costs
