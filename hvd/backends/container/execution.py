"""Another program in a running container: `runc exec`, whose standard streams are pipes or a pseudo terminal of the daemon's.

It belongs to whoever asked for it: when that one goes, or the daemon, the program is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from hvd.backends.container import conmon
from hvd.backends.container.bundle import resolve_user
from hvd.backends.container.runtime import Runtime, last_line
from hvd.backends.container.trace.recorder import RECORDER
from hvd.backends.container_spec import ExecSpec
from hvd.backends.contract import Execution
from hvd.errors import HvdError

PIECE_BYTES = 1 << 16
STDOUT, STDERR = 1, 2
# Output that waits for a slow reader; beyond it the program waits.
PENDING_PIECES = 16
START_SECONDS = 30.0


class ContainerExecution(Execution):
    """`async with` starts it; leaving kills what still runs of it."""

    def __init__(self, directory: Path, uid: str, root: Path, runtime: Runtime, spec: ExecSpec) -> None:
        self._directory, self._uid, self._root, self._runtime, self._spec = directory, uid, root, runtime, spec
        self._name = f"exec-{uuid.uuid4().hex[:12]}"
        self._pieces: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(PENDING_PIECES)
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._master = -1
        self._errors = b""  # its last words, for one that never ran
        self._is_awaited = False  # a trace waits to hear which program it is

    async def __aenter__(self) -> ContainerExecution:
        try:
            await self._start()
            await asyncio.wait_for(self._until_started(), START_SECONDS)
            await self._tell(self.pid)
        except TimeoutError:
            await self.__aexit__()
            raise HvdError("CONTAINER_FAILED", what="exec", problem=f"not started after {START_SECONDS:g} s") from None
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._tell(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                if self.pid:
                    os.kill(self.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            await self._process.wait()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        for path in (self._file("json"), self._file("pid")):
            path.unlink(missing_ok=True)

    def _file(self, kind: str) -> Path:
        return self._directory / f"{self._name}.{kind}"

    async def _start(self) -> None:
        self._file("json").write_text(json.dumps(await asyncio.to_thread(self._document)), "utf-8")
        words = [
            str(self._runtime.path), *self._runtime.global_arguments, "exec",
            "--process", str(self._file("json")), "--pid-file", str(self._file("pid")), self._uid,
        ]  # fmt: skip
        held = await asyncio.to_thread(RECORDER.is_by_thread, self._uid)
        with _held(words, held) as (command, inherited):
            process = self._process = await self._spawn(command, inherited)
            await asyncio.to_thread(RECORDER.follow_process, self._uid, process.pid)
        self._is_awaited = True

    async def _tell(self, program: int) -> None:
        if self._is_awaited and self._process is not None:
            self._is_awaited = False
            await asyncio.to_thread(RECORDER.found_program, self._uid, self._process.pid, program)

    async def _spawn(self, words: Sequence[str], inherited: Sequence[int]) -> asyncio.subprocess.Process:
        if not self._spec.tty:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=inherited)
            assert process.stdout and process.stderr
            readers = [self._read(STDOUT, process.stdout), self._read(STDERR, process.stderr)]
        else:
            self._master, slave = pty.openpty()
            try:
                self.resize(*self._spec.size)
                # Its controlling terminal, so that a change of the size reaches it.
                process = await asyncio.create_subprocess_exec(
                    "setsid", "--ctty", *words, stdin=slave, stdout=slave, stderr=slave, pass_fds=inherited
                )
            finally:
                os.close(slave)
            readers = [self._read_terminal()]
        self._tasks = [asyncio.create_task(self._feed(readers))]
        return process

    def _document(self) -> dict[str, Any]:
        process: dict[str, Any] = json.loads((self._directory / "config.json").read_text("utf-8"))["process"]
        environment = dict(entry.split("=", 1) for entry in process["env"])
        environment |= {"TERM": "xterm"} if self._spec.tty else {}
        environment |= self._spec.environment
        process |= {
            "args": list(self._spec.command),
            "terminal": self._spec.tty,
            "env": [f"{key}={value}" for key, value in environment.items()],
            "cwd": self._spec.working_directory or process["cwd"],
        }
        if self._spec.user:
            user, group, further = resolve_user(self._spec.user, self._root)
            process["user"] = {"uid": user, "gid": group, "additionalGids": further}
        return process

    async def _until_started(self) -> None:
        """Raises HvdError CONTAINER_FAILED."""
        assert self._process is not None
        while not self.pid:
            if self._process.returncode is not None:
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if self.pid:
                    return
                problem = last_line(self._errors.decode(errors="replace")) or f"exit code {self._process.returncode}"
                raise HvdError("CONTAINER_FAILED", what="exec", problem=problem)
            await asyncio.sleep(0.005)

    @property
    def pid(self) -> int:
        return conmon.read_pid(self._file("pid")) or 0

    async def _feed(self, readers: list[Any]) -> None:
        await asyncio.gather(*readers)
        await self._pieces.put(None)

    async def _read(self, stream: int, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if stream == STDERR:
                self._errors = (self._errors + piece)[-4096:]
            await self._pieces.put((stream, piece))

    async def _read_terminal(self) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(self._master, False)
        readable = asyncio.Event()
        loop.add_reader(self._master, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                try:
                    piece = os.read(self._master, PIECE_BYTES)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: nobody has it open any more
                    return
                if not piece:
                    return
                self._errors = (self._errors + piece)[-4096:]
                readable.set()  # there may be more
                await self._pieces.put((STDOUT, piece))
        finally:
            loop.remove_reader(self._master)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def exit_code(self) -> int:
        assert self._process is not None
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    async def write(self, data: bytes) -> None:
        if self._master >= 0:
            await asyncio.to_thread(self._write_terminal, data)
            return
        assert self._process and self._process.stdin
        with contextlib.suppress(ConnectionError):  # it reads no more
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def _write_terminal(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._master, view) :]
            except BlockingIOError:
                # Nobody reads: what was typed is lost, as on a terminal whose program does not read.
                return
            except OSError:
                return

    async def end_input(self) -> None:
        if self._master >= 0:
            await self.write(b"\x04")
        elif self._process and self._process.stdin:
            self._process.stdin.close()

    def resize(self, rows: int, columns: int) -> None:
        if self._master >= 0 and rows and columns:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def _held(words: Sequence[str], held: bool) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
    """The command as it is to be started within, and the descriptors it is born with. held: it does nothing before the block has ended,
    and nothing at all when that raises, or the daemon dies."""
    if not held:
        yield words, ()
        return
    read, write = os.pipe()
    try:
        yield ("sh", "-c", f'read -r go < /proc/self/fd/{read} && exec "$@"', "sh", *words), (read,)
        os.write(write, b"\n")
    finally:
        os.close(write)
        os.close(read)
