"""What a kind of virtualisation must provide (Backend), and what the rest of the daemon sees of a running guest (Instance).

Every guest, VM or container, lives in a process that outlives the daemon and speaks one contract: a guest directory
(hvd/runner/directory.py). A Backend says what it can do and launches that process; an Instance is the daemon's handle on it.
The API never asks which kind it talks to: it asks for capabilities.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hvapi.v1 import guest_pb2, inspect_pb2

from hvd.backends.container_spec import ContainerSpec, ExecSpec, LimitsSpec
from hvd.backends.usage import Usage
from hvd.board.spec import DiskSpec, NetworkSpec
from hvd.config import Config
from hvd.errors import HvdError
from hvd.runner.directory import LogPosition
from hvd.trace.points import NOTHING, POINTS, BackendId, Point, Wanted


class Capability(enum.StrEnum):
    """What a guest of a backend can do beyond create, start, kill and delete. The names are API."""

    CONSOLE = "console"
    PAUSE = "pause"
    RESET = "reset"
    STOP = "stop"  # can ask the guest to end by itself
    MEMORY_READ = "memory-read"
    MEMORY_WRITE = "memory-write"
    MEMORY_MAP = "memory-map"
    TRANSLATE = "translate"
    REGISTERS = "registers"
    DEBUG = "debug"  # a debugger: breakpoints, watchpoints, single steps
    TRACE = "trace"
    HYPERCALL = "hypercall"
    CONTAINER = "container"  # runs root file systems as processes of the host
    EXEC = "exec"
    COPY = "copy"  # files in and out, running or not
    LIMITS = "limits"  # of a running guest, too
    SIGNAL = "signal"
    DISK = "disk"
    NETWORK = "network"
    FIRMWARE = "boot-firmware"  # boots from a disk or CD-ROM as a PC does, in real mode
    SCREEN = "screen"
    KEYBOARD = "keyboard"
    SNAPSHOT = "snapshot"
    CENSUS = "census"  # its kernels run unprivileged: sensitive instructions that cannot trap are looked for, or what replaced them is told


@dataclass(frozen=True, slots=True)
class Availability:
    """Does it run here? If not, why, and what would help."""

    available: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One of several ways in which a backend can execute."""

    name: str
    description: str
    availability: Availability


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What a backend needs to start a guest: everything resolved, files as paths in the daemon's own store."""

    uid: str
    name: str  # for people: the guest's id
    engine: str
    memory_bytes: int
    cpus: int
    kernel: Path | None
    initrd: Path | None
    command_line: str
    flat_load_address: int
    restart_on_reset: bool
    start_paused: bool
    args: Sequence[str] = ()
    log_max_bytes: int = 16 << 20
    log_files: int = 2
    settings: Mapping[str, str] | None = None
    boot: str = "kernel"  # otherwise "disk" or "cdrom": there is no kernel then
    disks: Sequence[DiskSpec] = ()
    network_interfaces: Sequence[NetworkSpec] = ()
    card_descriptors: Sequence[int] = ()  # for the guest's process to inherit; the caller's own
    symbols: Path | None = None
    snapshot: Path | None = None  # where to begin, instead of loading the kernel
    traced: Wanted = NOTHING  # somebody listens already
    state_directory: Path | None = None  # what is the guest's own beside the directory of what runs; it may be missing
    jailed: bool = True
    spare_runners: int = 2  # for the starts that follow
    grouped: bool = False  # in a control group of its own, if one can be made; the uid is nobody else's on this host then
    container: ContainerSpec | None = None  # then there is no machine: memory_bytes, cpus, kernel, ... say nothing


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """As the guest's process tells it. state: STARTING, RUNNING, PAUSED, STOPPED, FAILED, LOST."""

    state: str
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    resets: int = 0
    log_error: str = ""
    debugged: bool = False  # a debugger is attached
    sensitive: int = 0  # instructions of its kernel that cannot trap though they should
    neglected: str = ""  # what its kernel has asked for and this kind of virtualisation cannot do, for its user
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """What Instance.save_snapshot did."""

    size_bytes: int
    paused_ns: int  # for so long the guest stood still


