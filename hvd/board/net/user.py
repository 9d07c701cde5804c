"""A user-mode network: passt, which makes the guest's connections its own, as any program of the host does. It needs
no privilege.

passt is a process of the runner's; the socket between them is its life. On it a frame is four bytes, its length in
network order, and as many bytes (passt(1), QEMU's `-netdev stream`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Final

from hvd.board.net.port import HEADER_BYTES, MOST_FRAME_BYTES, PortGone, Sent

PROGRAM: Final = "passt"
# What the guest gets by DHCP. To the gateway's address the host's own loopback answers.
ADDRESS: Final = "10.0.2.15"
NETMASK: Final = "255.255.255.0"
GATEWAY: Final = "10.0.2.2"
# The most that passt takes: the larger a packet, the fewer of them for a slow guest.
MTU: Final = 65520
LENGTH: Final = struct.Struct("!I")
READ_BYTES: Final = 256 << 10
# From the end of its socket to its own, of a process that ends.
ENDING_SECONDS: Final = 0.2
_SOCKET_FD: Final = 3


class UserNetwork:
    """One guest's."""

    offloads = False
    mtu = MTU

    def __init__(self, connection: socket.socket, pid: int = 0) -> None:
        """connection: to passt, the process pid; 0 = it is none of ours."""
        connection.setblocking(False)
        self._socket = connection
        self._pid = pid
        self._input = bytearray(READ_BYTES + LENGTH.size + MOST_FRAME_BYTES)
        self._view = memoryview(self._input)
        self._start = self._end = 0  # of what was read and not yet given away
        self._rest = b""  # of a frame that went out in part

    @classmethod
    def start(cls) -> UserNetwork:
        """Raises OSError when passt cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [
                PROGRAM, "--foreground", "--quiet", "--ipv4-only", "--fd", str(_SOCKET_FD), "--mtu", str(MTU),
                "--address", ADDRESS, "--netmask", NETMASK, "--gateway", GATEWAY,
                "--tcp-ports", "none", "--udp-ports", "none",
            ]  # fmt: skip
            try:
                pid = os.posix_spawnp(
                    PROGRAM,
                    arguments,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD),
                    ],
                    setsigmask=(),
                    setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
                )
            except BaseException:
                ours.close()
                raise
        return cls(ours, pid)

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        pass

    def receive(self, buffer: memoryview) -> int:
        while True:
            held = self._end - self._start
            if held >= LENGTH.size:
                length: int = LENGTH.unpack_from(self._input, self._start)[0]
                if length > MOST_FRAME_BYTES:
                    raise self._gone(f"sent a frame of {length} bytes")
                if held >= LENGTH.size + length:
                    begin = self._start + LENGTH.size
                    self._start = begin + length
                    room = min(length, len(buffer) - HEADER_BYTES)
                    buffer[:HEADER_BYTES] = bytes(HEADER_BYTES)
                    buffer[HEADER_BYTES : HEADER_BYTES + room] = self._view[begin : begin + room]
                    return HEADER_BYTES + room
            if not self._read():
                return 0

    def _read(self) -> bool:
        """More of the stream; False = there is no more now."""
        if self._start:
            held = self._end - self._start
            self._view[:held] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, held
        try:
            count = self._socket.recv_into(self._view[self._end :])
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._gone(os.strerror(error.errno or 0)) from error
        if not count:
            raise self._gone("has closed its socket")
        self._end += count
        return True

    def send(self, header: bytes, frame: Sequence[memoryview]) -> Sent:
        if self._rest and not self._flush():
            return Sent.LATER
        length = sum(map(len, frame))
        try:
            sent = self._socket.sendmsg([LENGTH.pack(length), *frame])
        except BlockingIOError:
            return Sent.LATER
        except OSError as error:
            raise self._gone(os.strerror(error.errno or 0)) from error
        if sent < LENGTH.size + length:
            # A stream has no half frames: what is left goes before all others.
            self._rest = b"".join((LENGTH.pack(length), *frame))[sent:]
        return Sent.DONE

    def _flush(self) -> bool:
        try:
            self._rest = self._rest[self._socket.send(self._rest) :]
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._gone(os.strerror(error.errno or 0)) from error
        return not self._rest

    def _gone(self, problem: str) -> PortGone:
        how = self._end_process(ENDING_SECONDS)
        return PortGone(f"its user-mode network ({PROGRAM}) is gone: {how or problem}")

    def _end_process(self, seconds: float = 0) -> str:
        """End it, if it has not ended after so long; how it ended by itself, as far as is known."""
        if not self._pid:
            return ""
        pid, self._pid = self._pid, 0
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds:
                _wait_for(pid, seconds)
                ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return ""
        except (ChildProcessError, ProcessLookupError):  # somebody else has reaped it
            return ""
        code = os.waitstatus_to_exitcode(status)
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with status {code}"

    def close(self) -> None:
        self._socket.close()
        self._end_process()


def _wait_for(pid: int, seconds: float) -> None:
    """Its end, but no longer. Raises ProcessLookupError."""
    pidfd = os.pidfd_open(pid)
    try:
        select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)
