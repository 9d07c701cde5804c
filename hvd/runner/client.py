"""RunnerInstance: the daemon's handle on a virtual machine, whatever executes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hvapi.runner.v1 import control_pb2
from hvapi.v1 import inspect_pb2

from hvd.backends.contract import Capability, ConsoleAttachment, Instance, InstanceStatus, LaunchSpec
from hvd.board.machine import MachineSpec
from hvd.errors import HvdError
from hvd.runner import launch
from hvd.runner.directory import (
    ATTACH,
    ATTACH_PACKET,
    CONTROL,
    ENDS,
    EXIT,
    LOG_POSITION,
    MACHINE,
    RUNNER_LOG,
    STREAM_LOG,
    STREAM_SKIPPED,
    ExitRecord,
    LogPosition,
    read_json,
    write_json,
)
from hvd.runner.process import RunnerProcess, start_runner
from hvd.runner.protocol import LENGTH_BYTES, FrameError, frame, frame_length, result_of, socket_path

START_SECONDS = 60.0
CALL_SECONDS = 10.0
# From the signal to the exit record; the runner itself gives the vcpu two seconds.
KILL_SECONDS = 5.0
# Between attempts to reach a runner that lives but does not talk.
RETRY_SECONDS = 1.0
ENDED = frozenset(ENDS.values())


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
        self._closed = False
        self._calls = _Channel(directory)
        self._waits = _Channel(directory)
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
        if spec.kernel is None:
            raise HvdError("KERNEL_MISSING")
        machine = MachineSpec(
            name=spec.name,
            backend=backend,
            engine=spec.engine,
            memory_bytes=spec.memory_bytes,
            kernel=str(spec.kernel.absolute()),
            initrd=str(spec.initrd.absolute()) if spec.initrd else "",
            command_line=" ".join(word for word in (spec.command_line, *spec.args) if word),
            flat_load_address=spec.flat_load_address,
            restart_on_reset=spec.restart_on_reset,
            start_paused=spec.start_paused,
            log_max_bytes=spec.log_max_bytes,
        )
        read, write = os.pipe()
        try:
            try:
                write_json(str(directory / MACHINE), launch.machine_document(machine))
                # In a thread: a template that hangs is waited for some seconds, and nobody else shall wait with it.
                starting = asyncio.create_task(asyncio.to_thread(start_runner, backend, directory, executable, write))
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
            await instance._started(read)
        finally:
            os.close(read)
        return instance

    async def _started(self, ready: int) -> None:
        """Wait for the runner's word; without a good one the process is gone when this raises."""
        try:
            async with asyncio.timeout(START_SECONDS):
                error = launch.ready_error(await launch.read_line(ready), self.directory)
        except TimeoutError:
            problem = f"it was not ready after {START_SECONDS:.0f} s"
            error = HvdError("RUNNER_START_FAILED", problem=problem, log=self.directory / RUNNER_LOG)
        except asyncio.CancelledError:
            await asyncio.shield(self._discard())
            raise
        if error is not None:
            await self._discard()
            raise error

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
        return cls(directory, RunnerProcess(pid, pidfd, lambda: None), backend, capabilities)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._reaping = asyncio.create_task(self._take_status())

    async def _take_status(self) -> None:
        self._wait_status = await asyncio.to_thread(self._reap)
        self._exited.set()

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
        request = control_pb2.WaitStatus(state=known.state, resets=known.resets, log_failing=bool(known.log_error))
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
        return read_exit(self.directory) or _crashed(self.directory, self.pid, self._wait_status)

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

    async def read_memory(self, address: int, length: int, virtual: bool) -> bytes:
        request = control_pb2.ReadMemory(address=address, length=length, virtual=virtual)
        data: control_pb2.MemoryData = await self._verb(Capability.MEMORY_READ, "read_memory", request)
        return data.data

    async def write_memory(self, address: int, data: bytes, virtual: bool) -> None:
        await self._verb(
            Capability.MEMORY_WRITE,
            "write_memory",
            control_pb2.WriteMemory(address=address, data=data, virtual=virtual),
        )

    async def memory_map(self) -> inspect_pb2.MemoryMap:
        answer: inspect_pb2.MemoryMap = await self._verb(
            Capability.MEMORY_MAP, "get_memory_map", control_pb2.GetMemoryMap()
        )
        return answer

    async def translate(self, address: int) -> inspect_pb2.AddressTranslation:
        request = control_pb2.TranslateAddress(address=address)
        answer: inspect_pb2.AddressTranslation = await self._verb(Capability.TRANSLATE, "translate_address", request)
        return answer

    async def registers(self, vcpu: int) -> inspect_pb2.Registers:
        answer: inspect_pb2.Registers = await self._verb(
            Capability.REGISTERS, "get_registers", control_pb2.GetRegisters(vcpu=vcpu)
        )
        return answer

    async def resize_console(self, rows: int, columns: int) -> None:
        await self._verb(Capability.CONSOLE, "resize_console", control_pb2.ResizeConsole(rows=rows, columns=columns))

    def attach_console(self, read_only: bool) -> ConsoleAttachment:
        self._need(Capability.CONSOLE)
        return RunnerConsole(self.directory, read_only)

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


