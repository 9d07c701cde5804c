"""The part of GuestService that is about snapshots and clones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from google.protobuf import empty_pb2
from hvapi.v1 import guest_pb2, guest_pb2_grpc

from hvd.errors import HvdError
from hvd.guests.snapshot_clone import Cloner
from hvd.guests.snapshot_import import Import
from hvd.guests.snapshot_restore import Restorer
from hvd.guests.snapshot_transfer import export
from hvd.guests.snapshots import Snapshots

MOST_CHUNK_BYTES = 1 << 20


class SnapshotService(guest_pb2_grpc.GuestServiceServicer):
    """Errors are HvdError; the server's interceptor makes a Status of them."""

    _snapshots: Snapshots
    _restorer: Restorer
    _cloner: Cloner

    async def SnapshotGuest(self, request: guest_pb2.SnapshotGuestRequest, context: Any) -> guest_pb2.Snapshot:
        stored = await self._snapshots.take(request.name, request.snapshot_id, request.description)
        return stored.message

    async def ListSnapshots(
        self, request: guest_pb2.ListSnapshotsRequest, context: Any
    ) -> guest_pb2.ListSnapshotsResponse:
        found, token = self._snapshots.page(request.parent, request.page_size, request.page_token)
        return guest_pb2.ListSnapshotsResponse(snapshots=found, next_page_token=token)

    async def DeleteSnapshot(self, request: guest_pb2.DeleteSnapshotRequest, context: Any) -> empty_pb2.Empty:
        await self._snapshots.delete(request.name, request.allow_missing)
        return empty_pb2.Empty()

    async def RestoreGuest(self, request: guest_pb2.RestoreGuestRequest, context: Any) -> guest_pb2.Guest:
        return await self._restorer.restore(request.snapshot, request.name, request.backend, request.paused)

    async def CloneGuest(self, request: guest_pb2.CloneGuestRequest, context: Any) -> guest_pb2.Guest:
        return await self._cloner.clone(request.source, request.guest_id, request.request_id)

    async def ExportSnapshot(
        self, request: guest_pb2.ExportSnapshotRequest, context: Any
    ) -> AsyncIterator[guest_pb2.ExportSnapshotResponse]:
        with self._snapshots.held(self._snapshots.get(request.name), "export") as stored:
            pieces = export(stored, self._snapshots.blobs)
            try:
                while (piece := await asyncio.to_thread(_next, pieces)) is not None:
                    yield guest_pb2.ExportSnapshotResponse(chunk=piece)
            finally:
                pieces.close()

    async def ImportSnapshot(
        self, request_iterator: AsyncIterator[guest_pb2.ImportSnapshotRequest], context: Any
    ) -> guest_pb2.Snapshot:
        requests = aiter(request_iterator)
        first = await anext(requests, guest_pb2.ImportSnapshotRequest())
        if first.WhichOneof("frame") != "setup":
            raise HvdError("REQUEST_INVALID", problem="an import begins with its setup", remedy="send setup first")
        # Leaving the block without commit(), by an error or because the client went, removes what was written.
        async with Import(self._snapshots, first.setup.parent, first.setup.snapshot_id) as taken:
            async for request in requests:
                if request.WhichOneof("frame") != "chunk":
                    raise HvdError("REQUEST_INVALID", problem="an import has one setup only", remedy="send chunks after it")
                if len(request.chunk) > MOST_CHUNK_BYTES:
                    raise HvdError(
                        "REQUEST_INVALID",
                        problem=f"a chunk has {len(request.chunk)} bytes",
                        remedy=f"send at most {MOST_CHUNK_BYTES} in each",
                    )
                await taken.write(request.chunk)
            return (await taken.commit()).message


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
