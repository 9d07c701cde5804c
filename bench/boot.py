"""Boot of real Linux kernels to a shell prompt, `hvctl run` beside QEMU's own translator."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench.figure import Figure, alone, compared, in_turns
from bench.lab import NATIVE, Daemon, Lab, Unavailable, end, kernel, qemu, read_until
from tests.guest_images import PROMPT, GuestImage, GuestUnavailable, guest_image

# Guest (tests/guest_images.py) -> what it is, QEMU's architecture, MiB of memory.
GUESTS: Final = {
    "linux-i386": ("own Linux, i386", "i386", 128),
    "linux-x86_64": ("own Linux, x86_64", "x86_64", 128),
    "debian-cloud": ("Debian's cloud kernel, amd64", "x86_64", 256),
    "debian-686": ("Debian's 686 kernel", "i386", 256),
}
TARGET: Final = "<= 2.5"
# Of the same kernels under binary rewriting.
REWRITTEN: Final = {"linux-i386": "<= 0.2", "debian-686": "<= 0.33"}
REWRITING: Final = ("--backend", "rewriting")
HELLO: Final = b"Hello from ring 0"
NAME: Final = "boot"


def measure(lab: Lab) -> Iterator[Figure]:
    with lab.daemon() as daemon:
        for guest in GUESTS:
            yield _boot(lab, daemon, guest, NATIVE, TARGET)
        for guest, target in REWRITTEN.items():
            yield from _rewritten(lab, daemon, guest, target)


def _boot(lab: Lab, daemon: Daemon, guest: str, backend: Sequence[str], target: str) -> Figure:
    what, arch, mebibytes = GUESTS[guest]
    lab.say(f"boot of {what}, {backend[1]}")
    try:
        image = guest_image(guest)
    except GuestUnavailable as error:
        raise Unavailable(str(error)) from error
    name = f"boot of {what} to the prompt, {backend[1]}"
    runs = lab.runs(5)
    ways: dict[str, Callable[[], float]] = {"hvd": lambda: boot_seconds(daemon, image, mebibytes, backend)}
    note = f"{mebibytes} MiB, {image.append}"
    try:
        program = qemu(arch)
    except Unavailable as missing:
        return alone(name, "s", in_turns(ways, runs)["hvd"], note=str(missing))
    ways["qemu"] = lambda: _to_prompt(_qemu(program, image, mebibytes))
    samples = in_turns(ways, runs)
    peer = f"qemu-system-{arch} -accel tcg, same kernel, initrd, command line"
    return compared(name, "s", samples["hvd"], samples["qemu"], peer, target=target, note=note)


def _rewritten(lab: Lab, daemon: Daemon, guest: str, target: str) -> Iterator[Figure]:
    """With what is the guest's own: both sides less the start of a kernel that only says hello."""
    whole = _boot(lab, daemon, guest, REWRITING, target)
    yield whole
    if whole.ratio is None:
        return
    _, arch, mebibytes = GUESTS[guest]
    hello = kernel("hello.elf")
    program = qemu(arch)
    image = GuestImage(hello, hello, "x")
    ways: dict[str, Callable[[], float]] = {
        "hvd": lambda: boot_seconds(daemon, image, mebibytes, REWRITING, HELLO),
        "qemu": lambda: _to_prompt([*_qemu(program, image, mebibytes), "-device", "isa-debug-exit"], None, HELLO),
    }
    starts = in_turns(ways, len(whole.samples["own"]))
    own, beside = ([max(all_of_it - start, 0.0) for all_of_it, start in zip(whole.samples[mine], starts[theirs], strict=True)]
                   for mine, theirs in (("own", "hvd"), ("peer", "qemu")))  # fmt: skip
    yield compared(f"{whole.name}: the guest's own part", "s", own, beside, whole.peer, note="less the start of hello.elf in the same way")


def _qemu(program: str, image: GuestImage, mebibytes: int) -> list[str]:
    return [
        program, "-accel", "tcg", "-m", str(mebibytes), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
    ]  # fmt: skip


def boot_seconds(daemon: Daemon, image: GuestImage, mebibytes: int, backend: Sequence[str], wanted: bytes = PROMPT) -> float:
    """`hvctl run` to the prompt, or to another text."""
    command = daemon.hvctl(
        "run", *backend, "--name", NAME, "--memory", f"{mebibytes}M", "--kernel", str(image.kernel),
        "--initrd", str(image.initrd), "--append", image.append,
    )  # fmt: skip
    seconds = _to_prompt(command, daemon.environment, wanted)
    daemon.run_hvctl("delete", "--force", NAME)
    return seconds


def _to_prompt(command: list[str], environment: dict[str, str] | None = None, wanted: bytes = PROMPT) -> float:
    """From the start of the process to the shell's prompt on its stdout, or to another text."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        read_until(process, wanted)
        return time.monotonic() - started
    finally:
        end(process)
