"""The real `hvd` on a private unix socket and the real `hvctl`, as processes: what the end-to-end tests drive and watch from outside."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from hvctl.output import document
from hvctl.sdk import Client

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "build" / "guests"
BIN = Path(sys.executable).parent
BACKEND = "emulation"
# Until something is called broken on a busy machine; nothing takes so long when it works.
SECONDS = 60.0


def kernel(name: str) -> str:
    """A test kernel (guests/README.md)."""
    path = GUESTS / name
    if not path.exists():
        pytest.fail(f"{path} is not built: make guests")
    return str(path)


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = SECONDS) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"after {seconds:.0f} s still not: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)
    return value


def is_process(pid: int) -> bool:
    """It lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Its processes, zombies among them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


class Done(subprocess.CompletedProcess[str]):
    """An hvctl that has ended."""

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def jsonl(self) -> list[Any]:
        return [json.loads(line) for line in self.stdout.splitlines()]


class Process:
    """An hvctl that goes on: its output is gathered by threads of their own, so that it never waits for the test."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.words = words
        self._output = {"stdout": b"", "stderr": b""}
        self._fresh = threading.Condition()
        self.popen = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._output]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        pipe = getattr(self.popen, name)
        while data := os.read(pipe.fileno(), 65536):
            with self._fresh:
                self._output[name] += data
                self._fresh.notify_all()

    @property
    def out(self) -> str:
        return self._output["stdout"].decode(errors="replace")

    @property
    def err(self) -> str:
        return self._output["stderr"].decode(errors="replace")

    def type(self, text: str) -> None:
        assert self.popen.stdin
        try:
            self.popen.stdin.write(text.encode())
        except BrokenPipeError:
            self.end()
            pytest.fail(f"{self.words} ended with {self.popen.returncode}; stdout: {self.out[-3000:]!r}; stderr: {self.err[-2000:]!r}")

    def wait_out(self, text: str, seconds: float = SECONDS) -> str:
        return self._wait("stdout", text, seconds)

    def wait_err(self, text: str, seconds: float = SECONDS) -> str:
        return self._wait("stderr", text, seconds)

    def _wait(self, name: str, text: str, seconds: float) -> str:
        with self._fresh:
            come = self._fresh.wait_for(lambda: text.encode() in self._output[name] or not self._alive(), seconds)
        if not come or text.encode() not in self._output[name]:
            pytest.fail(f"{self.words}: no {text!r} on {name}; stdout: {self.out[-3000:]!r}; stderr: {self.err[-2000:]!r}")
        return self._output[name].decode(errors="replace")

    def _alive(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; its exit code."""
        code = self.popen.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return code

    def interrupt(self) -> int:
        self.popen.send_signal(signal.SIGINT)
        return self.end()

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.end()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            assert pipe
            pipe.close()


class Terminal:
    """An hvctl on a pseudo terminal of its own."""

    def __init__(self, words: list[str], environment: dict[str, str], rows: int = 24, columns: int = 80) -> None:
        self.text = ""
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.resize(rows, columns)
        # Not by a preexec_fn: that makes Popen fork(2), which threads of grpc in this process do not survive unharmed.
        self.child = subprocess.Popen(
            ["setsid", "--ctty", *words], env=environment, stdin=self.slave, stdout=self.slave, stderr=self.slave
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = SECONDS) -> str:
        """What it showed until this text came, which is then forgotten: the next wait is for what comes later."""
        end = time.monotonic() + seconds
        while text not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                pytest.fail(f"no {text!r} on the terminal, only {self.text[-3000:]!r}")
            self.text += os.read(self.master, 65536).decode(errors="replace")
        before, _, self.text = self.text.partition(text)
        return before + text

    def end(self, seconds: float = SECONDS) -> int:
        return self.child.wait(seconds)

    @property
    def restored(self) -> bool:
        """The terminal is as it was before."""
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(SECONDS)
        os.close(self.master)
        os.close(self.slave)


