"""The teaching kernel (guests/teach): a kernel that has no serial port, seen and driven through screen and keyboard alone."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from harness import SECONDS, Bench, Running, kernel

from hvd.backends.contract import Capability
from hvd.board import firmware, keys
from hvd.board.block.overlay import create_overlay
from hvd.board.spec import DiskSpec
from hvd.errors import HvdError


@pytest.fixture(autouse=True)
def capable(bench: Bench) -> None:
    for capability in (Capability.SCREEN, Capability.KEYBOARD, Capability.DISK):
        if capability not in bench.backend.capabilities:
            pytest.skip(f"{bench.backend.name} cannot {capability}")


def disk(directory: Path, number: int = 0) -> DiskSpec:
    base, overlay = kernel("teach.img"), directory / f"overlay{number}"
    size = base.stat().st_size
    create_overlay(overlay, size, base)
    return DiskSpec(f"disk{number}", str(base), str(overlay), size, "ide", False)


class Screen:
    def __init__(self, guest: Running) -> None:
        self.guest = guest

    async def text(self) -> str:
        shown = await self.guest.instance.screen()
        width = 2 * shown.columns
        rows = (shown.cells[at : at + width : 2] for at in range(0, len(shown.cells), width))
        return "\n".join(row.decode("cp437").replace("\0", " ").rstrip() for row in rows).rstrip()

    async def wait(self, pattern: str) -> re.Match[str]:
        """Until the screen's text matches."""
        text = ""
        try:
            async with asyncio.timeout(SECONDS):
                while not (match := re.search(pattern, text := await self.text())):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{pattern!r} does not come; the screen shows:\n{text}")
        return match

    async def type(self, line: str) -> None:
        strokes = [*keys.of_text(line), ("enter",)]
        while strokes:
            del strokes[: await self.guest.instance.type_keys(strokes)]


async def use(guest: Running, loader: str) -> Screen:
    """Everything that its shell can do, to its end."""
    screen = Screen(guest)
    await screen.wait(rf"teach, booted by {loader}\n(.*\n)*disk found\nteach>$")
    await screen.type("help")
    await screen.wait(r"help, ls, cat FILE, cpu, uptime, halt\nteach>$")
    await screen.type("ls")
    await screen.wait(r"welcome.txt  109 bytes\n(.*\n)+teach>$")
    await screen.type("cat welcome.txt")
    await screen.wait(r"one word at a time\.\nteach>$")
    await screen.type("cat nothing")
    await screen.wait(r"no file 'nothing'\nteach>$")
    await screen.type("uptime")
    before = float((await screen.wait(r"up (\d+\.\d\d) s\nteach>$"))[1])
    await screen.wait(r"00:00:(0[2-9]|[1-5]\d)|00:0[1-9]:")  # the thread that shows the time goes on beside the shell
    await screen.type("uptime")
    await screen.wait(r"(?s)up .* s\n.*up .* s\nteach>$")
    after = float(re.findall(r"up (\d+\.\d\d) s", await screen.text())[-1])
    assert before < after < 60
    await screen.type("cpu")
    match = await screen.wait(
        r"1 processor\(s\), local APIC at 0xfee00000, timer of (\d+) Hz\nIOAPIC \d+ at 0xfec00000: keyboard at pin 1, disk at pin 14\nteach>$"
    )
    assert int(match[1]) > 10_000_000
    return screen


async def halt(screen: Screen) -> None:
    await screen.type("halt")
    status = await screen.guest.end()
    assert (status.state, status.reason) == ("STOPPED", "HALTED")
    assert screen.guest.console() == ""  # nothing went to the serial port


async def test_as_a_multiboot_kernel(bench: Bench, tmp_path: Path) -> None:
    guest = await bench.start("teach.elf", disks=(disk(tmp_path),))
    screen = await use(guest, "Multiboot")
    await halt(screen)


def booting(bench: Bench, directory: Path) -> dict[str, Any]:
    """Skips what a backend says it cannot do."""
    changes: dict[str, Any] = {"kernel": None, "boot": "disk", "disks": (disk(directory),)}
    if Capability.FIRMWARE not in bench.backend.capabilities:
        pytest.skip(f"{bench.backend.name} does not run firmware")
    try:
        firmware.check(16 << 20)
        bench.backend.check(bench.spec("teach.elf", **changes))
    except HvdError as error:
        pytest.skip(str(error))
    return changes


async def test_by_its_own_boot_sector(bench: Bench, tmp_path: Path) -> None:
    guest = await bench.start("teach.elf", **booting(bench, tmp_path))
    screen = await use(guest, "its own boot sector")
    await screen.type("halt")
    assert (await screen.guest.end()).reason == "HALTED"
