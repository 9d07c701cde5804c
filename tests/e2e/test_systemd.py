"""The unit of deploy/systemd: systemd finds nothing wrong with it, the capabilities it leaves suffice, hvd tells what systemd wants to hear."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import BIN, ROOT, RealDaemon, kernel, require_backend

from hvd import systemd
from hvd.backends.container.backend import BACKEND

UNIT = ROOT / "deploy" / "systemd" / "hvd.service"
# As `systemd-analyze security` counts; 9.6 without hardening. What is left, guests and containers need (see the unit).
MOST_EXPOSURE = 7.5
analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With the command of here."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/usr/local/bin/hvd", str(BIN / "hvd")))
    return path


def setting(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@analyze
def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]) == (0, [])


@analyze
def test_the_exposure_is_what_it_was(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", str(unit)], capture_output=True, text=True)
    if "nrecognized" in done.stderr or "unknown option" in done.stderr:
        pytest.skip(f"this systemd cannot do that: {done.stderr}")
    found = re.search(r"exposure level for hvd.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_guests_survive_and_their_mounts_stay() -> None:
    assert (setting("KillMode"), setting("Delegate"), setting("SendSIGKILL")) == (["process"], ["yes"], ["no"])
    # All these give the service a mount namespace, in which the next daemon would not find the mounts of this one.
    mounting = ("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateMounts", "ProtectKernelTunables", "PrivateDevices", "BindPaths",
                "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "TemporaryFileSystem", "RootDirectory", "ProtectProc")  # fmt: skip
    assert not [name for name in mounting if setting(name)]


@pytest.fixture(scope="module")
def bounded() -> Iterator[RealDaemon]:
    """A daemon with the unit's capabilities, which tells its readiness to a socket and writes to what could be the journal."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    names = [name.removeprefix("CAP_").lower() for line in setting("CapabilityBoundingSet") for name in line.split()]
    daemon = RealDaemon(prefix=("setpriv", "--bounding-set", ",".join(["-all", *(f"+{name}" for name in names)])))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, pytest.MonkeyPatch.context() as patch:
        notifications.bind(str(daemon.directory / "notify"))
        notifications.settimeout(60)
        daemon.log_file.touch()
        about = daemon.log_file.stat()
        patch.setenv("NOTIFY_SOCKET", str(daemon.directory / "notify"))
        patch.setenv("WATCHDOG_USEC", "400000")
        patch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        with daemon:
            require_backend(daemon)
            daemon.notifications = notifications  # type: ignore[attr-defined]
            yield daemon


def test_it_tells_that_it_is_ready_and_then_that_it_is_well(bounded: RealDaemon) -> None:
    notifications: socket.socket = bounded.notifications  # type: ignore[attr-defined]
    first = notifications.recv(4096).decode()
    assert first.startswith("READY=1\nSTATUS=serving on unix://")
    assert [notifications.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3


def test_the_capabilities_that_the_unit_leaves_suffice(bounded: RealDaemon, tmp_path: Path) -> None:
    findings = {finding["subject"]: finding["level"] for finding in bounded.hvctl("doctor", "-o", "json").json["findings"]}
    assert findings["jail"] == "OK" and findings["networks"] in ("OK", "NOTE")
    for backend in ("emulation", "trap"):
        done = bounded.hvctl("run", "--backend", backend, "--kernel", kernel("hello.elf"), "--memory", "8M")
        assert done.returncode == 0 or (done.returncode == 125 and "does not run here" in done.stderr), done.stderr
    if BACKEND.probe().available:
        bounded.ok("image", "import", "box", str(busybox_root(tmp_path / "root")))
        assert bounded.hvctl("run", "--image", "box", "--", "sh", "-c", "echo inside; mkdir /made").stdout == "inside\n"


def test_under_systemd_the_log_is_json(bounded: RealDaemon) -> None:
    with bounded.client() as client:
        client.create_guest(guest_id="logged", guest={"backend": "emulation", "machine": {"kernel": client.upload_file(kernel("hello.elf"))}})
        client.delete_guest(name="guests/logged")
    lines = [json.loads(line) for line in bounded.log().splitlines()]
    assert {"event", "level", "timestamp"} <= set(lines[0])
    entry = next(line for line in lines if line.get("method") == "DeleteGuest")
    assert {key: entry[key] for key in ("event", "guest", "code")} == {"event": "audit", "guest": "guests/logged", "code": "OK"}
    assert len(entry["trace_id"]) == 32 and entry["ms"] > 0


def test_the_watchdog_of_another_process_is_not_kept() -> None:
    assert systemd.watchdog_seconds({}) is None
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15
    assert systemd.watchdog_seconds({"WATCHDOG_USEC": "nonsense"}) is None
    assert not systemd.is_journal({}) and not systemd.is_journal({"JOURNAL_STREAM": "1:2"})
