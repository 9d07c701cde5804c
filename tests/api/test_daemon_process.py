"""The daemon as a process: start, readiness, signals, its log and sockets, what it says when it cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hvapi.v1 import guest_pb2, guest_pb2_grpc

from hvd.guests import records


def daemon_process(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hvd.daemon", "--state-dir", str(tmp_path / "s"), "--runtime-dir", str(tmp_path / "r"),
               "--cache-dir", str(tmp_path / "c"), *arguments]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "ready" in line:
            return line
    raise AssertionError("the daemon ended before it was ready")


def test_process_from_start_to_signal(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        process = daemon_process(tmp_path, "--log-format", "json", NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            line = json.loads(until_ready(process))
            path = tmp_path / "r/hvd.sock"
            assert f"unix://{path}" in line["endpoints"]
            assert notified.recv(1000).startswith(b"READY=1")
            assert {file.stat().st_mode & 0o777 for file in path.parent.glob("*.sock")} == {0o660}
            second = daemon_process(tmp_path)
            _, complaint = second.communicate(timeout=60)
            assert second.returncode == 1 and "DIRECTORY_IN_USE" in complaint and str(process.pid) in complaint
            third = daemon_process(tmp_path / "other", "--listen", f"unix://{path}")
            _, complaint = third.communicate(timeout=60)
            assert third.returncode == 1 and "ENDPOINT_IN_USE" in complaint
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0 and not list(path.parent.glob("*.sock"))
        finally:
            process.kill()
            process.communicate()


def test_log_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    """As on a full disk: /dev/full refuses every write."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hvd.daemon", "--state-dir", str(tmp_path / "s"), "--runtime-dir", str(tmp_path / "r"),
                   "--log-level", "debug"]  # fmt: skip
        process = subprocess.Popen(command, stderr=full)
    try:
        with grpc.insecure_channel(f"unix://{tmp_path / 'r/hvd.sock'}") as channel:
            stub: Any = guest_pb2_grpc.GuestServiceStub(channel)
            for _ in range(3):
                stub.ListGuests(guest_pb2.ListGuestsRequest(), wait_for_ready=True, timeout=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_stale_socket_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    path = tmp_path / "r/hvd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    process = daemon_process(tmp_path)
    try:
        until_ready(process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    path.write_text("precious")
    process = daemon_process(tmp_path)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1 and "no socket" in complaint and path.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (("--listen", "127.0.0.1:0"), 2, "mutual TLS"),
        (("--listen", "unix://" + "/x" * 80), 1, "107 bytes"),
        (("--stop-grace", "soon"), 2, "CONFIG_INVALID"),
        (("--state-dir", "/proc/nowhere"), 1, "DIRECTORY_UNUSABLE"),
        (
            ("--listen", "127.0.0.1:0", "--tls-cert", "/none", "--tls-key", "/none", "--tls-client-ca", "/none"),
            2,
            "PEM",
        ),
    ],
)
def test_process_that_cannot_start_says_why(
    tmp_path: Path, arguments: tuple[str, ...], status: int, reason: str
) -> None:
    process = daemon_process(tmp_path, *arguments)
    _, complaint = process.communicate(timeout=60)
    assert reason in complaint and "Traceback" not in complaint
    assert process.returncode in (status, 1)


def test_damaged_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/hvd.sqlite").write_bytes(b"this is no database" * 1000)
    process = daemon_process(tmp_path)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1 and "STORE_DAMAGED" in complaint and "Traceback" not in complaint


def test_records_of_processes(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        stat = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()
        process = records.Process(sleeper.pid, int(stat[19]), records.boot_id())
        assert records.is_living(process)
        records.kill_process(records.Process(sleeper.pid, process.start_time + 1, process.boot_id))
        records.kill_process(records.Process(sleeper.pid, process.start_time, "another boot"))
        assert sleeper.poll() is None
        records.kill_process(process)
        assert sleeper.wait(60) == -signal.SIGKILL
        assert not records.is_living(process)
        records.kill_process(process)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_lock_that_a_killed_daemon_s_child_still_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its fork and the execution of its program."""
    import hvd.daemon

    ours, theirs = os.pipe()
    code = "import os, sys, hvd.daemon, pathlib; held = hvd.daemon.locked(pathlib.Path(sys.argv[1])); held.__enter__(); "
    code += "os.fork() and os._exit(0); os.read(int(sys.argv[2]), 1); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(ours)], check=True, pass_fds=[ours], timeout=60)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        if not waits:
            os.write(theirs, b"x")
        waits.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(hvd.daemon, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    with hvd.daemon.locked(tmp_path):
        assert waits
    os.close(ours)
    os.close(theirs)
