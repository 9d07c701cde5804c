"""Single operations of a 32-bit Linux guest (guests/linux/ops.c) under binary rewriting, beside QEMU's translator and the host itself."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bench.boot import REWRITING
from bench.figure import Figure, compared
from bench.lab import Daemon, Lab, Unavailable, end, kernel, qemu
from tests.guest_images import PROMPT, GuestImage, GuestUnavailable, guest_image

# Row of guests/linux/ops.c -> what it is, and the goal beside the host.
OPERATIONS: Final = {
    "compute-1000": ("1000 rounds of a hash in a program", "<= 1.05"),
    "getpid": ("getpid by int 0x80", ""),
    "ping-pong": ("a byte there and back between two processes", "<= 1.5"),
    "fork-exit": ("fork, exit, wait", ""),
    "fork-exec": ("fork, exec, exit, wait", "<= 1.5"),
    "page-touch": ("first touch of an anonymous page", ""),
    "file-write-read-4k": ("write and read of 4 KiB of a file", ""),
}
MEBIBYTES: Final = 128
SECONDS: Final = 300.0
NAME: Final = "linux-ops"
DONE: Final = b"ops: done"
_LINE = re.compile(r"^op (\S+) (\d+) \d+$", re.MULTILINE)


def measure(lab: Lab) -> Iterator[Figure]:
    program, emulator = kernel("ops"), qemu("i386")
    try:
        own, other = guest_image("linux-i386"), guest_image("debian-686", programs=[program])
    except GuestUnavailable as error:
        raise Unavailable(str(error)) from error
    image = GuestImage(own.kernel, other.initrd, own.append)
    command = [
        emulator, "-accel", "tcg", "-m", str(MEBIBYTES), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
    ]  # fmt: skip
    samples: dict[str, list[dict[str, float]]] = {"hvd": [], "qemu": [], "host": []}
    with lab.daemon() as daemon:
        for turn in range(-1, lab.runs(5)):  # the first turn warms up
            lab.say(f"operations of a Linux guest, turn {turn + 1}")
            found = {"hvd": guest_costs(daemon, image), "qemu": _in_guest(command, None), "host": _costs(_on_host(str(program)))}
            for side, costs in found.items() if turn >= 0 else ():
                samples[side].append(costs)
    for operation, (what, goal) in OPERATIONS.items():
        own_costs, qemu_costs, host_costs = ([run[operation] for run in samples[side]] for side in ("hvd", "qemu", "host"))
        yield compared(f"Linux guest, rewriting: {what}", "us", own_costs, qemu_costs, "qemu-system-i386 -accel tcg, same guest")
        yield compared(f"Linux guest, rewriting: {what}", "us", own_costs, host_costs, "the host, same program", target=goal)


def guest_costs(daemon: Daemon, image: GuestImage, backend: Sequence[str] = REWRITING) -> dict[str, float]:
    """Seconds of each of OPERATIONS; the initrd has /bin/ops."""
    command = daemon.hvctl(
        "run", *backend, "--name", NAME, "--memory", f"{MEBIBYTES}M", "--kernel", str(image.kernel), "--initrd", str(image.initrd),
        "--append", image.append,
    )  # fmt: skip
    try:
        return _in_guest(command, daemon.environment)
    finally:
        daemon.run_hvctl("delete", "--force", NAME)


def _in_guest(command: list[str], environment: dict[str, str] | None) -> dict[str, float]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        _read(process, PROMPT)
        assert process.stdin is not None
        process.stdin.write(b"mkdir -p /tmp; /bin/ops\n")
        process.stdin.flush()
        return _costs(_read(process, DONE))
    finally:
        end(process)


def _read(process: subprocess.Popen[bytes], wanted: bytes) -> str:
    assert process.stdout is not None
    data, limit = bytearray(), time.monotonic() + SECONDS
    while wanted not in data:
        fresh = os.read(process.stdout.fileno(), 65536)
        if not fresh or time.monotonic() > limit:
            raise Unavailable(f"{process.args!r} did not say {wanted!r}: {bytes(data[-500:])!r}")
        data += fresh
    return data.decode(errors="replace")


def _on_host(program: str) -> str:
    return subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True).stdout.decode()


def _costs(text: str) -> dict[str, float]:
    """Seconds of each operation. Raises Unavailable."""
    found = {name: int(nanoseconds) * 1e-9 for name, nanoseconds in _LINE.findall(text.replace("\r", ""))}
    if missing := OPERATIONS.keys() - found.keys():
        raise Unavailable(f"ops did not say {sorted(missing)} but {text[-300:]!r}")
    return found
