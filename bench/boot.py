"""Boot of real Linux kernels to a shell prompt, `hvctl run` beside QEMU's own translator."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from hvctl.sdk import Client, GuestSpec

from bench.figure import Figure, alone, compared, in_turns
from bench.lab import MIB, NATIVE, Daemon, Lab, Unavailable, end, kernel, qemu, read_until
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
# A kernel that says so as soon as it runs, and waits: one that ends at once would add its end to the time.
READY: Final = b"echo: type"
NAME: Final = "boot"
BY_API: Final = "StartGuest sent by a connected client, to the prompt on its console"
REPLAY_BYTES: Final = 1 << 20
BOOT_SECONDS: Final = 120.0
# Before each turn: by then the daemon has its spare runners again (hvd/runner/spare.py).
REST_SECONDS: Final = 0.8
# Turns of a full run: of a boot that is short, more.
TURNS: Final = {"linux-i386": 11}


def measure(lab: Lab) -> Iterator[Figure]:
    with lab.daemon() as daemon:
        for guest in GUESTS:
            yield _boot(lab, daemon, guest)
        with daemon.client() as client:
            for guest, target in REWRITTEN.items():
                yield from _rewritten(lab, daemon, client, guest, target)


def _image(guest: str) -> GuestImage:
    try:
        return guest_image(guest)
    except GuestUnavailable as error:
        raise Unavailable(str(error)) from error


def _boot(lab: Lab, daemon: Daemon, guest: str) -> Figure:
    what, arch, mebibytes = GUESTS[guest]
    lab.say(f"boot of {what}, {NATIVE[1]}")
    image = _image(guest)
    name = f"boot of {what} to the prompt, {NATIVE[1]}"
    ways: dict[str, Callable[[], float]] = {"hvd": lambda: boot_seconds(daemon, image, mebibytes, NATIVE)}
    note = f"{mebibytes} MiB, {image.append}"
    try:
        program = qemu(arch)
    except Unavailable as missing:
        return alone(name, "s", in_turns(ways, lab.runs(5))["hvd"], note=str(missing))
    ways["qemu"] = lambda: _to_prompt(_qemu(program, image, mebibytes))
    samples = in_turns(ways, lab.runs(5))
    return compared(name, "s", samples["hvd"], samples["qemu"], _peer(arch), target=TARGET, note=note)


def _peer(arch: str) -> str:
    return f"qemu-system-{arch} -accel tcg, same kernel, initrd, command line"


def _rewritten(lab: Lab, daemon: Daemon, client: Client, guest: str, target: str) -> Iterator[Figure]:
    """By `hvctl run` and by the API, beside QEMU and beside emulation; and what is the guest's own: each less the start of a small kernel. All in
    turns, in which the starts that a daemon makes of one backend do not come one right behind the other: each has a spare runner, and none is made
    during the boots by the API."""
    what, arch, mebibytes = GUESTS[guest]
    lab.say(f"boot of {what}, rewriting")
    image, program = _image(guest), qemu(arch)
    small = GuestImage(kernel("echo.elf"), kernel("echo.elf"), "x")
    ways: dict[str, Callable[[], float]] = {
        "hvctl": lambda: _rested(lambda: boot_seconds(daemon, image, mebibytes, REWRITING)),
        "qemu": lambda: _to_prompt(_qemu(program, image, mebibytes)),
        "api": lambda: api_seconds(client, image, mebibytes, "rewriting"),
        "emulation": lambda: api_seconds(client, image, mebibytes, "emulation", "native"),
        "hvctl start": lambda: boot_seconds(daemon, small, mebibytes, REWRITING, READY),
        "api start": lambda: api_seconds(client, small, mebibytes, "rewriting", wanted=READY),
        "emulation start": lambda: api_seconds(client, small, mebibytes, "emulation", "native", wanted=READY),
        "qemu start": lambda: _to_prompt(_qemu(program, small, mebibytes), None, READY),
    }
    samples = in_turns(ways, lab.runs(TURNS.get(guest, 5)))
    name, peer = f"boot of {what} to the prompt, rewriting", _peer(arch)
    own, of_qemu, of_emulation = (_less(samples[way], samples[f"{way} start"]) for way in ("api", "qemu", "emulation"))
    emulated = "emulation (native engine), by the API"
    yield compared(name, "s", samples["hvctl"], samples["qemu"], peer, target=target, note=f"`hvctl run`; {mebibytes} MiB, {image.append}")
    yield compared(f"{name}, by the API", "s", samples["api"], samples["qemu"], peer, target=target, note=BY_API)
    yield compared(f"{name}, by the API", "s", samples["api"], samples["emulation"], emulated, target="<= 0.2", note=BY_API)
    for beside, other in ((of_qemu, peer), (of_emulation, emulated)):
        yield compared(f"{name}: the guest's own part", "s", own, beside, other, note="by the API; both less the start of echo.elf")
    for way, text in (("hvctl", "`hvctl run`"), ("api", "by the API")):
        yield compared(f"start of echo.elf, rewriting, {text}", "s", samples[f"{way} start"], samples["qemu start"], f"qemu-system-{arch}")


def _rested(way: Callable[[], float]) -> float:
    time.sleep(REST_SECONDS)
    return way()


def _less(whole: Sequence[float], starts: Sequence[float]) -> list[float]:
    return [max(seconds - start, 0.0) for seconds, start in zip(whole, starts, strict=True)]


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


def api_seconds(
    client: Client, image: GuestImage, mebibytes: int, backend: str, engine: str = "", wanted: bytes = PROMPT
) -> float:  # fmt: skip
    """StartGuest sent by a client that is connected, to the prompt on the console that it attaches."""
    spec = GuestSpec(
        name=NAME, backend=backend, engine=engine, memory_bytes=mebibytes * MIB, kernel=image.kernel, initrd=image.initrd, append=image.append
    )  # fmt: skip
    guest = client.create(spec)
    data = b""
    try:
        started = time.monotonic()
        client.start_guest(name=guest.name)
        with client.console(guest.name, replay_bytes=REPLAY_BYTES, timeout=BOOT_SECONDS) as console:
            for output in console:
                data += output
                if wanted in data:
                    return time.monotonic() - started
        raise Unavailable(f"{image.kernel} under {backend} ended before {wanted!r}; it said: {data[-500:]!r}")
    finally:
        client.delete_guest(name=guest.name, force=True)


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