class _Channel:
    """A control connection, made when it is needed; one call at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._id = 0

    async def call(self, name: str, request: Any) -> Any:
        """Raises HvdError: the runner's own, RUNNER_GONE. When it is cancelled, the connection goes with the answer
        that nobody waits for."""
        async with self._lock:
            try:
                response = await self._exchange(name, request)
            except (OSError, EOFError, FrameError, DecodeError) as error:
                self.close()
                raise HvdError("RUNNER_GONE", problem=f"{type(error).__name__}: {error}") from error
            except asyncio.CancelledError:
                self.close()
                raise
        return result_of(response)

    async def _exchange(self, name: str, request: Any) -> control_pb2.RunnerResponse:
        if self._streams is None:
            with socket_path(self._directory, CONTROL) as path:
                self._streams = await asyncio.open_unix_connection(path)
        reader, writer = self._streams
        self._id += 1
        call: dict[str, Any] = {name: request}
        writer.write(frame(control_pb2.RunnerRequest(id=self._id, **call)))
        await writer.drain()
        length = frame_length(await reader.readexactly(LENGTH_BYTES))
        response = control_pb2.RunnerResponse.FromString(await reader.readexactly(length))
        if response.id != self._id:
            raise FrameError(f"an answer to request {response.id} instead of {self._id}")
        return response

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class RunnerConsole(ConsoleAttachment):
    """A viewer on the attach socket. Entering raises HvdError RUNNER_GONE, RUNNER_TIMEOUT."""

    def __init__(self, directory: Path, read_only: bool) -> None:
        self._directory = directory
        self._read_only = read_only
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> RunnerConsole:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                with socket_path(self._directory, ATTACH) as path:
                    await asyncio.get_running_loop().sock_connect(sock, path)
                self.position = await _greeting(sock)
        except TimeoutError:
            sock.close()
            raise HvdError("RUNNER_TIMEOUT", call="attach", seconds=CALL_SECONDS) from None
        except OSError as error:
            sock.close()
            raise HvdError("RUNNER_GONE", problem=str(error)) from error
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.position is not None:
            for descriptor in self.position.descriptors:
                os.close(descriptor)
            self.position = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise HvdError("RUNNER_GONE", problem="the console is not attached")
        return self._socket

    async def output(self) -> AsyncIterator[bytes | int]:
        sock = self._open_socket
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(sock, ATTACH_PACKET)
            except ConnectionError:
                return
            if not packet:
                return
            yield int.from_bytes(packet[1:], "little") if packet[0] == STREAM_SKIPPED else packet[1:]

    async def write(self, data: bytes) -> None:
        """Waits while the guest does not read. Raises HvdError RUNNER_GONE, REQUEST_INVALID (read-only)."""
        if self._read_only:
            raise HvdError("REQUEST_INVALID", problem="this attachment is read-only", remedy="attach without read_only")
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), ATTACH_PACKET):
            try:
                await loop.sock_sendall(self._open_socket, data[at : at + ATTACH_PACKET])
            except ConnectionError as error:
                raise HvdError("RUNNER_GONE", problem="the guest has ended") from error


async def _greeting(sock: socket.socket) -> LogPosition:
    """The runner's first packet. Raises OSError, HvdError RUNNER_GONE when there is none, or another one."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
    packet, descriptors, _, _ = socket.recv_fds(sock, ATTACH_PACKET, 2, socket.MSG_CMSG_CLOEXEC)
    if len(packet) != LOG_POSITION.size or packet[0] != STREAM_LOG:
        for descriptor in descriptors:
            os.close(descriptor)
        raise HvdError("RUNNER_GONE", problem="it has closed its console" if not packet else "its console is another's")
    _, begin, end = LOG_POSITION.unpack(packet)
    return LogPosition(tuple(descriptors), begin, end)


def read_exit(directory: Path) -> InstanceStatus | None:
    """How the guest of a directory ended, by its exit record; None when there is none, or none that makes sense."""
    record = read_json(str(directory / EXIT))
    if record is None:
        return None
    reason, message, code, metadata = (record.get(key) for key in ("reason", "message", "exit_code", "metadata"))
    if not (isinstance(reason, str) and isinstance(record.get("state"), str) and isinstance(message, str)):
        return None
    if record["state"] not in ENDED or not (code is None or isinstance(code, int)):
        return None
    return InstanceStatus(
        record["state"],
        reason,
        message,
        code,
        metadata={str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else None,
    )


def _crashed(directory: Path, pid: int, wait_status: int | None) -> InstanceStatus:
    how = "ended"
    if wait_status is not None:
        code = os.waitstatus_to_exitcode(wait_status)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    tail = launch.log_tail(directory)
    message = f"the guest's runner, process {pid}, {how} and left no exit record" + (
        f"; it said: {tail}" if tail else ""
    )
    message += "; `hvctl start` starts it anew"
    return InstanceStatus(ENDS["RUNNER_CRASHED"], "RUNNER_CRASHED", message)


def _status(status: control_pb2.Status) -> InstanceStatus:
    return InstanceStatus(status.state, status.reason, status.message, resets=status.resets, log_error=status.log_error)
