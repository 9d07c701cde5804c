"""Containers for the conformance suite: started through Backend.launch on a root of busybox, as the daemon does."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import Running

from hvd.backends.container_spec import ContainerSpec, LimitsSpec, SecuritySpec
from hvd.backends.contract import Backend, InstanceStatus, LaunchSpec
from hvd.cgroup.hierarchy import hierarchy
from hvd.runner.directory import process_start_time

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    *("sh", "ls", "cat", "sleep", "echo", "id", "ps", "mount", "true", "false", "env", "hostname", "head", "dd", "kill"),
    *("touch", "rm", "stat", "wc", "grep", "tail", "mkdir", "stty", "sed", "seq", "ln"),
)
PASSWD = "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/sh\n"
GROUP = "root:x:0:\nwww:x:33:\nlogs:x:44:www\n"


def busybox_root(where: Path) -> Path:
    """A root with nothing but busybox; milliseconds."""
    if not BUSYBOX.exists():
        pytest.skip(f"{BUSYBOX} is missing: apt-get install busybox-static")
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root", "srv"):
        (where / name).mkdir(parents=True)
    shutil.copy2(BUSYBOX, where / "bin" / "busybox")
    for applet in APPLETS:
        (where / "bin" / applet).symlink_to("busybox")
    (where / "etc" / "passwd").write_text(PASSWD)
    (where / "etc" / "group").write_text(GROUP)
    (where / "tmp").chmod(0o1777)
    return where


class ContainerBench:
    def __init__(self, backend: Backend, engine: str, directory: Path) -> None:
        self.backend = backend
        self.engine = engine
        self.directory = directory
        self.root = busybox_root(directory / "layer")
        self._uids: list[str] = []
        self._running: list[Running] = []

    def spec(self, *command: str, start_paused: bool = False, **changes: Any) -> LaunchSpec:
        """Of a command; changes: fields of ContainerSpec."""
        uid = changes.pop("uid", None) or str(uuid.uuid4())
        container = ContainerSpec(
            layers=(self.root,), state_dir=self.directory / "state" / uid, command=command, environment={"PATH": "/bin"},
            working_directory="/", user="0", hostname="box", tty=False, stdin=False, mounts=(), read_only_root=False,
            stop_signal="SIGTERM", limits=LimitsSpec(), security=SecuritySpec(), init=False,
        )  # fmt: skip
        return LaunchSpec(
            uid=uid, name="box", engine=self.engine, memory_bytes=0, cpus=0, kernel=None, initrd=None, command_line="",
            flat_load_address=0, restart_on_reset=False, start_paused=start_paused, container=replace(container, **changes),
        )  # fmt: skip

    async def start(self, *command: str, **changes: Any) -> Running:
        spec = self.spec(*command, **changes)
        self.backend.check(spec)
        directory = self.directory / "guests" / spec.uid
        shutil.rmtree(directory, ignore_errors=True)  # of its last run
        directory.mkdir(mode=0o711, parents=True)
        self._uids.append(spec.uid)
        running = Running(await self.backend.launch(spec, directory), directory)
        self._running.append(running)
        return running

    async def run(self, *command: str, **changes: Any) -> tuple[InstanceStatus, str]:
        """Start it and wait for its end: status and standard output."""
        running = await self.start(*command, **changes)
        return await running.end(), running.console()

    async def close(self) -> None:
        for running in self._running:
            await running.instance.kill()
            await running.instance.close()

    def left_over(self) -> list[str]:
        """Mounts and control groups of this bench's containers that are still there."""
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        found = [mount for mount in mounts if mount.startswith(str(self.directory))]
        groups = hierarchy()
        return found + [str(path) for uid in self._uids for path in groups.directories(uid) if path.exists()]


def exists(pid: int) -> bool:
    """Does it run? A zombie does not; who reaps it is the host's init."""
    return process_start_time(pid) is not None


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def same(one: str, other: Path) -> bool:
    """Are they the same file or folder?"""
    return os.path.samefile(one, other)
