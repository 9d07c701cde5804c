"""Bridges between front ends and a guest's GDB stub: a socket, a pipe, and gdb itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hvctl.sdk.errors import HvctlError
from hvctl.settings import say

if TYPE_CHECKING:
    from hvctl.sdk import Client, DebugSession

CHUNK_BYTES = 1 << 16
# e_machine of ELF -> gdb's architecture.
ARCHITECTURES = {3: "i386", 62: "i386:x86-64"}
# gdb waits 2 seconds by default for an answer; a busy host may need more.
REMOTE_TIMEOUT = 30

Connect = Callable[[], "DebugSession"]


def architecture_of(symbols: Path) -> str:
    """Of an ELF file; empty when it is none of ours. Raises HvctlError FILE_UNREADABLE."""
    try:
        with symbols.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise HvctlError.local("FILE_UNREADABLE", path=symbols, problem=error.strerror) from error
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[5] != 1:
        return ""
    (machine,) = struct.unpack_from("<H", head, 18)
    return ARCHITECTURES.get(machine, "")


def cached_symbols(client: Client, digest: str) -> Path:
    """The blob as a file of this user's cache, fetched unless it is there. Raises HvctlError."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "hvctl" / "symbols"
    path = directory / digest.removeprefix("sha256:")
    if path.is_file():
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as incoming:
            new = Path(incoming) / "symbols"
            client.download_file(digest, new)
            with new.open("rb") as file:
                found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            if found != digest:
                raise HvctlError.local("NOT_EXPLAINED", problem=f"the symbols arrived damaged, as {found}")
            new.rename(path)
    except OSError as error:
        raise HvctlError.local("FILE_UNWRITABLE", path=directory, problem=error.strerror) from error
    return path


def bridge(session: DebugSession, read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
    """Until either side ends. read: what the front end says, empty = it has gone. Raises HvctlError."""

    def forward() -> None:
        with contextlib.suppress(OSError):
            while data := read():
                session.write(data)
        session.close()

    # A daemon thread: what it reads from may never end.
    threading.Thread(target=forward, daemon=True).start()
    with session, contextlib.suppress(OSError):  # the front end has gone
        for data in session:
            write(data)


def over_stdio(connect: Connect) -> None:
    """This process is the pipe of `target remote | hvctl gdb --stdio GUEST`. Raises HvctlError."""
    out = sys.stdout.fileno()

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(out, data) :]

    # Ctrl-C is meant for gdb, in whose terminal we run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bridge(connect(), lambda: os.read(0, CHUNK_BYTES), write)


class Listener:
    """Front ends that connect to a socket, one after the other: gdb may detach and come back."""

    def __init__(self, listener: socket.socket, connect: Connect, first: DebugSession | None = None) -> None:
        """first: a session for the first of them, which is begun already."""
        self._listener = listener
        self._connect = connect
        self._first = first

    def serve(self) -> None:
        """Until the socket is closed. What goes wrong with one front end is told, and it is let go."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    first, self._first = self._first, None
                    session = first or self._connect()
                    bridge(session, lambda: connection.recv(CHUNK_BYTES), connection.sendall)  # noqa: B023
                except HvctlError as error:
                    say(str(error))
                with contextlib.suppress(OSError):  # wakes the thread that reads
                    connection.shutdown(socket.SHUT_RDWR)


def over_tcp(connect: Connect, host: str, port: int) -> None:
    """Serve front ends until Ctrl-C. Raises HvctlError PORT_UNUSABLE."""
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise HvctlError.local("PORT_UNUSABLE", address=f"{host}:{port}", problem=error) from error
    with listener:
        host, port = listener.getsockname()[:2]
        say(f"listening: `target remote {host}:{port}` in gdb; Ctrl-C ends")
        Listener(listener, connect).serve()


def run_gdb(program: str, connect: Connect, symbols: Path | None, arguments: Sequence[str]) -> int:
    """gdb in this terminal, connected; its exit code. Raises HvctlError GDB_MISSING and what keeps it from attaching."""
    path = shutil.which(program)
    if path is None:
        raise HvctlError.local("GDB_MISSING", program=program)
    session = connect()
    # In a directory of this user only: whoever connects to the socket owns the guest.
    with tempfile.TemporaryDirectory(prefix="hvctl-gdb-") as directory, session:
        name = f"{directory}/guest"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(name)
            listener.listen(1)
            threading.Thread(target=Listener(listener, connect, session).serve, daemon=True).start()
            command = [path, "-q", "-iex", f"set remotetimeout {REMOTE_TIMEOUT}"]
            if symbols is not None:
                command.append(f"--se={symbols}")
            command += ["-ex", f"target remote {shlex.quote(name)}", *arguments]
            with _left_to_child():
                return _wait(subprocess.Popen(command))


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _left_to_child() -> Iterator[None]:
    """Ctrl-C reaches gdb as well, which knows what to do with it."""

    def ignore(number: int, frame: FrameType | None) -> None:
        return  # not SIG_IGN, which gdb would inherit

    before = signal.signal(signal.SIGINT, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
