"""Real runner processes with real guests (emulation), driven through RunnerInstance: what their tests share."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hvd.backends.contract import Capability, ConsoleAttachment, InstanceStatus, LaunchSpec
from hvd.runner.client import RunnerInstance
from hvd.runner.directory import COUNTERS

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "build" / "guests"
ALL = frozenset(Capability)
SECONDS = 60.0

Launch = Callable[..., Awaitable[RunnerInstance]]


def kernel(name: str) -> Path:
    path = KERNELS / f"{name}.elf"
    missing = [str(file) for file in (path, ROOT / "hvd" / "libhv.so") if not file.exists()]
    if missing:
        reason = f"not built: {', '.join(missing)} (`make setup`)"
        if "emulation" in os.environ.get("HVD_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def spec(name: str, **values: Any) -> LaunchSpec:
    defaults: dict[str, Any] = {
        "uid": "u", "name": name, "engine": "", "memory_bytes": 16 << 20, "cpus": 1, "initrd": None, "command_line": "",
        "flat_load_address": 0, "restart_on_reset": False, "start_paused": False,
    }  # fmt: skip
    return LaunchSpec(**(defaults | {"kernel": values.pop("path", None) or kernel(name)} | values))


async def ended(instance: RunnerInstance) -> InstanceStatus:
    status = await instance.status()
    async with asyncio.timeout(SECONDS):
        while status.state in ("STARTING", "RUNNING", "PAUSED"):
            status = await instance.wait_change(status)
    return status


async def until(what: Callable[[], Any]) -> None:
    """Polls for what no event announces."""
    async with asyncio.timeout(SECONDS):
        while not what():
            await asyncio.sleep(0.01)


async def read_until(console: ConsoleAttachment, wanted: bytes) -> bytes:
    got = b""
    async with asyncio.timeout(SECONDS):
        async for piece in console.output():
            assert isinstance(piece, bytes)
            got += piece
            if wanted in got:
                return got
    raise AssertionError(f"the console ended with {got!r}")


def console_text(directory: Path, stream: str = "stdout") -> bytes:
    """What the log holds, rotated part first; every line must be well-formed."""
    text = b""
    for name in ("console.log.1", "console.log"):
        path = directory / name
        if not path.exists():
            continue
        for line in path.read_bytes().splitlines(keepends=True):
            match = re.fullmatch(rb"\S+\+00:00 (stdout|stderr) ([FP]) ([^\n]*)\n", line)
            assert match, line
            if match[1] == stream.encode():
                text += match[3] + (b"\n" if match[2] == b"F" else b"")
    return text


def counter(directory: Path, offset: int) -> int:
    with open(directory / COUNTERS, "rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 8, offset), "little")


def console_out_bytes(directory: Path) -> int:
    return counter(directory, 40)
