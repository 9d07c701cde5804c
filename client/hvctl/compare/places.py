"""Where work runs: on the host, in a container, in a Linux guest of a backend, in one of QEMU's. One class each, one shape."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from hvapi.v1 import guest_pb2, system_pb2

from hvctl.compare.kinds import WHY
from hvctl.compare.shell import PROMPT, ConsoleLine, PipeLine, Shell
from hvctl.sdk import Client
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.guests import GuestSpec

MEMORY_BYTES: Final = 128 << 20
# Until a guest that was booted has mounted its disk.
MOUNT_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02
# Until the reader of a container's system calls has all of them.
_COUNT_SECONDS: Final = 10.0
# What `ops mark` calls. Calls are counted by a reader, later than they are made: when it has this one, it has those before it.
_MARK: Final = ("system-call", "getpgid")
# Calls that nobody could count: of containers that are traced by the kernel's trace files, when its buffers were full.
LOST: Final = ("lost", "lost")
REPLAY_BYTES: Final = 1 << 20
# The root file system of the work, in a guest: by a disk that is mounted here.
_MOUNT: Final = (
    "mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && mkdir -p /mnt/proc /mnt/sys /mnt/dev /mnt/tmp"
    " && mount -t proc proc /mnt/proc && mount -t sysfs sys /mnt/sys && mount -t devtmpfs dev /mnt/dev"
)
# (kind, reason) of a crossing -> how many.
Crossings = dict[tuple[str, str], int]


class Usage(NamedTuple):
    """What a place has used since it was opened."""

    crossings: Crossings | None  # None = nobody counts them there
    memory_bytes: int  # resident now, when no work is done; 0 = nothing, or not known


class Patience(NamedTuple):
    """Seconds that a guest may say nothing while it boots; and one whose kernel is known not to bear its backend."""

    boot: float
    doubtful: float


class Place(Protocol):
    """opened() is the time in which it can run programs. All raise HvctlError for a reason to tell."""

    def opened(self, patience: Patience) -> contextlib.AbstractContextManager[Session]: ...


class Session(Protocol):
    def run(self, words: Sequence[str], seconds: float) -> str:
        """A program of the root file system and its arguments: what it wrote to its standard output. It fails when it takes longer."""

    def usage(self) -> Usage: ...


@dataclass(frozen=True, slots=True)
class Root:
    """The root file system that the work is in, wherever it is needed. program: where in it `ops` is."""

    folder: Path | None  # None = only the images have it
    rootfs_image: str
    disk_image: str
    disk_file: Path
    program: str


@dataclass(slots=True)
class Native:
    """Processes of the host, as hvctl itself is one. scratch: their working directory."""

    program: Path
    scratch: Path

    @contextlib.contextmanager
    def opened(self, patience: Patience) -> Iterator[Session]:
        yield _NativeSession(self.program, self.scratch)


class _NativeSession:
    def __init__(self, program: Path, scratch: Path) -> None:
        self._program, self._scratch = program, scratch

    def run(self, words: Sequence[str], seconds: float) -> str:
        command = [str(self._program), *words[1:]]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=self._scratch, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            problem = f"not done after {seconds:.0f} s"
            raise HvctlError.local("PROGRAM_FAILED", program=" ".join(words), problem=problem, remedy="") from error
        except OSError as error:
            problem = f"{error.strerror} (it is a 32-bit program)"
            raise HvctlError.local("PROGRAM_FAILED", program=self._program, problem=problem, remedy="") from error
        if done.returncode:
            raise _failed(words, done.returncode)
        return done.stdout.decode(errors="replace")

    def usage(self) -> Usage:
        return Usage(None, 0)


@dataclass(slots=True)
class Container:
    """A container of the root. counted: its system calls are traced, which costs time, and counted."""

    client: Client
    backend: system_pb2.Backend
    root: Root
    name: str
    counted: bool = False

    @contextlib.contextmanager
    def opened(self, patience: Patience) -> Iterator[Session]:
        spec = GuestSpec(name=self.name, backend=backend_id(self.backend), image=self.root.rootfs_image, args=(self.root.program, "wait"))
        with guest(self.client, spec), _traced(self.client, self.name) if self.counted else contextlib.nullcontext():
            yield _ContainerSession(self.client, self.name, self.root.program, self.counted)


@contextlib.contextmanager
def _traced(client: Client, name: str) -> Iterator[None]:
    """Its system calls are traced, and so counted."""
    with client.stream_trace(names=[f"guests/{name}"]) as trace:
        next(trace)  # the header: it is traced from here on
        reader = threading.Thread(target=lambda: all(True for _ in trace), name="compare-trace")
        reader.start()
        try:
            yield
        finally:
            trace.cancel()
            reader.join()


class _ContainerSession:
    def __init__(self, client: Client, name: str, program: str, counted: bool) -> None:
        self._client, self._name, self._program, self._counted, self._marks = client, name, program, counted, 0

    def run(self, words: Sequence[str], seconds: float) -> str:
        setup = guest_pb2.ExecSetup(name=f"guests/{self._name}", command=list(words))
        with self._client.execute(setup, timeout=seconds) as execution:
            execution.end_input()
            output = b"".join(data for stream, data in execution if stream == 1)
        if execution.exit_code:
            raise _failed(words, execution.exit_code)
        return output.decode(errors="replace")

    def usage(self) -> Usage:
        if not self._counted:
            return guest_usage(self._client, self._name, False)
        self.run([self._program, "mark"], _COUNT_SECONDS)
        self._marks += 1
        until = time.monotonic() + _COUNT_SECONDS
        while (found := guest_usage(self._client, self._name)).crossings and time.monotonic() < until:
            assert found.crossings is not None
            if found.crossings.get(_MARK, 0) >= self._marks:
                break
            time.sleep(_LOOK_SECONDS)
        return found


@dataclass(slots=True)
class LinuxGuest:
    """The small Linux under a backend, the root on a disk."""

    client: Client
    backend: system_pb2.Backend
    root: Root
    name: str
    linux_image: str

    @contextlib.contextmanager
    def opened(self, patience: Patience) -> Iterator[Session]:
        disk = guest_pb2.Disk(image=f"images/{self.root.disk_image}")
        spec = GuestSpec(name=self.name, backend=backend_id(self.backend), image=self.linux_image, memory_bytes=MEMORY_BYTES, disks=[disk])
        with guest(self.client, spec), self.client.console(self.name_of_resource, replay_bytes=REPLAY_BYTES) as console:
            try:
                boot = patience.doubtful if self.backend.kind in WHY else patience.boot
                yield _ShellSession(Shell(ConsoleLine(console)), lambda: guest_usage(self.client, self.name), boot)
            except HvctlError as error:
                raise told_end(self.client, self.name, error) from error

    @property
    def name_of_resource(self) -> str:
        return f"guests/{self.name}"


@dataclass(slots=True)
class Qemu:
    """The same Linux under QEMU's translator."""

    program: str
    kernel: Path
    initrd: Path
    append: str
    root: Root

    @contextlib.contextmanager
    def opened(self, patience: Patience) -> Iterator[Session]:
        command = [
            self.program, "-accel", "tcg", "-m", str(MEMORY_BYTES >> 20), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
            "-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", self.append,
            "-drive", f"file={self.root.disk_file},if=virtio,format=raw,snapshot=on",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            yield _ShellSession(Shell(PipeLine(process)), lambda: Usage(None, status_bytes(process.pid, "VmRSS")), patience.boot)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):  # what was typed and never read
                    pipe.close()  # type: ignore[union-attr]


