"""The runner's control protocol, for both sides: framing of hvd.runner.v1 messages, and a small synchronous client."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from hvapi.runner.v1 import control_pb2

from hvd.errors import REASONS, HvdError

LENGTH_BYTES = 4
MOST_BYTES = 2 << 20


class FrameError(Exception):
    """What arrived is no frame: the connection is of no use any more."""


def frame(message: control_pb2.RunnerRequest | control_pb2.RunnerResponse) -> bytes:
    """Raises FrameError for a message of more than 2 MiB."""
    data = message.SerializeToString()
    if len(data) > MOST_BYTES:
        raise FrameError(f"a message of {len(data)} bytes")
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def frame_length(header: bytes | bytearray) -> int:
    """Bytes that follow the header. Raises FrameError."""
    length = int.from_bytes(header, "little")
    if length > MOST_BYTES:
        raise FrameError(f"a message of {length} bytes was announced")
    return length


def result_of(response: control_pb2.RunnerResponse) -> Any:
    """The message that was answered. Raises the HvdError that was answered instead."""
    name = response.WhichOneof("result")
    if name is None:
        raise HvdError("INTERNAL", problem="the runner answered nothing")
    if name == "error":
        raise to_error(response.error)
    return getattr(response, name)


def to_error(error: control_pb2.Error) -> HvdError:
    """As it was in the runner; the daemon may be newer or older than that."""
    try:
        return HvdError(error.reason, **dict(error.metadata))
    except (KeyError, IndexError, ValueError):
        known = "" if error.reason in REASONS else "unknown "
        return HvdError("INTERNAL", problem=f"the runner answered {known}{error.reason} {dict(error.metadata)}")


@contextlib.contextmanager
def socket_path(directory: str | os.PathLike[str], name: str) -> Iterator[str]:
    """A path to a socket that fits into Sun's 108 bytes, however long the directory's is; valid within the context."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


class ControlClient:
    """A connection to a runner that blocks, for tests and tools. Raises OSError when the runner is gone."""

    def __init__(self, directory: str | os.PathLike[str], timeout: float = 10.0) -> None:
        """timeout: seconds for each step of a call."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._id = 0
        try:
            with socket_path(directory, "control") as path:
                self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def call(self, **call: Any) -> Any:
        """call(get_status=control_pb2.GetStatus()) -> Status. Raises HvdError, OSError, FrameError."""
        self._id += 1
        self._socket.sendall(frame(control_pb2.RunnerRequest(id=self._id, **call)))
        length = frame_length(self._receive(LENGTH_BYTES))
        response = control_pb2.RunnerResponse.FromString(self._receive(length))
        return result_of(response)

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            if not piece:
                raise ConnectionResetError("the runner closed the connection")
            data += piece
        return bytes(data)