class RealDaemon:
    """One `hvd` with directories of its own; `stop` and `start` make a restart of it."""

    def __init__(self, *options: str, prefix: tuple[str, ...] = ()) -> None:
        """prefix: a command that becomes the daemon's, `ip netns exec NAME` for one."""
        # Not pytest's directory: the paths of unix sockets have 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="hvd-e2e-"))
        # A container's root is below it, and its users are others on the host.
        self.directory.chmod(0o711)
        self.state_dir, self.runtime_dir = self.directory / "state", self.directory / "run"
        self.endpoint = f"unix://{self.directory}/hvd.sock"
        self.log_file = self.directory / "hvd.log"
        self.options, self.prefix = options, prefix
        self.backend = ""  # under which `run` and `create` start their guests, whatever a test says: also_under()
        self.process: subprocess.Popen[bytes] | None = None
        self._started: list[Process | Terminal] = []
        self._number = 0

    # --- the daemon ---

    def start(self) -> None:
        """Returns when it is ready: health says so when every guest has been adopted."""
        words = [*self.prefix, str(BIN / "hvd"), "--state-dir", str(self.state_dir), "--runtime-dir", str(self.runtime_dir),
                 "--listen", self.endpoint, "--metrics-listen", "127.0.0.1:0", *self.options]  # fmt: skip
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with self.client() as client:
            if not client.wait_ready(SECONDS):
                pytest.fail(f"hvd is not ready, exit code {self.process.poll()}:\n{self.log()}")

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the daemon, not the guests; its exit code."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def metrics_url(self) -> str:
        return str(self.hvctl("doctor", "-o", "json").json["metrics_address"])

    # --- hvctl ---

    def _words(self, words: tuple[str, ...]) -> list[str]:
        """With `backend`, and for paravirt the kernels that are made for it."""
        if not self.backend or words[0] not in ("run", "create", "gdb"):
            return list(words)
        chosen = [word for n, word in enumerate(words) if word != "--backend" and words[max(n - 1, 0)] != "--backend"]
        if self.backend == "paravirt":
            chosen = [word.replace(".elf", ".pv.elf") if word.startswith(str(GUESTS)) else word for word in chosen]
        return chosen if words[0] == "gdb" else [chosen[0], "--backend", self.backend, *chosen[1:]]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"HVD_ENDPOINT": self.endpoint, "TERM": "xterm", "PYTHONUNBUFFERED": "1"}

    def hvctl(self, *words: str, stdin: str | bytes = b"", timeout: float = SECONDS, check: bool = False) -> Done:
        """Runs it to its end. check: it must end with 0."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [str(BIN / "hvctl"), *self._words(words)], env=self.environment, input=data, capture_output=True, timeout=timeout, check=False
        )
        out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        result = Done(words, done.returncode, out, err)
        if check and result.returncode:
            pytest.fail(f"hvctl {' '.join(words)} ended with {result.returncode}: {err}")
        assert "Traceback" not in err, err
        return result

    def ok(self, *words: str, **options: Any) -> Done:
        """The same of one that must end with 0."""
        return self.hvctl(*words, check=True, **options)

    def spawn(self, *words: str) -> Process:
        """Starts it with pipes and goes on."""
        process = Process([str(BIN / "hvctl"), *self._words(words)], self.environment)
        self._started.append(process)
        return process

    def terminal(self, *words: str, rows: int = 24, columns: int = 80) -> Terminal:
        """Starts it on a terminal."""
        terminal = Terminal([str(BIN / "hvctl"), *self._words(words)], self.environment, rows, columns)
        self._started.append(terminal)
        return terminal

    def run(self, guest: str, *options: str, name: str = "") -> str:
        """Starts a test kernel in the background ("echo.elf"); its name."""
        self._number += 1
        name = name or f"{guest.partition('.')[0]}-{self._number}"
        self.ok("run", "-d", "--name", name, "--backend", "emulation", "--kernel", kernel(guest), "--memory", "8M", *options)
        return name

    def client(self) -> Client:
        """The SDK's, in this process."""
        return Client(self.endpoint, timeout=SECONDS)

    def show(self, name: str) -> Any:
        """The guest, as `hvctl show -o json` has it; without a process for it, since tests ask often."""
        with self.client() as client:
            return document(client.get_guest(name=f"guests/{name}"))

    def listed(self) -> dict[str, Any]:
        """name -> guest, as `hvctl list -o json` has it; without a process, too."""
        with self.client() as client:
            return {guest.name.removeprefix("guests/"): document(guest) for guest in client.guests()}

    def wait(self, name: str, *states: str, seconds: float = SECONDS) -> Any:
        """The guest when it has ended, or reached one of the states."""
        wanted = [word for state in states for word in ("--for", state)]
        return self.ok("wait", name, *wanted, "--timeout", str(seconds), "-o", "json", timeout=seconds + 30).json

    def wait_logs(self, name: str, text: str, seconds: float = SECONDS) -> str:
        """Its console's log, once it has this text."""
        follower = self.spawn("logs", "-f", name)
        try:
            return follower.wait_out(text, seconds)
        finally:
            follower.close()

    # --- the runners ---

    def runner(self, name: str) -> int:
        """Its process."""
        return int(self.show(name)["host_pid"])

    def runners(self) -> list[int]:
        """Every process that owns a guest of this daemon: of the pid files, and whatever has the runtime directory in its command line. A fork of the
        living daemon has that until it executes what it was made for."""
        own = Path(f"/proc/{self.process.pid}/cmdline").read_bytes() if self.process and self.is_alive else b""
        pids = set()
        for file in self.runtime_dir.glob("guests/*/pid"):
            with_pid = re.search(r'"pid":\s*(\d+)', file.read_text(errors="replace"))
            if with_pid and is_process(int(with_pid[1])):
                pids.add(int(with_pid[1]))
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes()
            except OSError:
                continue
            pid = int(entry.parent.name)
            if str(self.runtime_dir).encode() in command and command != own and pid != (self.process.pid if self.process else 0):
                pids.add(pid)
        return sorted(pid for pid in pids if is_process(pid))

    def clear(self) -> None:
        """Ends what the test left: hvctl processes, then every guest."""
        for started in self._started:
            started.close()
        self._started.clear()
        if self.is_alive:
            with self.client() as client:
                for guest in client.guests():
                    client.delete_guest(name=guest.name, force=True, allow_missing=True)
            wait_for(lambda: not self.runners(), f"no runner is left: {self.runners()}")

    def close(self) -> None:
        try:
            self.clear()
        finally:
            left = self.runners()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            if self.is_alive:
                self.stop()
            log = self.log()
            shutil.rmtree(self.directory, ignore_errors=True)
        assert not left, f"runners were left behind: {left}\n{log}"
        assert "Traceback" not in log, log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def also_under(*backends: str) -> pytest.MarkDecorator:
    """The test runs once more for each of them; what it starts runs there, and under paravirt the kernels are those that are made for it."""
    return pytest.mark.parametrize("daemon", ["", *backends], indirect=True, ids=[BACKEND, *backends])


def require_backend(daemon: RealDaemon, name: str = BACKEND) -> None:
    backends = {found["name"]: found for found in daemon.ok("backends", "-o", "json").json["backends"]}
    found = backends[f"backends/{name}"]
    if found["available"]:
        return
    reason = f"{name}: {found['reason']}; {found['remedy']}"
    if name in os.environ.get("HVD_REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"HVD_REQUIRE_BACKENDS names a backend that does not run here: {reason}")
    pytest.skip(reason)
