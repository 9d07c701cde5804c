"""What the measurements share: a daemon of their own, guests started as users start them, peers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvctl.sdk import Client

from hvd.board.spec import MachineSpec
from hvd.runner import launch
from hvd.runner.directory import COUNTERS, LOG, MACHINE, write_json
from hvd.trace.counters import Counters, read_counters

ROOT = Path(__file__).resolve().parents[1]
GUESTS = ROOT / "build" / "guests"
MIB = 1 << 20
SMALL_MEMORY = 16 * MIB
# Which way of executing is measured: never the fallback.
NATIVE = ("--backend", "emulation", "--engine", "native")
START_SECONDS = 60.0



class Unavailable(Exception):
    """This cannot be measured here; the text says what is missing."""


def kernel(name: str) -> Path:
    """A test kernel. Raises Unavailable."""
    path = GUESTS / name
    if not path.exists():
        raise Unavailable(f"{path.relative_to(ROOT)} is not built: make guests")
    return path


def qemu(arch: str) -> str:
    """The peer of most figures, arch i386 or x86_64. Raises Unavailable."""
    program = shutil.which(f"qemu-system-{arch}")
    if program is None:
        raise Unavailable(f"qemu-system-{arch} is missing: apt install qemu-system-x86")
    return program


def compiled(directory: Path, name: str, *options: str) -> Path:
    """A program of bench/native. Raises Unavailable."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Unavailable("gcc is missing: apt install gcc")
    made = directory / name
    command = [compiler, "-o", str(made), str(ROOT / "bench" / "native" / f"{name}.c"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Unavailable(f"{name}.c cannot be compiled: {done.stderr[-300:]}")
    return made


def pss(pid: int) -> int:
    """Bytes of memory that a process takes, shared pages divided among their users (proc(5), smaps_rollup)."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise Unavailable("/proc/PID/smaps_rollup has no Pss")


def parent(pid: int) -> int:
    """Its parent process (proc(5), stat)."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def counters(directory: Path) -> Counters:
    """A guest directory's counters page."""
    descriptor = os.open(directory / COUNTERS, os.O_RDONLY)
    try:
        return read_counters(descriptor)
    finally:
        os.close(descriptor)


def console_text(directory: Path) -> str:
    """A short guest's console, out of its log (which has not been rotated)."""
    words = [line.split(b" ", 3) for line in (directory / LOG).read_bytes().splitlines()]
    lines = (text + (b"\n" if flag == b"F" else b"") for _, stream, flag, text in words if stream == b"stdout")  # others go on in the next
    return b"".join(lines).decode(errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    """Of a process that this benchmark started."""
    process.kill()
    process.wait(START_SECONDS)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> None:
    """Read its stdout until `wanted` has come. Raises Unavailable when it ends before."""
    assert process.stdout is not None
    data = bytearray()
    while wanted not in data:
        fresh = os.read(process.stdout.fileno(), 65536)
        if not fresh:
            raise Unavailable(f"{process.args!r} ended before {wanted!r}; it said: {bytes(data[-500:])!r}")
        data += fresh


@dataclass(frozen=True, slots=True)
class GuestRun:
    """One guest, from its first instruction to the end of its process."""

    seconds: float
    console: str
    counters: Counters


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon with directories of its own."""

    process: subprocess.Popen[bytes]
    endpoint: str
    runtime_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"HVD_ENDPOINT": self.endpoint}

    def hvctl(self, *words: str) -> list[str]:
        """The command line of the client as users have it."""
        return [str(Path(sys.executable).with_name("hvctl")), *words]

    def run_hvctl(self, *words: str) -> None:
        subprocess.run(
            self.hvctl(*words), env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=120
        )  # fmt: skip

    def client(self) -> Client:
        return Client(self.endpoint)

    def directory(self, uid: str) -> Path:
        return self.runtime_dir / "guests" / uid


class Lab:
    """quick: few and short runs, to see that everything works."""

    def __init__(self, directory: Path, quick: bool) -> None:
        self.quick = quick
        self._directory = directory
        self._made = 0

    def runs(self, usual: int) -> int:
        return min(usual, 2) if self.quick else usual

    def say(self, text: str) -> None:
        """What is being measured now."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def new_directory(self, name: str) -> Path:
        self._made += 1
        directory = self._directory / f"{name}-{self._made}"
        directory.mkdir(mode=0o700)
        return directory

    @contextlib.contextmanager
    def daemon(self, prefix: Sequence[str] = (), options: Sequence[str] = ()) -> Iterator[Daemon]:
        """A daemon that is ready; its guests and itself end with it. prefix: a command that becomes the daemon's; options: of the daemon."""
        directory = self.new_directory("daemon")
        endpoint = f"unix://{directory}/run/hvd.sock"
        with open(directory / "log", "wb") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "hvd.daemon", "--state-dir", str(directory / "state"), "--runtime-dir", str(directory / "run"),
                 "--cache-dir", str(directory / "cache"), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip
        daemon = Daemon(process, endpoint, directory / "run")
        try:
            with Client(endpoint) as client:
                if not client.wait_ready(START_SECONDS):
                    raise Unavailable(f"the daemon does not come up: {(directory / 'log').read_text()[-500:]}")
                client.list_backends()  # waits for the self-checks
                try:
                    yield daemon
                finally:
                    for guest in list(client.guests()):
                        client.delete_guest(name=guest.name, force=True, allow_missing=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)

    def run_guest(self, path: Path, append: str, backend: str = "emulation", engine: str = "native") -> GuestRun:
        """A guest in a runner of its own, as the daemon starts it, without the daemon."""
        directory = self.new_directory(path.stem)
        machine = MachineSpec(path.stem, backend, engine, SMALL_MEMORY, str(path), command_line=append)
        write_json(str(directory / MACHINE), machine.document())
        read, write = os.pipe()
        try:
            pid = launch.spawn(directory, sys.executable, write)
        finally:
            os.close(write)
            os.close(read)
        _, status = os.waitpid(pid, 0)
        ended = time.monotonic_ns()
        if status:
            raise Unavailable(f"the runner of {path.name} ended with status {status}: {launch.log_tail(directory)}")
        page = counters(directory)
        run = GuestRun((ended - page.first_instruction_ns) / 1e9, console_text(directory), page)
        shutil.rmtree(directory)
        return run


@contextlib.contextmanager
def lab(quick: bool) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hvd-bench-") as directory:
        yield Lab(Path(directory), quick)
