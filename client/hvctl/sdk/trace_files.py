"""Trace files (hvapi/trace_file.py): the blocks of a stream or session, read again without a daemon; the first has the header."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from google.protobuf.message import DecodeError
from hvapi.trace_file import MAGIC, MOST_BYTES
from hvapi.v1 import trace_pb2

from hvctl.sdk.errors import HvctlError


def read_trace_file(file: IO[bytes], name: str) -> Iterator[trace_pb2.StreamTraceResponse]:
    """Its blocks. Raises HvctlError TRACE_FILE_INVALID for what is no such file, and where it is damaged or cut."""
    if file.read(len(MAGIC)) != MAGIC:
        raise HvctlError.local("TRACE_FILE_INVALID", path=name, problem="it is no trace file")
    while (length := _length(file, name)) is not None:
        data = file.read(length) if length <= MOST_BYTES else b""
        if len(data) != length:
            raise HvctlError.local("TRACE_FILE_INVALID", path=name, problem="it ends in the middle of a block")
        try:
            yield trace_pb2.StreamTraceResponse.FromString(data)
        except DecodeError as error:
            raise HvctlError.local("TRACE_FILE_INVALID", path=name, problem="a block of it is damaged") from error


def _length(file: IO[bytes], name: str) -> int | None:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
        if shift > 35:
            raise HvctlError.local("TRACE_FILE_INVALID", path=name, problem="a block of it is damaged")
    if shift:
        raise HvctlError.local("TRACE_FILE_INVALID", path=name, problem="it ends in the middle of a block")
    return None
