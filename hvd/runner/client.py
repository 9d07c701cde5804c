"""RunnerInstance: the daemon's handle on a virtual machine, whatever executes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvapi.runner.v1 import control_pb2
from hvapi.v1 import guest_pb2, inspect_pb2

from hvd.backends.contract import (
    Capability,
    ConsoleAttachment,
    DebugConnection,
    Instance,
    InstanceStatus,
    LaunchSpec,
    SavedSnapshot,
)
from hvd.board.spec import MachineSpec
from hvd.errors import HvdError
from hvd.jail import group, user
from hvd.jail.enter import Jail
from hvd.runner import ending, launch
from hvd.runner.channel import Channel
from hvd.runner.console_client import RunnerConsole
from hvd.runner.debug_client import RunnerDebugger
from hvd.runner.directory import EXIT, JAIL, MACHINE, RUNNER_LOG, ExitRecord, read_json, write_json
from hvd.runner.ended import ENDED, crashed, read_exit
from hvd.runner.likeness import Likeness
from hvd.runner.process import RunnerProcess, start_runner
from hvd.runner.rewritten import census_of_message

START_SECONDS = 60.0
CALL_SECONDS = 10.0
# Bytes a second.
SLOWEST_READING = 16e6
# From the signal to the exit record; the runner itself gives the vcpu two seconds.
KILL_SECONDS = 5.0
# Between attempts to reach a runner that lives but does not talk.
RETRY_SECONDS = 1.0


class RunnerInstance(Instance):
    """Made by launch() or adopt(), in the event loop that uses it."""

    def __init__(
        self,
        directory: Path,
        process: RunnerProcess,
        backend: str,
        capabilities: frozenset[Capability],
    ) -> None:
        """Takes its pidfd over."""
        self.directory = directory
        self.backend = backend
        self.capabilities = capabilities
        self.pid, self._pidfd, self._reap = process
        self._wait_status: int | None = None
        self._exited = asyncio.Event()
        self._reaping: asyncio.Task[None] | None = None
        self._joining: asyncio.Task[None] | None = None
        self._closed = False
        self._calls = Channel(directory)
        self._waits = Channel(directory)
        self._typing = Channel(directory)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    # ---- making one

    @classmethod
    async def launch(
        cls,
        directory: Path,
        spec: LaunchSpec,
        backend: str,
        capabilities: frozenset[Capability],
        executable: str = sys.executable,
    ) -> RunnerInstance:
        """Start a runner in an existing directory; returns when the guest runs.

        backend: its folder below hvd/backends. capabilities: what its guests can do; other verbs answer
        CAPABILITY_MISSING.
        Raises HvdError: what the runner says of the image, RUNNER_START_FAILED, DISK_FULL.
        """
        if spec.kernel is None and spec.boot == "kernel":
            raise HvdError("KERNEL_MISSING")
        machine = MachineSpec(
            name=spec.name,
            backend=backend,
            engine=spec.engine,
            memory_bytes=spec.memory_bytes,
            kernel=str(spec.kernel.absolute()) if spec.kernel else "",
            initrd=str(spec.initrd.absolute()) if spec.initrd else "",
            command_line=" ".join(word for word in (spec.command_line, *spec.args) if word),
            flat_load_address=spec.flat_load_address,
            restart_on_reset=spec.restart_on_reset,
            start_paused=spec.start_paused,
            log_max_bytes=spec.log_max_bytes,
            log_files=spec.log_files,
            uid=spec.uid,
            boot=spec.boot,
            disks=tuple(spec.disks),
            network_interfaces=tuple(spec.network_interfaces),
            symbols=str(spec.symbols.absolute()) if spec.symbols else "",
            snapshot=str(spec.snapshot.absolute()) if spec.snapshot else "",
        )
        read, write = os.pipe()
        try:
            try:
                write_json(str(directory / MACHINE), machine.document() | _jail(spec, directory))
                # In a thread: a template that hangs is waited for some seconds, and nobody else shall wait with it.
                starting = asyncio.create_task(
                    asyncio.to_thread(_start, spec, machine, directory, executable, write)
                )
                process = await asyncio.shield(starting)
            except OSError as error:
                raise launch.file_error(error, directory) from error
            except asyncio.CancelledError:
                with contextlib.suppress(OSError):
                    await cls(directory, await starting, backend, capabilities)._discard()
                raise
            finally:
                os.close(write)
            instance = cls(directory, process, backend, capabilities)
            instance._join(spec)
            await instance._started(read, START_SECONDS + _restoring_seconds(spec.snapshot))
        finally:
            os.close(read)
        return instance

    async def _started(self, ready: int, seconds: float) -> None:
        """Wait for the runner's word; without a good one the process is gone when this raises."""
        try:
            async with asyncio.timeout(seconds):
                answer = launch.ready_answer(await launch.read_line(ready), self.directory)
        except TimeoutError:
            problem = f"it was not ready after {seconds:.0f} s"
            answer = HvdError("RUNNER_START_FAILED", problem=problem, log=self.directory / RUNNER_LOG)
        except asyncio.CancelledError:
            await asyncio.shield(self._discard())
            raise
        if isinstance(answer, HvdError):
            await self._discard()
            raise answer
        self.started = InstanceStatus(answer) if answer else None

    async def _discard(self) -> None:
        await self.kill()
        await self.close()

    @classmethod
    async def adopt(cls, directory: Path, backend: str, capabilities: frozenset[Capability]) -> RunnerInstance:
        """The handle on a runner that an earlier daemon started. Raises HvdError RUNNER_GONE; then read_exit() says
        how it ended."""
        if (directory / EXIT).exists():
            raise HvdError("RUNNER_GONE", problem="the guest has ended")
        pid, pidfd = launch.find(directory)
        instance = cls(directory, RunnerProcess(pid, pidfd, lambda: None), backend, capabilities)
        instance._join()
        return instance

    def _join(self, spec: LaunchSpec | None = None) -> None:
        """Its processes into their control group, while the guest starts or goes on. spec: of a new one."""
        self._joining = asyncio.create_task(asyncio.to_thread(_join_group, self.directory, self.pid, spec))

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._reaping = asyncio.create_task(self._take_status())

    async def _take_status(self) -> None:
        try:
            if self._joining is not None:
                await self._joining
            self._wait_status = await asyncio.to_thread(self._bury)
        finally:
            self._exited.set()

    def _bury(self) -> int | None:
        status = self._reap()
        ending.put_away(self.directory)
        return status

    # ---- state

    async def status(self) -> InstanceStatus:
        """Raises HvdError RUNNER_TIMEOUT when the runner lives but does not answer."""
        if self._exited.is_set():
            return self._final()
        try:
            status = await self._call("get_status", control_pb2.GetStatus())
        except HvdError as error:
            if error.reason != "RUNNER_GONE":
                raise
            return await self._ending(error)
        return await self._settled(_status(status))

    async def _ending(self, error: HvdError) -> InstanceStatus:
        """The connection broke: usually because the process is about to end."""
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await self._exited.wait()
        except TimeoutError:
            raise error from None
        return self._final()

    async def _settled(self, status: InstanceStatus) -> InstanceStatus:
        """Of a guest that has ended, what the record says, which comes last."""
        if status.state not in ENDED:
            return status
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await self._exited.wait()
                return self._final()
        return status

    async def wait_change(self, known: InstanceStatus) -> InstanceStatus:
        while not self._exited.is_set():
            status = await self._wait_once(known)
            if status is not None and status != known:
                return status
        return self._final()

    async def _wait_once(self, known: InstanceStatus) -> InstanceStatus | None:
        """None: ask again."""
        request = control_pb2.WaitStatus(
            state=known.state,
            resets=known.resets,
            log_failing=bool(known.log_error),
            debugged=known.debugged,
            sensitive_instructions=known.sensitive,
            neglected=known.neglected,
        )
        answer = asyncio.ensure_future(self._waits.call("wait_status", request))
        exited = asyncio.ensure_future(self._exited.wait())
        try:
            await asyncio.wait((answer, exited), return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return self._final()
            try:
                return await self._settled(_status(await answer))
            except HvdError:
                # It ends, and the pidfd says so; or it is in trouble, and may come out of it.
                await asyncio.wait((exited,), timeout=RETRY_SECONDS)
                return None
        finally:
            exited.cancel()
            if not answer.done():
                answer.cancel()
            await asyncio.gather(answer, exited, return_exceptions=True)

    def _final(self) -> InstanceStatus:
        return read_exit(self.directory) or crashed(self.directory, self.pid, self._wait_status)

    # ---- verbs

    async def kill(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await self._exited.wait()
                break
        else:
            raise HvdError("RUNNER_TIMEOUT", call="SIGKILL", seconds=KILL_SECONDS)
        if number == signal.SIGKILL and not (self.directory / EXIT).exists():
            # It could not say so itself.
            with contextlib.suppress(OSError):
                ExitRecord(str(self.directory)).write("KILLED", "killed; its runner did not react", 0, {})

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._calls.close()
        self._waits.close()
        self._typing.close()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)

    async def pause(self) -> None:
        await self._verb(Capability.PAUSE, "pause", control_pb2.Pause())

    async def resume(self) -> None:
        await self._verb(Capability.PAUSE, "resume", control_pb2.Resume())

    async def reset(self) -> None:
        await self._verb(Capability.RESET, "reset", control_pb2.Reset())

    async def request_stop(self) -> bool:
        if Capability.STOP not in self.capabilities:
            return False
        try:
            await self._call("power_button", control_pb2.PowerButton())
        except HvdError as error:
            if error.reason == "CAPABILITY_MISSING":
                return False
            raise
        return True

    async def read_memory(self, address: int, length: int, virtual: bool, pid: int = 0) -> bytes:
        request = control_pb2.ReadMemory(address=address, length=length, virtual=virtual)
        data: control_pb2.MemoryData = await self._verb(Capability.MEMORY_READ, "read_memory", request)
        return data.data

    async def write_memory(self, address: int, data: bytes, virtual: bool) -> None:
        await self._verb(
            Capability.MEMORY_WRITE,
            "write_memory",
            control_pb2.WriteMemory(address=address, data=data, virtual=virtual),
        )

    async def memory_map(self, pid: int = 0) -> inspect_pb2.MemoryMap:
        answer: inspect_pb2.MemoryMap = await self._verb(
            Capability.MEMORY_MAP, "get_memory_map", control_pb2.GetMemoryMap()
        )
        return answer

    async def translate(self, address: int, pid: int = 0) -> inspect_pb2.AddressTranslation:
        request = control_pb2.TranslateAddress(address=address)
        answer: inspect_pb2.AddressTranslation = await self._verb(Capability.TRANSLATE, "translate_address", request)
        return answer

    async def registers(self, vcpu: int) -> inspect_pb2.Registers:
        answer: inspect_pb2.Registers = await self._verb(
            Capability.REGISTERS, "get_registers", control_pb2.GetRegisters(vcpu=vcpu)
        )
        return answer

    async def census(self, count_seconds: float) -> inspect_pb2.Census:
        """On a connection of its own: it takes as long as it takes."""
        self._need(Capability.CENSUS)
        if self._exited.is_set():
            raise HvdError("RUNNER_GONE", problem="the guest has ended")
        channel = Channel(self.directory)
        try:
            answer: inspect_pb2.Census | control_pb2.Rewritten = await channel.call(
                "get_census", control_pb2.GetCensus(count_ns=round(count_seconds * 1e9))
            )
        finally:
            channel.close()
        return await asyncio.to_thread(census_of_message, answer) if isinstance(answer, control_pb2.Rewritten) else answer

    async def save_snapshot(self, path: Path, about: bytes) -> SavedSnapshot:
        """On a connection of its own: other calls do not wait for it. However long it takes, it ends with the runner."""
        self._need(Capability.SNAPSHOT)
        if self._exited.is_set():
            raise HvdError("RUNNER_GONE", problem="the guest has ended")
        channel = Channel(self.directory)
        try:
            request = control_pb2.SaveSnapshot(path=str(path), about=about)
            saved: control_pb2.SnapshotSaved = await channel.call("save_snapshot", request)
        finally:
            channel.close()
        return SavedSnapshot(saved.size_bytes, saved.paused_ns)

    async def resize_console(self, rows: int, columns: int) -> None:
        await self._verb(Capability.CONSOLE, "resize_console", control_pb2.ResizeConsole(rows=rows, columns=columns))

    async def screen(self) -> guest_pb2.Screen:
        answer: guest_pb2.Screen = await self._verb(Capability.SCREEN, "get_screen", control_pb2.GetScreen())
        return answer

    async def type_keys(self, strokes: Sequence[Sequence[str]]) -> int:
        """On a connection of its own, which waits; when the caller gives up, it is closed and the runner forgets the keys."""
        self._need(Capability.KEYBOARD)
        if self._exited.is_set():
            raise HvdError("RUNNER_GONE", problem="the guest has ended")
        request = control_pb2.TypeKeys(strokes=[control_pb2.Stroke(keys=stroke) for stroke in strokes])
        answer: control_pb2.KeysTyped = await self._typing.call("type_keys", request)
        return answer.strokes

    def attach_console(self, read_only: bool) -> ConsoleAttachment:
        self._need(Capability.CONSOLE)
        return RunnerConsole(self.directory, read_only)

    def attach_debugger(self, architecture: str) -> DebugConnection:
        self._need(Capability.DEBUG)
        return RunnerDebugger(self.directory, architecture)

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise HvdError("CAPABILITY_MISSING", backend=self.backend, capability=capability.value)

    async def _verb(self, capability: Capability, name: str, request: Any) -> Any:
        """A call that needs a capability."""
        self._need(capability)
        return await self._call(name, request)

    async def _call(self, name: str, request: Any) -> Any:
        """Raises HvdError: the runner's own, RUNNER_TIMEOUT, RUNNER_GONE."""
        if self._exited.is_set():
            raise HvdError("RUNNER_GONE", problem="the guest has ended")
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._calls.call(name, request)
        except TimeoutError:
            raise HvdError("RUNNER_TIMEOUT", call=name, seconds=CALL_SECONDS) from None


def _start(spec: LaunchSpec, machine: MachineSpec, directory: Path, executable: str, ready: int) -> RunnerProcess:
    """Raises OSError."""
    own = spec.jailed and not user.missing()
    return start_runner(machine.backend, directory, executable, ready, spec.card_descriptors, own, Likeness.of(machine), spec.spare_runners)


def _join_group(directory: Path, pid: int, spec: LaunchSpec | None) -> None:
    """spec: None = it was found, and the daemon that started it may have died before it had done this."""
    if spec is not None:
        limits = group.limits(spec.memory_bytes, spec.log_max_bytes, spec.state_directory) if spec.grouped else None
    else:
        limits = None if group.exists(directory.name) else _limits(directory)
    if limits is not None:
        group.make(directory.name, limits)
    group.join(directory.name, pid)


def _limits(directory: Path) -> group.Limits | None:
    """As machine.json has them; None = no group was asked for."""
    document = read_json(str(directory / MACHINE)) or {}
    if JAIL not in document:
        return None
    try:
        machine, jail = MachineSpec.of(document), Jail.of(document[JAIL])
        return group.limits(int(machine.memory_bytes), int(machine.log_max_bytes), *map(Path, jail.writable[:1]))
    except (HvdError, TypeError, ValueError, OverflowError):  # its runner says what is wrong with it
        return None


def _jail(spec: LaunchSpec, directory: Path) -> dict[str, Any]:
    """For machine.json; what the guest's processes may write to is theirs from here on. Raises OSError."""
    if not spec.jailed:
        return {}
    owner = None if user.missing() else user.user_of(spec.uid)
    writable = []
    if spec.state_directory is not None:
        spec.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable.append(spec.state_directory.absolute())
    if owner is not None:
        for path in (directory.absolute(), *writable):
            user.give(path, owner)
    return {JAIL: Jail(owner, [str(path) for path in writable]).document()}


def _restoring_seconds(snapshot: Path | None) -> float:
    """What reading it may take beyond an ordinary start, on a slow disk."""
    try:
        return snapshot.stat().st_size / SLOWEST_READING if snapshot is not None else 0
    except OSError:
        return 0  # the runner says what is wrong with it


def _status(status: control_pb2.Status) -> InstanceStatus:
    return InstanceStatus(
        status.state,
        status.reason,
        status.message,
        resets=status.resets,
        log_error=status.log_error,
        debugged=status.debugged,
        sensitive=status.sensitive_instructions,
        neglected=status.neglected,
    )