@dataclass(frozen=True, slots=True)
class CopyFound:
    """What Files.copy_out gives: the fields of hvd.v1.CopyOutInfo."""

    kind: str
    base_name: str
    size_bytes: int
    mode: int
    link_target: str


class Files(ABC):
    """The files of one guest, running or not."""

    @abstractmethod
    async def copy_in(self, path: str, place: bool, keep_owners: bool, chunks: AsyncIterator[bytes]) -> tuple[int, int]:
        """Unpack a tar as hvd.v1.CopyInSetup says; how many entries and bytes it had. Raises HvdError COPY_*, DISK_FULL, RUNNER_GONE, and what
        `chunks` raises: what has come until then is there."""

    @abstractmethod
    def copy_out(self, path: str, follow_link: bool) -> AsyncGenerator[CopyFound | bytes, None]:
        """What is there, then it as a tar. Raises HvdError COPY_*, RUNNER_GONE."""


class Instance(ABC):
    """The daemon's handle on one running guest. Made by Backend.launch or Backend.adopt."""

    directory: Path
    pid: int
    # Fields of hvd.v1.Guest that are known of it while it runs, beyond its pid.
    facts: Mapping[str, str | int] = MappingProxyType({})
    # As its process told when it had been launched; None = it is to be asked.
    started: InstanceStatus | None = None

    @abstractmethod
    async def status(self) -> InstanceStatus: ...

    @abstractmethod
    async def wait_change(self, known: InstanceStatus) -> InstanceStatus:
        """Returns when the status differs from the known one; the final status comes from the exit record. Never raises for a guest
        that ended or vanished: it answers STOPPED, FAILED or LOST."""

    @abstractmethod
    async def kill(self) -> None:
        """End it at once; no error when it has ended."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of it without ending it (the daemon goes, the guest stays)."""

    # Everything below needs a capability; without it: HvdError CAPABILITY_MISSING.

    async def pause(self) -> None:
        raise missing(self, Capability.PAUSE)

    async def resume(self) -> None:
        raise missing(self, Capability.PAUSE)

    async def reset(self) -> None:
        raise missing(self, Capability.RESET)

    async def request_stop(self) -> bool:
        """Ask the guest to end by itself. False = it cannot hear it (no power button): kill it after the grace period or at once."""
        raise missing(self, Capability.STOP)

    async def read_memory(self, address: int, length: int, virtual: bool, pid: int = 0) -> bytes:
        """length is at most 1 MiB. pid: of a container, whose memory it is, as the host numbers it; 0 = its first process'."""
        raise missing(self, Capability.MEMORY_READ)

    async def write_memory(self, address: int, data: bytes, virtual: bool) -> None:
        raise missing(self, Capability.MEMORY_WRITE)

    async def memory_map(self, pid: int = 0) -> inspect_pb2.MemoryMap:
        """pid: of a container, only that process; 0 = all of it."""
        raise missing(self, Capability.MEMORY_MAP)

    async def translate(self, address: int, pid: int = 0) -> inspect_pb2.AddressTranslation:
        raise missing(self, Capability.TRANSLATE)

    async def registers(self, vcpu: int) -> inspect_pb2.Registers:
        raise missing(self, Capability.REGISTERS)

    async def census(self, count_seconds: float) -> inspect_pb2.Census:
        """Without texts, symbols and effects. count_seconds: for so long their executions are counted; 0 = not at all."""
        raise missing(self, Capability.CENSUS)

    async def trace(self, wanted: Wanted) -> None:  # noqa: B027  most guests' processes see it in their ring
        """Somebody listens to these crossings, or to none any more. Raises HvdError TRACE_UNAVAILABLE, DISK_FULL."""

    async def resize_console(self, rows: int, columns: int) -> None:
        raise missing(self, Capability.CONSOLE)

    async def screen(self) -> guest_pb2.Screen:
        """What it shows now."""
        raise missing(self, Capability.SCREEN)

    async def type_keys(self, strokes: Sequence[Sequence[str]]) -> int:
        """Type on its keyboard: strokes are keys (names of hvd.board.keys) pressed one after the other and released in the opposite
        order. Waits for room for the first; so many were taken. Does not wait for ever: whoever calls it gives up."""
        raise missing(self, Capability.KEYBOARD)

    async def save_snapshot(self, path: Path, about: bytes) -> SavedSnapshot:
        """The whole machine into a file (an absolute path) that does not exist yet; it is complete and on the disk when this returns. On an error,
        and when this is cancelled, no file is left sooner or later. about: JSON that goes into it as it is."""
        raise missing(self, Capability.SNAPSHOT)

    def execute(self, spec: ExecSpec) -> Execution:
        raise missing(self, Capability.EXEC)

    def files(self) -> Files:
        raise missing(self, Capability.COPY)

    async def update_limits(self, old: LimitsSpec, new: LimitsSpec) -> None:
        """Raises HvdError LIMIT_UNAVAILABLE, LIMIT_BELOW_USE, LIMIT_REFUSED: then they are the old ones."""
        raise missing(self, Capability.LIMITS)

    def signal(self, name: str) -> None:
        """To its first process: "SIGHUP"."""
        raise missing(self, Capability.SIGNAL)

    def attach_console(self, read_only: bool) -> ConsoleAttachment:
        raise missing(self, Capability.CONSOLE)

    def attach_debugger(self, architecture: str) -> DebugConnection:
        """architecture: gdb's name of what it wants to see ("i386", "i386:x86-64", "i8086"); empty = what the vcpu executes now."""
        raise missing(self, Capability.DEBUG)


