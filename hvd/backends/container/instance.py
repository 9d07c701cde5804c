"""The daemon's handle on one running container."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from hvapi.v1 import inspect_pb2

from hvd.backends.container import conmon, memory, rootfs
from hvd.backends.container.cgroup.hierarchy import hierarchy
from hvd.backends.container.cgroup.limits import effects
from hvd.backends.container.cgroup.update import change
from hvd.backends.container.execution import ContainerExecution
from hvd.backends.container.runtime import Runtime
from hvd.backends.container.trace.recorder import RECORDER
from hvd.backends.container_spec import ExecSpec, LimitsSpec
from hvd.backends.contract import Capability, ConsoleAttachment, Execution, Instance, InstanceStatus
from hvd.errors import HvdError
from hvd.runner import directory as names
from hvd.runner.protocol import socket_path
from hvd.trace.points import Kind

log = structlog.get_logger()

CONTAINER = "container.json"
# From SIGKILL of its init to the end of its monitor.
KILL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Record:
    """container.json of the guest directory: what a daemon that comes later must know."""

    uid: str
    engine: str
    state_dir: str
    stop_signal: str
    tty: bool
    init: int
    monitor: int

    def write(self, directory: Path) -> None:
        names.write_json(str(directory / CONTAINER), {field: getattr(self, field) for field in self.__slots__})

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """None when there is none, or none that makes sense."""
        document = names.read_json(str(directory / CONTAINER))
        kinds = {
            "uid": str,
            "engine": str,
            "state_dir": str,
            "stop_signal": str,
            "tty": bool,
            "init": int,
            "monitor": int,
        }
        if document is None or any(not isinstance(document.get(field), kind) for field, kind in kinds.items()):
            return None
        return cls(**{field: document[field] for field in kinds})


class ContainerInstance(Instance):
    """Made in the event loop that uses it, around a container that has been created."""

    def __init__(self, directory: Path, record: Record, runtime: Runtime, state: str) -> None:
        """state: RUNNING, PAUSED. Raises HvdError RUNNER_GONE when its monitor has ended."""
        self.directory = directory
        self.pid = record.init
        self.facts = {"monitor_pid": record.monitor, "rootfs_path": str(Path(record.state_dir) / "rootfs")}
        self._record = record
        self._runtime = runtime
        self._state = state
        self._begun = state == "RUNNING"  # otherwise created, and never run yet
        self._changed = asyncio.Event()
        self._final: InstanceStatus | None = None
        self._killed = False
        # Held while the runtime works on it: a program may end before its `start` has tidied up.
        self._working = asyncio.Lock()
        try:
            self._monitor = os.pidfd_open(record.monitor)
        except ProcessLookupError as error:
            raise HvdError("RUNNER_GONE", problem="its monitor has ended") from error
        self._ending: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(self._monitor, self._on_end)

    def adopt_paused(self) -> None:
        """It was paused while it ran, not created and never begun."""
        self._begun = True

    # ---- state

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._monitor)
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        try:
            RECORDER.end(self._record.uid)
            async with self._working:
                status = await settle(self.directory, self._record, self._runtime, killed=self._killed)
        except Exception as error:  # whatever it was, the guest has ended
            log.exception("container could not be put away", guest=self._record.uid)
            status = InstanceStatus("FAILED", "INTERNAL", f"putting it away failed: {error!r}")
        self._final = status
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def status(self) -> InstanceStatus:
        return self._final or InstanceStatus(self._state)

    async def wait_change(self, known: InstanceStatus) -> InstanceStatus:
        while True:
            changed = self._changed
            if (status := await self.status()) != known:
                return status
            await changed.wait()

    async def close(self) -> None:
        if self._monitor < 0:
            return
        monitor, self._monitor = self._monitor, -1
        RECORDER.end(self._record.uid)
        asyncio.get_running_loop().remove_reader(monitor)
        if self._ending is not None:
            await self._ending
        os.close(monitor)

    # ---- verbs

    def trace(self, mask: int) -> None:
        if mask >> Kind.SYSTEM_CALL & 1 and self._final is None:
            RECORDER.begin(self._record.uid, self.directory, self.pid, mask)
        else:
            RECORDER.end(self._record.uid)

    async def begin(self) -> None:
        """Let its program run for the first time. Raises HvdError CONTAINER_FAILED."""
        async with self._working:
            await self._runtime.start(self._record.uid)
        self._begun = True
        self._state = "RUNNING"
        self._notify()

    async def kill(self) -> None:
        self._killed = True
        if self._final is not None:
            return
        await self._runtime.delete(self._record.uid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await self._until_end()

    async def _until_end(self) -> None:
        while self._final is None:
            await self._changed.wait()

    async def pause(self) -> None:
        if self._state == "RUNNING" and self._final is None:
            async with self._working:
                await self._runtime.pause(self._record.uid)
            self._state = "PAUSED"
            self._notify()

    async def resume(self) -> None:
        if self._final is not None or self._state == "RUNNING":
            return
        if not self._begun:
            await self.begin()
            return
        async with self._working:
            await self._runtime.resume(self._record.uid)
        self._state = "RUNNING"
        self._notify()

    async def request_stop(self) -> bool:
        self.signal(self._record.stop_signal)
        return True

    def signal(self, name: str) -> None:
        """To its init. Raises HvdError FIELD_INVALID, RUNNER_GONE."""
        try:
            number = signal.Signals[name]
        except KeyError:
            raise HvdError(
                "FIELD_INVALID", field="signal", value=repr(name[:40]), problem="is no signal", remedy="use SIGHUP, ..."
            ) from None
        try:
            os.kill(self.pid, number)
        except ProcessLookupError as error:
            raise HvdError("RUNNER_GONE", problem="the container has ended") from error

    async def update_limits(self, old: LimitsSpec, new: LimitsSpec) -> None:
        where = Path(self._record.state_dir)
        async with self._working:
            await asyncio.to_thread(lambda: change(hierarchy(), self._record.uid, old, new, where))

    async def read_memory(self, address: int, length: int, virtual: bool, pid: int = 0) -> bytes:
        return await asyncio.to_thread(memory.read, self._record.uid, pid or self.pid, address, length)

    async def memory_map(self, pid: int = 0) -> inspect_pb2.MemoryMap:
        return await asyncio.to_thread(memory.regions, self._record.uid, pid)

    async def translate(self, address: int, pid: int = 0) -> inspect_pb2.AddressTranslation:
        return await asyncio.to_thread(memory.translate, self._record.uid, pid or self.pid, address)

    async def resize_console(self, rows: int, columns: int) -> None:
        if not self._record.tty:
            return
        try:
            conmon.resize(self.directory, rows, columns)
        except OSError as error:
            raise HvdError("RUNNER_GONE", problem=str(error)) from error

    def execute(self, spec: ExecSpec) -> Execution:
        if self._final is not None:
            raise HvdError("RUNNER_GONE", problem="the container has ended")
        root = Path(self._record.state_dir) / "rootfs"
        return ContainerExecution(self.directory, self._record.uid, root, self._runtime, spec)

    def attach_console(self, read_only: bool) -> ConsoleAttachment:
        return ContainerConsole(self.directory, read_only)


async def settle(directory: Path, record: Record, runtime: Runtime, killed: bool = False) -> InstanceStatus:
    """The monitor has ended: take down what was the container and write how it ended, unless that has been done."""
    if (known := _read_exit(directory)) is not None:
        return known
    code = conmon.read_exit_code(directory, record.uid)
    did = await asyncio.to_thread(lambda: effects(hierarchy(), record.uid))  # gone with the cgroups
    await runtime.delete(record.uid)
    await asyncio.to_thread(rootfs.unmount, Path(record.state_dir))
    status = _end_of(code, killed, did.oom_kills > 0)
    document = {
        "state": status.state, "reason": status.reason, "message": status.message, "exit_code": status.exit_code,
        "time_ns": time.time_ns(), "metadata": dict(status.metadata or {}),
    }  # fmt: skip
    await asyncio.to_thread(names.write_json, str(directory / names.EXIT), document)
    shutil.rmtree(directory / conmon.EXIT_DIRECTORY, ignore_errors=True)
    return status


def _end_of(code: int | None, killed: bool, out_of_memory: bool) -> InstanceStatus:
    metadata: dict[str, str] = {}
    if out_of_memory:
        metadata["oom_killed"] = "true"
    if killed:
        return InstanceStatus("STOPPED", "KILLED", "killed", 137, metadata={**metadata, "exit_signal": "SIGKILL"})
    if code is None:
        return InstanceStatus(
            "FAILED",
            "MONITOR_GONE",
            "its monitor (conmon) was killed, so the container was ended; nobody saw its exit code",
        )
    if code > 128 and code - 128 in {number.value for number in signal.Signals}:
        metadata["exit_signal"] = signal.Signals(code - 128).name
    if out_of_memory and code == 128 + signal.SIGKILL:
        return InstanceStatus(
            "STOPPED", "OUT_OF_MEMORY", f"its memory limit was reached; it ended with {code}", code, metadata=metadata
        )
    return InstanceStatus("STOPPED", "EXITED", f"it ended with {code}", code, metadata=metadata)


def _read_exit(directory: Path) -> InstanceStatus | None:
    document: Mapping[str, Any] | None = names.read_json(str(directory / names.EXIT))
    if document is None:
        return None
    try:
        return InstanceStatus(
            str(document["state"]), str(document["reason"]), str(document["message"]), document["exit_code"],
            metadata=document["metadata"],
        )  # fmt: skip
    except (KeyError, TypeError):
        return None


class ContainerConsole(ConsoleAttachment):
    """A viewer on conmon's attach socket: a packet is one byte stream (2 = stdout, 3 = stderr) and the output."""

    def __init__(self, directory: Path, read_only: bool) -> None:
        self._directory = directory
        self._read_only = read_only
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> ContainerConsole:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with socket_path(self._directory, names.ATTACH) as path:
                await asyncio.get_running_loop().sock_connect(sock, path)
        except OSError as error:
            sock.close()
            raise HvdError("RUNNER_GONE", problem=str(error)) from error
        self._socket = sock
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise HvdError("RUNNER_GONE", problem="the console is not attached")
        return self._socket

    async def output(self) -> AsyncIterator[bytes | int]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(self._open_socket, names.ATTACH_PACKET + 1)
            except ConnectionError:
                return
            if not packet:
                return
            yield packet[1:]

    async def write(self, data: bytes) -> None:
        if self._read_only:
            raise HvdError("REQUEST_INVALID", problem="this attachment is read-only", remedy="attach without read_only")
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), names.ATTACH_PACKET):
            try:
                await loop.sock_sendall(self._open_socket, data[at : at + names.ATTACH_PACKET])
            except ConnectionError as error:
                raise HvdError("RUNNER_GONE", problem="the container has ended") from error


CAPABILITIES = frozenset({
    Capability.CONSOLE, Capability.PAUSE, Capability.STOP, Capability.CONTAINER, Capability.EXEC,
    Capability.SIGNAL, Capability.LIMITS, Capability.MEMORY_MAP, Capability.MEMORY_READ, Capability.TRANSLATE,
})  # fmt: skip
