"""The unit of deploy/systemd under a systemd that was booted for it, as process 1 of namespaces of its own (boot_systemd.sh)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_harness import busybox_root
from hvctl.output import document
from hvctl.sdk import Client
from real_daemon import BIN, ROOT, SECONDS, kernel, wait_for

from hvd.backends.container.backend import BACKEND

SYSTEMD = Path("/lib/systemd/systemd")
UNIT = ROOT / "deploy" / "systemd" / "hvd.service"
CGROUP = Path("/sys/fs/cgroup")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not SYSTEMD.exists() or not shutil.which("nsenter") or not CGROUP.exists(),
        reason="needs root, systemd, nsenter (util-linux) and control groups",
    ),
]


def hierarchies() -> list[Path]:
    """Of control groups: the one of version 2, or those of version 1 and the one beside them."""
    return [CGROUP] if (CGROUP / "cgroup.procs").exists() else [path for path in CGROUP.iterdir() if (path / "cgroup.procs").exists()]


def shared() -> list[str]:
    """What hvd and its Python need besides /usr."""
    found: list[Path] = []
    for path in sorted({ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}):
        if not any(path.is_relative_to(other) for other in (Path("/usr"), *found)):
            found.append(path)
    return [str(path) for path in found]


class Booted:
    """A systemd, and the hvd that it runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._name = f"hvd-boot-{uuid.uuid4().hex[:8]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "log"
        self._init = 0
        self.ready_at = ""

    def start(self) -> None:
        root, unit = self._directory / "root", self._directory / UNIT.name
        root.mkdir()
        unit.write_text(UNIT.read_text().replace("/usr/local/bin/hvd", str(BIN / "hvd")))
        groups = [path / self._name for path in hierarchies()]
        for group in groups:
            group.mkdir()
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (group / file).exists() and not (group / file).read_text().strip() and (group.parent / file).read_text().strip():
                    (group / file).write_text((group.parent / file).read_text())
        join = "".join(f"echo $$ >{group}/cgroup.procs && " for group in groups)
        words = ["unshare", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--fork", "--kill-child",
                 "sh", str(ROOT / "tests" / "e2e" / "boot_systemd.sh"), str(root), str(unit), *shared()]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f'{join}exec "$@"', "sh", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._booted, lambda: f"systemd is up:\n{self._log.read_text(errors='replace')[-2000:]}")
        self.systemctl("is-system-running", "--wait", check=False)

    def _booted(self) -> bool:
        assert self._process
        if self._process.poll() is not None:
            pytest.skip(f"systemd does not boot here: {self._log.read_text(errors='replace')[-500:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._init = int(children[0]) if children else 0
        return bool(self._init) and (self.root / "run" / "systemd" / "private").exists()

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self._init}/root")

    def run(self, *words: str, check: bool = True) -> str:
        inside = ["nsenter", "-t", str(self._init), "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--", *words]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self._log.read_text(errors='replace')[-2000:]}"
        return done.stdout.strip()

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check)

    def told(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--property", name, "--value", "hvd")

    def hvctl(self, *words: str, check: bool = True) -> str:
        return self.run(str(BIN / "hvctl"), "--endpoint", "unix:///run/hvd/hvd.sock", *words, check=check)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client(f"unix://{self.root}/run/hvd/hvd.sock", timeout=SECONDS) as client:
            yield client

    def guests(self) -> dict[str, tuple[str, int]]:
        """name -> state, process. The first call must be answered: nobody waits until hvd serves."""
        with self.client() as client:
            found = [document(guest) for guest in client.guests()]
        return {guest["name"].removeprefix("guests/"): (guest["state"], int(guest["host_pid"])) for guest in found}

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("journalctl", "-u", "hvd", "-o", "cat", "_COMM=hvd", "--no-pager").splitlines()]

    def close(self) -> None:
        """Its process 1 takes all others with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
        for hierarchy in hierarchies():
            top = hierarchy / self._name
            if top.exists():
                wait_for(lambda top=top: self._remove(top), f"{top} is empty")

    def _remove(self, top: Path) -> bool:
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return not top.exists()


@pytest.fixture(scope="module")
def booted() -> Iterator[Booted]:
    with tempfile.TemporaryDirectory(prefix="hvd-e2e-") as name:
        booted = Booted(Path(name))
        try:
            booted.start()
            booted.systemctl("start", "hvd")
            booted.ready_at = booted.told("WatchdogTimestampMonotonic")
            yield booted
        finally:
            booted.close()


BACKENDS = ("emulation", "trap", "rewriting", "paravirt")


@pytest.fixture(scope="module")
def running(booted: Booted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """A guest of every backend that runs here, and a container with a network card."""
    assert booted.guests() == {}, "it is active only once it answers"
    booted.hvctl("network", "create", "lan")
    with booted.client() as client:
        here = {backend.name.removeprefix("backends/") for backend in client.list_backends().backends if backend.available}
        for name in BACKENDS:
            if name in here:
                image = kernel("echo.hvpv.elf" if name == "paravirt" else "echo.elf")
                client.run_guest(name=name, kernel=image, backend=name, memory_bytes=8 << 20)
    if BACKEND.probe().available:
        root = busybox_root(tmp_path_factory.mktemp("box") / "root")
        inside = booted.root / "root" / "box"
        shutil.copytree(root, inside, symlinks=True)
        booted.hvctl("image", "import", "box", "/root/box")
        booted.hvctl("run", "-d", "--name", "container", "--image", "box", "--network", "lan", "--", "sleep", "100000")
    found = booted.guests()
    assert "emulation" in found and {state for state, _ in found.values()} == {"RUNNING"}
    return found


def test_it_is_active_once_it_serves_and_its_walls_stand(booted: Booted, running: dict[str, tuple[str, int]]) -> None:
    assert (booted.told("ActiveState"), booted.told("SubState")) == ("active", "running")
    findings = {finding["subject"]: finding for finding in json.loads(booted.hvctl("doctor", "-o", "json"))["findings"]}
    for subject in ("jail", "networks", "control groups"):
        assert findings[subject]["level"] == "OK", findings[subject]


def test_the_journal_says_who_did_what_to_which_guest(booted: Booted) -> None:
    with booted.client() as client:
        client.create_guest(guest_id="logged", guest={"backend": "emulation", "machine": {"kernel": client.upload_file(kernel("hello.elf"))}})
        client.delete_guest(name="guests/logged")
    wanted = ("DeleteGuest", "guests/logged")
    line = wait_for(
        lambda: next((line for line in booted.journal() if (line.get("method"), line.get("guest")) == wanted), None), "the journal has it"
    )
    assert line["event"] == "audit" and line["code"] == "OK" and line["ms"] > 0 and len(line["trace_id"]) == 32


def test_the_watchdog_hears_of_it(booted: Booted) -> None:
    """Every 15 s. Its readiness counts as the first time."""
    assert booted.ready_at != "0"
    wait_for(lambda: booted.told("WatchdogTimestampMonotonic") not in ("0", booted.ready_at), "the watchdog heard")
    assert booted.told("Result") == "success"


def test_guests_survive_a_restart_a_stop_and_a_kill(booted: Booted, running: dict[str, tuple[str, int]]) -> None:
    before = booted.told("MainPID")
    booted.systemctl("restart", "hvd")
    assert booted.told("MainPID") != before
    assert booted.guests() == running
    booted.systemctl("stop", "hvd")
    assert booted.told("ActiveState") == "inactive"
    assert all(Path(f"/proc/{booted._init}/root/proc/{pid}").exists() for _, pid in running.values())
    booted.systemctl("start", "hvd")
    assert booted.guests() == running
    before = booted.told("MainPID")
    booted.run("kill", "-KILL", before)
    wait_for(lambda: booted.told("MainPID") not in ("0", before) and booted.told("ActiveState") == "active", "systemd has restarted it")
    assert booted.told("NRestarts") == "1"
    assert booted.guests() == running
    with booted.client() as client:
        for name in running:
            client.delete_guest(name=f"guests/{name}", force=True)
    assert booted.guests() == {}