class Execution(ABC):
    """Another program in a running guest, from `async with` on; leaving it kills what still runs of it."""

    @abstractmethod
    async def __aenter__(self) -> Execution:
        """Raises HvdError CONTAINER_FAILED, FIELD_INVALID when it cannot be started."""

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...

    @property
    @abstractmethod
    def pid(self) -> int:
        """Of the program, as the host sees it; 0 = not known."""

    @abstractmethod
    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1 = standard output, 2 = standard error, what was written), to the end of both."""

    @abstractmethod
    async def exit_code(self) -> int:
        """Waits for its end: 0-255, 128 + N for signal N."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """To its standard input. Waits while it does not read; no error when it does not any more."""

    @abstractmethod
    async def end_input(self) -> None: ...

    @abstractmethod
    def resize(self, rows: int, columns: int) -> None:
        """Of its terminal, if it has one."""


class ConsoleAttachment(ABC):
    """One viewer of a guest's console."""

    # Where in the console log the first byte of output() stands; open while the viewer is attached. None: the guest's process does
    # not tell (conmon), and whoever wants what was before has to match the log's end with the output.
    position: LogPosition | None = None

    @abstractmethod
    async def __aenter__(self) -> ConsoleAttachment: ...

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...

    @abstractmethod
    def output(self) -> AsyncIterator[bytes | int]:
        """What the guest writes from now on; an int says that so many bytes were skipped because this viewer was slow. Ends with the guest."""

    @abstractmethod
    async def write(self, data: bytes) -> None: ...

    async def end_input(self) -> None:  # noqa: B027  a terminal's input has no end
        """Nothing more will be typed. No error when that means nothing to the guest."""


