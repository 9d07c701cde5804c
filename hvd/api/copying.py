"""CopyIn and CopyOut: files into a guest and out of it, as tar archives."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from hvapi.v1 import guest_pb2

from hvd.backends.contract import CopyFound
from hvd.errors import HvdError
from hvd.guests import copying
from hvd.guests.supervisor import Supervisor

MOST_CHUNK_BYTES = 1 << 20
# PATH_MAX of linux/limits.h, its NUL included.
MOST_PATH_BYTES = 4095


class CopyService:
    """The part of GuestService that copies files."""

    _supervisor: Supervisor

    async def CopyIn(
        self, request_iterator: AsyncIterator[guest_pb2.CopyInRequest], context: Any
    ) -> guest_pb2.CopyInResponse:
        requests = aiter(request_iterator)
        first = await anext(requests, guest_pb2.CopyInRequest())
        if first.WhichOneof("frame") != "setup":
            raise HvdError(
                "REQUEST_INVALID",
                problem="the first frame of CopyIn is no setup",
                remedy="send setup with the name first",
            )
        setup = first.setup
        _check("setup.path", setup.path)
        entries, size = await copying.copy_in(
            self._supervisor, setup.name, setup.path, setup.place, setup.keep_owners, _chunks(requests)
        )
        return guest_pb2.CopyInResponse(entries=entries, size_bytes=size)

    async def CopyOut(
        self, request: guest_pb2.CopyOutRequest, context: Any
    ) -> AsyncIterator[guest_pb2.CopyOutResponse]:
        _check("path", request.path)
        copy = copying.copy_out(self._supervisor, request.name, request.path, request.follow_link)
        async with contextlib.aclosing(copy) as pieces:
            async for piece in pieces:
                yield _response(piece)


def _response(piece: CopyFound | bytes) -> guest_pb2.CopyOutResponse:
    if not isinstance(piece, CopyFound):
        return guest_pb2.CopyOutResponse(chunk=piece)
    info = guest_pb2.CopyOutInfo(
        kind=guest_pb2.CopyOutInfo.Kind.Value(piece.kind),
        base_name=piece.base_name,
        size_bytes=piece.size_bytes,
        mode=piece.mode,
        link_target=piece.link_target,
    )
    return guest_pb2.CopyOutResponse(info=info)


async def _chunks(requests: AsyncIterator[guest_pb2.CopyInRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("frame") != "chunk":
            raise HvdError("REQUEST_INVALID", problem="a copy has one setup only", remedy="send chunks after it")
        if len(request.chunk) > MOST_CHUNK_BYTES:
            raise HvdError(
                "REQUEST_INVALID",
                problem=f"a chunk has {len(request.chunk)} bytes",
                remedy=f"send at most {MOST_CHUNK_BYTES} in each",
            )
        yield request.chunk


def _check(field: str, path: str) -> None:
    problem = ""
    if not path.startswith("/"):
        problem = "is not absolute"
    elif "\0" in path:
        problem = "contains a NUL byte"
    elif len(path.encode()) > MOST_PATH_BYTES:
        problem = f"has more than {MOST_PATH_BYTES} bytes"
    if problem:
        raise HvdError(
            "FIELD_INVALID", field=field, value=repr(path[:80]), problem=problem, remedy="begin it with /, in the guest"
        )