class _ShellSession:
    def __init__(self, shell: Shell, usage: UsageOf, boot_seconds: float) -> None:
        self._shell, self._usage = shell, usage
        shell.wait(PROMPT, boot_seconds)
        text, code = shell.run(_MOUNT, MOUNT_SECONDS)
        if code:
            raise HvctlError.local("NOT_EXPLAINED", problem=f"the guest could not mount its disk: {text[-200:].strip()!r}")

    def run(self, words: Sequence[str], seconds: float) -> str:
        text, code = self._shell.run(f"chroot /mnt {shlex.join(words)} </dev/null", seconds)
        if code:
            raise _failed(words, code)
        return text

    def usage(self) -> Usage:
        return self._usage()


class UsageOf(Protocol):
    def __call__(self) -> Usage: ...


def qemu_program() -> str:
    """Raises HvctlError PROGRAM_MISSING."""
    found = shutil.which("qemu-system-i386")
    if found is None:
        raise HvctlError.local("PROGRAM_MISSING", program="qemu-system-i386", package="qemu-system-x86")
    return found


def backend_id(backend: system_pb2.Backend) -> str:
    return backend.name.removeprefix("backends/")


@contextlib.contextmanager
def guest(client: Client, spec: GuestSpec) -> Iterator[guest_pb2.Guest]:
    """One that runs, and is deleted afterwards."""
    made = client.create(spec)
    try:
        yield client.start_guest(name=made.name)
    finally:
        client.delete_guest(name=made.name, force=True, allow_missing=True)


def guest_usage(client: Client, name: str, counted: bool = True) -> Usage:
    """counted: its crossings are."""
    rows = client.summarize_trace(name=f"guests/{name}").rows if counted else ()
    with client.watch_stats(names=[f"guests/{name}"]) as responses:
        memory = next(responses).stats[0].memory_resident_bytes
    return Usage({(row.kind, row.reason): row.count for row in rows} if counted else None, memory)


def told_end(client: Client, name: str, error: HvctlError) -> HvctlError:
    """The failure with what became of the guest, and what was found in its kernel."""
    found = client.get_guest(name=f"guests/{name}")
    if found.state in (guest_pb2.Guest.RUNNING, guest_pb2.Guest.PAUSED):
        problem = error.message
    else:
        problem = f"the guest ended: {found.reason}{f' ({found.status_message})' if found.status_message else ''}"
    if "census" in found.capabilities:
        with contextlib.suppress(HvctlError):
            sensitive = client.get_census(name=found.name).instructions
            if sensitive:
                problem += f"; its kernel has {len(sensitive)} sensitive instructions that cannot trap, such as {sensitive[0].text}"
    return HvctlError.local("NOT_EXPLAINED", problem=problem)


def _failed(words: Sequence[str], code: int) -> HvctlError:
    return HvctlError.local("PROGRAM_FAILED", program=" ".join(words), problem=f"exit code {code}", remedy="")


def status_bytes(pid: int, field: str) -> int:
    """Of proc(5), status: "VmRSS", "VmHWM"; 0 = the process is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
