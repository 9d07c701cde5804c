"""Guests for the conformance suite: started through Backend.launch, as the daemon does, and watched through the guest directory."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hvd.backends.contract import Backend, Instance, InstanceStatus, LaunchSpec
from hvd.errors import HvdError
from hvd.runner.directory import COUNTERS, LOG, TRACE
from hvd.trace.counters import Counters, read_counters
from hvd.trace.points import BY_NAME

GUESTS = Path(__file__).resolve().parents[2] / "build" / "guests"
SECONDS = 60.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def kernel_exists(name: str) -> bool:
    return not name.startswith("/") and (GUESTS / name).exists()


def kernel(name: str) -> Path:
    path = GUESTS / name
    if not path.exists():
        pytest.fail(f"{path} is not built: make guests")
    return path


@dataclass
class Running:
    """A guest and what can be seen of it."""

    instance: Instance
    directory: Path

    async def end(self, seconds: float = SECONDS) -> InstanceStatus:
        """Wait for its end."""
        async with asyncio.timeout(seconds):
            status = await self.instance.status()
            while status.state not in ("STOPPED", "FAILED", "LOST"):
                status = await self.instance.wait_change(status)
        return status

    def console(self) -> str:
        """What it wrote, from its log, without the log's own columns and without cursor movements, which a firmware
        puts anywhere."""
        return self.console_bytes().decode(errors="replace").replace("\r", "")

    def console_bytes(self) -> bytes:
        """The same to the byte."""
        text = b""
        for part in (f"{LOG}.1", LOG):
            path = self.directory / part
            for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
                _, stream, flag, content = line.split(b" ", 3)
                if stream == b"stdout":  # what the guest logged by hypercall is "stderr"
                    text += content if flag == b"F" else content.rstrip(b"\n")
        return text

    async def wrote(self, text: str, seconds: float = SECONDS) -> str:
        """Wait until its console has this text."""
        async with asyncio.timeout(seconds):
            while text not in (console := self.console()):
                await asyncio.sleep(0.02)
        return console

    async def wrote_times(self, text: str, times: int, seconds: float = SECONDS) -> None:
        """Wait until its console has this text so often."""
        async with asyncio.timeout(seconds):
            while self.console().count(text) < times:
                await asyncio.sleep(0.02)

    def counters(self) -> Counters:
        fd = os.open(self.directory / COUNTERS, os.O_RDONLY)
        try:
            return read_counters(fd)
        finally:
            os.close(fd)

    def count(self, point: str) -> int:
        counter = self.counters().points.get(BY_NAME[point].id)
        return counter.count if counter else 0

    @property
    def ring(self) -> Path:
        return self.directory / TRACE


class Bench:
    def __init__(self, backend: Backend, engine: str, directory: Path) -> None:
        self.backend = backend
        self.engine = engine
        self._directory = directory
        self._running: list[Running] = []

    def spec(self, name: str, **changes: Any) -> LaunchSpec:
        """Of a kernel in build/guests."""
        if self.backend.name == "paravirt" and name.endswith(".elf"):
            # The same source, built for it by calls written by hand, or by hvpvcc.
            names = (name.removesuffix(".elf") + suffix for suffix in (".pv.elf", ".hvpv.elf"))
            name = next((each for each in names if kernel_exists(each)), name)
        path = Path(name) if name.startswith("/") else kernel(name)
        spec = LaunchSpec(
            uid=str(uuid.uuid4()), name=path.stem, engine=self.engine, memory_bytes=16 << 20, cpus=1, kernel=path, initrd=None,
            command_line="", flat_load_address=0x100000 if name.endswith(".bin") else 0, restart_on_reset=False, start_paused=False,
        )  # fmt: skip
        return replace(spec, **changes)

    async def start(self, name: str, **changes: Any) -> Running:
        """Start it; skips the test when this backend says that it cannot run such a guest."""
        spec = self.spec(name, **changes)
        try:
            self.backend.check(spec)
        except HvdError as error:
            if error.reason == "BACKEND_UNAVAILABLE":
                pytest.skip(str(error))
            raise
        directory = self._directory / spec.uid
        directory.mkdir(mode=0o700)
        running = Running(await self.backend.launch(spec, directory), directory)
        self._running.append(running)
        return running

    async def run(self, name: str, **changes: Any) -> tuple[InstanceStatus, str]:
        """Start it and wait for its end: status and console."""
        running = await self.start(name, **changes)
        status = await running.end()
        return status, running.console()

    async def close(self) -> None:
        for running in self._running:
            await running.instance.kill()
            await running.instance.close()
