"""The API over TCP with `hvd certs`, and that nothing secret can be read by others: in arguments of processes, in logs, in files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_harness import busybox_root
from real_daemon import BIN, Done, RealDaemon, kernel, require_backend

from hvd import certificates
from hvd.backends.container.backend import BACKEND
from tests.free_port import free_port


def certs(*words: str) -> None:
    """`hvd certs`, in this process: starting one for each takes a while."""
    assert certificates.main(words) == 0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls") / "made"
    made = subprocess.run([str(BIN / "hvd"), "certs", "ca", str(directory)], capture_output=True, text=True, check=True)
    assert made.stdout.split() == [str(directory / "ca.key"), str(directory / "ca.pem")]
    certs("server", str(directory), "localhost", "127.0.0.1")
    for role in ("view", "operate", "admin"):
        certs("client", str(directory), role, "--role", role)
    return directory


@pytest.fixture(scope="module")
def tcp(authority: Path) -> Iterator[tuple[RealDaemon, str]]:
    address = f"127.0.0.1:{free_port()}"
    words = [f"--tls-{what}={authority / file}" for what, file in (("cert", "server.pem"), ("key", "server.key"), ("client-ca", "ca.pem"))]
    with RealDaemon("--listen", address, *words, "--log-format", "json", "--log-level", "debug") as daemon:
        require_backend(daemon)
        yield daemon, address


def by(tcp: tuple[RealDaemon, str], directory: Path, name: str, *words: str) -> Done:
    daemon, address = tcp
    files = {"ca": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key"}
    return daemon.hvctl("--endpoint", address, *(f"--tls-{what}={directory / file}" for what, file in files.items()), *words)


def test_the_certificate_says_the_role(tcp: tuple[RealDaemon, str], authority: Path) -> None:
    assert by(tcp, authority, "view", "list").returncode == 0
    refused = by(tcp, authority, "view", "create", "--name", "no", "--kernel", kernel("hello.elf"), "-o", "json")
    assert refused.returncode == 6 and json.loads(refused.stderr)["error"]["reason"] == "ROLE_FORBIDDEN"
    done = by(tcp, authority, "operate", "run", "--name", "remote", "--backend", "emulation", "--kernel", kernel("hello.elf"), "--memory", "8M")
    assert "hello: ok" in done.stdout
    assert by(tcp, authority, "operate", "delete", "remote").returncode == 0
    log = tcp[0].log()
    assert '"client": "certificate operate"' in log and '"client": "certificate view"' in log


def test_who_has_no_certificate_of_the_authority_is_not_heard(tcp: tuple[RealDaemon, str], authority: Path, tmp_path: Path) -> None:
    certs("ca", str(tmp_path))
    certs("client", str(tmp_path), "stranger", "--role", "admin")
    shutil.copy(authority / "ca.pem", tmp_path / "ca.pem")
    stranger = by(tcp, tmp_path, "stranger", "list", "--timeout", "20")
    assert stranger.returncode in (5, 124), stranger.stderr
    daemon, address = tcp
    plain = daemon.hvctl("--endpoint", address, "list", "-o", "json")
    error = json.loads(plain.stderr)["error"]
    assert error["reason"] == "TLS_FILES_MISSING" and "--tls-ca" in error["help"]
    # Not TLS at all: closed, without a word and without harm.
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64))
        with pytest.raises((ConnectionResetError, EOFError)):
            while raw.recv(4096):
                pass
            raise EOFError


def test_certs_overwrite_nothing_and_say_what_is_wrong(authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in authority.iterdir()} == {
        f"{name}{ending}": mode for name in ("ca", "server", "view", "operate", "admin") for ending, mode in ((".key", 0o600), (".pem", 0o644))
    }  # fmt: skip
    assert stat.S_IMODE(authority.stat().st_mode) == 0o700
    for words, part in (
        (("ca", str(authority)), "File exists"),
        (("client", str(authority), "view", "--role", "admin"), "File exists"),
        (("client", str(authority), "../x", "--role", "admin"), "letters, digits"),
        (("client", str(authority), "ca", "--role", "admin"), "neither ca nor server"),
        (("server", str(tmp_path / "nothing"), "h"), "hvd certs ca"),
        (("client", str(authority), "x", "--role", "view", "--days", "0"), "from 1 to 36500"),
    ):
        assert certificates.main(words) == 1
        assert part in capsys.readouterr().err
    with pytest.raises(SystemExit):
        certificates.main(("client", str(authority), "x", "--role", "king"))


def command_lines() -> str:
    """Of every process of this host."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes())
        except OSError:
            continue
    return b"\n".join(found).decode(errors="replace")


def holders(directory: Path, text: str) -> list[Path]:
    """Files below that have this text in them, and that others than their owner can read."""
    found = []
    for where, directories, names in os.walk(directory):
        # What others cannot enter they cannot read.
        directories[:] = [name for name in directories if (Path(where) / name).lstat().st_mode & 0o011]
        for path in (Path(where) / name for name in names):
            if path.is_file() and path.stat().st_mode & 0o044 and text.encode() in path.read_bytes():
                found.append(path)
    return found


def test_no_secret_can_be_read_by_others(tcp: tuple[RealDaemon, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A container's environment, at its start and in a program that is run in it later."""
    daemon, _ = tcp
    availability = BACKEND.probe()
    if not availability.available:
        pytest.skip(f"container: {availability.reason}")
    daemon.ok("image", "import", "box", str(busybox_root(tmp_path_factory.mktemp("busybox") / "root")))
    secrets = {"HVD_TEST_FIRST": "swordfish-1", "HVD_TEST_SECOND": "swordfish-2"}
    os.environ.update(secrets)
    try:
        daemon.ok("run", "-d", "--name", "safe", "--image", "box", "-e", "HVD_TEST_FIRST", "--", "sh", "-c", "echo up; exec sleep 1000")
        daemon.wait_logs("safe", "up")
        program = daemon.spawn("exec", "safe", "-e", "HVD_TEST_SECOND", "--", "sh", "-c", "env; exec sleep 1000")
        for name, value in secrets.items():  # both have arrived
            program.wait_out(f"{name}={value}")
    finally:
        for name in secrets:
            del os.environ[name]
    assert "swordfish" not in command_lines()
    assert "swordfish" not in daemon.log()
    assert not holders(daemon.directory, "swordfish")
    daemon.ok("delete", "--force", "safe")
