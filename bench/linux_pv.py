"""The own Linux made paravirtual by hvpvcc, beside the same kernel without it under binary rewriting; size and time of the replacement."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.boot import REWRITING, api_seconds, boot_seconds
from bench.figure import Figure, alone, compared, in_turns
from bench.lab import MIB, Lab, Unavailable, kernel
from bench.linux_ops import OPERATIONS, guest_costs
from hvd.board.memory import GuestMemory
from hvd.board.paravirt import replace_sites
from hvd.hvpvcc import main as hvpvcc
from hvd.hvpvcc.elf import Elf
from tests.guest_images import GuestImage, GuestUnavailable, guest_image

PARAVIRT: Final = ("--backend", "paravirt")
PEER: Final = "rewriting, the same kernel without hvpvcc"
MEBIBYTES: Final = 128
GOALS: Final = {"fork-exec": "<= 1.0"}
# Test kernels whose C files are compiled for the cost of the filter.
SOURCES: Final = ("hello", "interrupts", "exceptions", "paging", "compute", "ports", "modes", "garbage", "virtio", "hole", "isolation", "apic")


def measure(lab: Lab) -> Iterator[Figure]:
    try:
        ours, plain = guest_image("linux-pv"), guest_image("linux-i386")
        programs = guest_image("debian-686", programs=[kernel("ops")])
    except GuestUnavailable as error:
        raise Unavailable(str(error)) from error
    with lab.daemon() as daemon, daemon.client() as client:
        lab.say("boot of a paravirtual Linux beside rewriting")
        samples = in_turns(
            {
                "hvd": lambda: boot_seconds(daemon, ours, MEBIBYTES, PARAVIRT),
                "peer": lambda: boot_seconds(daemon, plain, MEBIBYTES, REWRITING),
                "hvd by the API": lambda: api_seconds(client, ours, MEBIBYTES, "paravirt"),
                "peer by the API": lambda: api_seconds(client, plain, MEBIBYTES, "rewriting"),
            },
            lab.runs(5),
        )
        for way in ("", " by the API"):
            name = f"boot of own Linux by hvpvcc to the prompt, paravirt{way}"
            yield compared(name, "s", samples[f"hvd{way}"], samples[f"peer{way}"], PEER, target="<= 1.0")
        costs: dict[str, list[dict[str, float]]] = {"hvd": [], "peer": []}
        for turn in range(-1, lab.runs(5)):
            lab.say(f"operations of a paravirtual Linux, turn {turn + 1}")
            both = {
                "hvd": guest_costs(daemon, GuestImage(ours.kernel, programs.initrd, ours.append), PARAVIRT),
                "peer": guest_costs(daemon, GuestImage(plain.kernel, programs.initrd, plain.append), REWRITING),
            }
            for side, found in both.items() if turn >= 0 else ():
                costs[side].append(found)
    for operation, (what, _) in OPERATIONS.items():
        own, beside = ([run[operation] for run in costs[side]] for side in ("hvd", "peer"))
        yield compared(f"Linux guest, paravirt: {what}", "us", own, beside, PEER, target=GOALS.get(operation, ""))
    yield from _sizes(ours, plain)
    yield _filter_cost(lab)


def _text(image: Path) -> int:
    elf = Elf(image.read_bytes())
    return sum(section.size for section in elf.sections if section.executable)


def _sizes(ours: GuestImage, plain: GuestImage) -> Iterator[Figure]:
    with_sites, without = float(_text(ours.kernel)), float(_text(plain.kernel))
    report = json.loads((ours.kernel.parent / "hvpvcc.json").read_text())
    note = f"{len(report['sites'])} sites, {report['padding_bytes']} bytes of padding, {report['thunks']} thunks"
    yield compared("code of own Linux with hvpvcc", "bytes", [with_sites], [without], "without", note=note)
    data = ours.kernel.read_bytes()
    spent = []
    with GuestMemory(MEBIBYTES * MIB) as memory:
        for _ in range(5):
            start = time.process_time()
            replace_sites(memory, data)
            spent.append(time.process_time() - start)
    yield alone("own Linux's sites replaced by the loader, CPU time", "s", spent)


def _filter_cost(lab: Lab) -> Figure:
    """The test kernels' C files, whose assembler files go through the filter, or not."""
    flags = ["-m32", "-std=gnu11", "-Os", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-mgeneral-regs-only", "-Iguests/include"]

    def compile_all(*more: str) -> float:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            for name in SOURCES:
                subprocess.run(["gcc", *more, *flags, "-c", "-o", f"{directory}/x.o", f"guests/{name}.c"], check=True, capture_output=True)
        return time.perf_counter() - start

    lab.say("compiling with and without hvpvcc")
    samples = in_turns({"hvd": lambda: compile_all(f"-B{hvpvcc.DIRECTORY}"), "peer": lambda: compile_all()}, lab.runs(5))
    return compared("compiling the test kernels with hvpvcc", "s", samples["hvd"], samples["peer"], "without")