class DebugConnection(ABC):
    """The one debugger of a guest, and gdb's remote protocol. Entering it stops the guest; leaving it lets the guest go on."""

    architecture: str  # what gdb sees; set when it is entered

    @abstractmethod
    async def __aenter__(self) -> DebugConnection:
        """Raises HvdError DEBUGGER_ATTACHED, CAPABILITY_MISSING, RUNNER_GONE, RUNNER_TIMEOUT."""

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...

    @abstractmethod
    async def read(self) -> bytes:
        """What the guest's stub says; empty = it has ended the session."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """What the debugger says. Waits while the stub does not read. No error when it has gone."""


class Backend(ABC):
    """One kind of virtualisation. hvd/backends/NAME/backend.py sets BACKEND to one of these."""

    name: str
    id: BackendId
    kind: str
    description: str
    capabilities: frozenset[Capability]
    # Capability that it would have elsewhere -> why not here.
    limitations: Mapping[Capability, str] = MappingProxyType({})
    # What is worse here than elsewhere, for `hvctl doctor`.
    remarks: Sequence[str] = ()
    # Of the backends that can run a guest, the highest is chosen when nobody asked for one.
    preference: int
    # Points of its own, besides hvd.trace.points.POINTS.
    own_trace_points: tuple[Point, ...] = ()
    # The streams of the log that are the guest's console. A VM's stderr is what it logged by hypercalls.
    console_streams: frozenset[str] = frozenset({"stdout"})

    def configure(self, config: Config) -> None:  # noqa: B027  most have no settings
        """Called once, before anything else, by the daemon."""

    @abstractmethod
    def probe(self) -> Availability:
        """Can it run here? Cached by the caller; may take seconds; never raises."""

    @abstractmethod
    def engines(self) -> Sequence[EngineInfo]:
        """Its ways of executing, the default first. Empty = there is but one."""

    def vcpu_format(self, engine: str) -> str:
        """The form of a saved vcpu under this engine, of which its snapshots are and which it can restore (hvd.board.ia32.FORMAT);
        empty = it cannot."""
        return ""

    @abstractmethod
    def check(self, spec: LaunchSpec) -> None:
        """Raises HvdError when it can not run this guest: format, memory, architecture. Reads the kernel's header, starts nothing."""

    @abstractmethod
    async def launch(self, spec: LaunchSpec, directory: Path) -> Instance:
        """Start the guest's process in its directory; returns when the guest runs or raises HvdError.

        The directory exists. Of an earlier run only the console log is left, to be appended to; a trace ring in it was made for this
        run, because somebody listens already (hvd/runner/directory.py)."""

    @abstractmethod
    async def adopt(self, directory: Path) -> Instance:
        """The handle on a guest that an earlier daemon started. Raises HvdError RUNNER_GONE when it has ended or cannot be trusted."""

    async def settle(self, directory: Path) -> None:  # noqa: B027  most backends' processes leave nothing to do
        """Before the exit record of a guest is read that no daemon watched: write it, if the guest's process leaves something that
        it can be made of. Does not raise for what it finds."""

    def usage(self, directory: Path) -> Usage | None:
        """What the guest of this directory has used in this run, where its process and its counters page do not tell; None = they do, or it
        does not run. Called in worker threads, for every guest at every reading of metrics: a few dozen small files at most."""
        return None

    def stopped_files(self, spec: LaunchSpec) -> Files:
        """Of a guest that does not run, and is not started while they are used."""
        raise HvdError("CAPABILITY_MISSING", backend=self.name, capability=Capability.COPY.value)

    def check_limits(self, limits: LimitsSpec) -> None:
        """Can guests of this backend have them here? Raises HvdError LIMIT_UNAVAILABLE, CAPABILITY_MISSING."""
        raise HvdError("CAPABILITY_MISSING", backend=self.name, capability=Capability.LIMITS.value)

    @property
    def trace_points(self) -> Sequence[Point]:
        return (*POINTS, *self.own_trace_points)


def missing(instance: Instance, capability: Capability) -> HvdError:
    return HvdError("CAPABILITY_MISSING", backend=type(instance).__name__, capability=capability.value)


async def bounded(seconds: float, call: str, work: asyncio.Future[object]) -> object:
    """Await an answer of the guest's process, but not for ever."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        raise HvdError("RUNNER_TIMEOUT", call=call, seconds=seconds) from None
