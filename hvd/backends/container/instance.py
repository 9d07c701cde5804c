"""The daemon's handle on one running container."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import structlog
from hvapi.v1 import inspect_pb2

from hvd.backends.container import conmon, memory
from hvd.backends.container.cgroup.update import change
from hvd.backends.container.console import ContainerConsole
from hvd.backends.container.ending import settle
from hvd.backends.container.execution import ContainerExecution
from hvd.backends.container.files.copying import ContainerFiles
from hvd.backends.container.record import Record
from hvd.backends.container.rotation import Rotation
from hvd.backends.container.runtime import Runtime
from hvd.backends.container.trace.recorder import RECORDER
from hvd.backends.container_spec import ExecSpec, LimitsSpec
from hvd.backends.contract import Capability, ConsoleAttachment, Execution, Files, Instance, InstanceStatus
from hvd.cgroup.hierarchy import hierarchy
from hvd.errors import HvdError
from hvd.trace.points import Kind, Wanted

log = structlog.get_logger()

# From SIGKILL of its init to the end of its monitor.
KILL_SECONDS = 10.0


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
        self._over = False  # it has ended, or was let go of
        # Held while the runtime works on it: a program may end before its `start` has tidied up.
        self._working = asyncio.Lock()
        # Held while it is taken down: a container that is killed ends before the runtime has tidied up.
        self._deleting = asyncio.Lock()
        try:
            self._monitor = os.pidfd_open(record.monitor)
        except ProcessLookupError as error:
            raise HvdError("RUNNER_GONE", problem="its monitor has ended") from error
        self._ending: asyncio.Task[None] | None = None
        # Of viewers that have left: closing one would end the container's standard input.
        self._left: list[socket.socket] = []
        self._rotation = Rotation(directory, record.log_files)
        self._files = ContainerFiles({"init": record.init, "uid": record.uid})
        asyncio.get_running_loop().add_reader(self._monitor, self._on_end)

    def adopt_paused(self) -> None:
        """It was paused while it ran, not created and never begun."""
        self._begun = True

    # ---- state

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._monitor)
        self._over = True
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        try:
            await self._files.end()  # they hold its root
            async with self._working, self._deleting:
                status = await settle(self.directory, self._record, self._runtime, killed=self._killed)
        except Exception as error:  # whatever it was, the guest has ended
            log.exception("container could not be put away", guest=self._record.uid)
            status = InstanceStatus("FAILED", "INTERNAL", f"putting it away failed: {error!r}")
        self._final = status
        self._rotation.end()
        self._let_go()
        self._notify()

    def _let_go(self) -> None:
        for viewer in self._left:
            viewer.close()
        self._left.clear()

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
        self._over = True
        asyncio.get_running_loop().remove_reader(monitor)
        await asyncio.to_thread(RECORDER.end, self._record.uid)
        if self._ending is not None:
            await self._ending
        self._rotation.end()
        self._let_go()
        os.close(monitor)

    # ---- verbs

    async def trace(self, wanted: Wanted) -> None:
        uid = self._record.uid
        if wanted.mask >> Kind.SYSTEM_CALL & 1 and not self._over:
            await asyncio.to_thread(RECORDER.begin, uid, self.directory, self.pid, wanted.mask, wanted.points)
        if self._over or not wanted.mask >> Kind.SYSTEM_CALL & 1:  # it may have ended meanwhile
            await asyncio.to_thread(RECORDER.end, uid)

    async def begin(self) -> None:
        """Let its program run for the first time. Raises HvdError CONTAINER_FAILED."""
        async with self._working:
            await self._runtime.start(self._record.uid)
        self._begun = True
        self._state = "RUNNING"
        self._notify()

    async def kill(self) -> None:
        self._killed = True
        async with self._deleting:
            if self._final is not None:
                return
            await self._runtime.delete(self._record.uid)
        if self._monitor < 0:
            return  # closed: whoever has it now sees its end
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

    def files(self) -> Files:
        return self._files

    def attach_console(self, read_only: bool) -> ConsoleAttachment:
        return ContainerConsole(self.directory, read_only, self._left if self._record.stdin_ends else None)


CAPABILITIES = frozenset({
    Capability.CONSOLE, Capability.PAUSE, Capability.STOP, Capability.CONTAINER, Capability.EXEC, Capability.COPY,
    Capability.SIGNAL, Capability.LIMITS, Capability.MEMORY_MAP, Capability.MEMORY_READ, Capability.TRANSLATE,
})  # fmt: skip
