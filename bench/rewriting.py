"""Binary rewriting by itself: how fast it translates, how large its cache is, and what the textbook's engine costs beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Final

from hvapi.v1 import inspect_pb2

from bench.boot import REWRITING
from bench.figure import Figure, alone, compared, in_turns
from bench.lab import Daemon, Lab, Unavailable, counters, end, kernel, read_until
from bench.nano import OPERATIONS, available, costs
from hvd.trace.points import BY_NAME
from tests.guest_images import PROMPT, GuestImage, GuestUnavailable, guest_image

ROWS: Final = ("sti-cli", "call-ret", "kernel-int", "kernel-compute")
MILLISECONDS: Final = 40
KERNELS: Final = {"the project's Linux": "linux-i386", "Debian's 686 kernel": "debian-686"}
MEBIBYTES: Final = 256
NAME: Final = "translated"


def measure(lab: Lab) -> Iterator[Figure]:
    if "rewriting" not in dict(available()):
        raise Unavailable("backend rewriting does not run here: `hvctl doctor` says why")
    yield from _engines(lab)
    for what, name in KERNELS.items():
        yield from _translation(lab, what, name)


def _engines(lab: Lab) -> Iterator[Figure]:
    path = kernel("nano.elf")
    for row in ROWS:
        lab.say(f"engines of rewriting: {row}")
        append = f"ms={MILLISECONDS // (8 if lab.quick else 1)} only={list(OPERATIONS).index(row)}"

        def cost(engine: str, row: str = row, append: str = append) -> float:
            return costs(lab.run_guest(path, append, "rewriting", engine).console, (row,))[row]

        pair = in_turns({engine: lambda engine=engine: cost(engine) for engine in ("breakpoint", "translate")}, lab.runs(5))  # type: ignore[misc]
        yield compared(f"{OPERATIONS[row]}: engine breakpoint", "us", pair["breakpoint"], pair["translate"], "engine translate")


def _translation(lab: Lab, what: str, name: str) -> Iterator[Figure]:
    """From its boot to the shell."""
    try:
        image = guest_image(name)
    except GuestUnavailable as error:
        raise Unavailable(str(error)) from error
    speeds: list[float] = []
    sizes: list[float] = []
    notes: list[str] = []
    with lab.daemon() as daemon:
        for turn in range(-1, lab.runs(5)):  # the first one warms up
            lab.say(f"translation, {what}, turn {turn + 1}")
            speed, size, note = _boot(daemon, image)
            if turn >= 0:
                speeds.append(speed)
                sizes.append(size)
                notes.append(note)
    yield alone(f"{what}, booted: translation", "instructions/s", speeds, note=notes[-1])
    yield alone(f"{what}, booted: code cache", "bytes", sizes, note=notes[-1])


def _boot(daemon: Daemon, image: GuestImage) -> tuple[float, float, str]:
    """(Instructions translated a second of translating, bytes of the cache, what was translated); of what is there at the end."""
    command = daemon.hvctl(
        "run", *REWRITING, "--name", NAME, "--memory", f"{MEBIBYTES}M", "--kernel", str(image.kernel), "--initrd", str(image.initrd),
        "--append", image.append,
    )  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=daemon.environment)
    try:
        read_until(process, PROMPT)
        with daemon.client() as client:
            uid = client.get_guest(name=f"guests/{NAME}").uid
            census = client.get_census(inspect_pb2.GetCensusRequest(name=f"guests/{NAME}"))
        page = counters(daemon.directory(uid))
    finally:
        end(process)
        daemon.run_hvctl("delete", "--force", NAME)
    spent = page.points[BY_NAME["translation.block"].id]
    rewritten = sum(row.sites for row in census.summary)
    note = f"{census.decoded_instructions} instructions in {census.blocks} blocks of {census.code_pages} pages, {rewritten} of them rewritten"
    return census.decoded_instructions / (spent.total_ns / 1e9), page.cache_bytes, note
