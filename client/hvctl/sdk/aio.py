"""The asyncio client: the methods of hvctl.sdk.client, awaited."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from hvapi.v1 import guest_pb2, image_pb2, inspect_pb2

from hvctl.sdk.blobs import MOST_LOADED_BYTES, Path, file_blob, frame_bytes, upload_frames
from hvctl.sdk.calls import HEALTH_SERVING, HEALTH_WATCH, Calls, Q, R, ServerStream, Unary, channel_options
from hvctl.sdk.client import DEFAULT_TIMEOUT
from hvctl.sdk.copying import copy_in_frames
from hvctl.sdk.endpoint import Endpoint, TlsFiles, default_endpoint
from hvctl.sdk.errors import HvctlError, from_rpc
from hvctl.sdk.files import import_frames, new_file
from hvctl.sdk.guests import GuestSpec
from hvctl.sdk.streams import Attempts
from hvctl.sdk.watching import Resume

if TYPE_CHECKING:
    from hvctl.sdk.debug import AsyncDebugSession
    from hvctl.sdk.execution import AsyncExecution


class AsyncUnaryMethod(Generic[Q, R]):
    """A bound RPC with one response."""

    def __init__(self, client: AsyncClient, call: Unary[Q, R]) -> None:
        self._client, self._call = client, call
        self._invoke = client.channel.unary_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )

    async def __call__(self, request: Q | None = None, /, *, timeout: float | None = None, **fields: Any) -> R:
        """timeout: seconds; absent = the client's own. Raises HvctlError."""
        if timeout is None and not self._call.waits:
            timeout = self._client.timeout
        try:
            return await self._invoke(self._call.make(request, fields), timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, self._client.endpoint, self._call.method) from error


class AsyncServerStreamMethod(Generic[Q, R]):
    """A bound RPC with a stream of responses."""

    def __init__(self, client: AsyncClient, call: ServerStream[Q, R]) -> None:
        self._client, self._call = client, call
        self._invoke = client.channel.unary_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )

    def __call__(self, request: Q | None = None, /, *, timeout: float | None = None, **fields: Any) -> AsyncStream[R]:
        """timeout: seconds until the stream is ended with TIMED_OUT; absent = never, but one that must not be silent (ServerStream.goes_on) is
        when nothing comes for the client's own. Errors come from the iteration."""
        message = self._call.make(request, fields)
        attempts = Attempts(lambda left: self._invoke(message, timeout=left), timeout, self._call.idempotent)
        longest_wait = self._client.timeout if timeout is None and self._call.is_bounded(message) else None
        return AsyncStream(attempts.begin(), self._client.endpoint, self._call.method, attempts, longest_wait)


class AsyncStream(AsyncIterator[R]):
    """Responses as they come; `async with` or cancel() ends it. Iteration raises HvctlError."""

    def __init__(
        self, call: Any, endpoint: Endpoint, method: str, attempts: Attempts | None = None, longest_wait: float | None = None
    ) -> None:
        """longest_wait: seconds without a response, while one is waited for, after which it ends with TIMED_OUT; None = for ever."""
        self._call, self._endpoint, self._method = call, endpoint, method
        self._responses = aiter(call)
        self._attempts = attempts
        self._longest_wait = longest_wait
        self._cancelled = False

    async def __anext__(self) -> R:
        while not self._cancelled:
            try:
                response = await self._next()
            except grpc.RpcError as error:
                failure = from_rpc(error, self._endpoint, self._method)
                delay = self._attempts.delay_after(failure) if self._attempts is not None else None
                if delay is None or self._attempts is None:
                    raise failure from error
                await asyncio.sleep(delay)
                if not self._cancelled:
                    self._call = self._attempts.begin()
                    self._responses = aiter(self._call)
                continue
            if self._attempts is not None:
                self._attempts.begun()
            return response
        raise StopAsyncIteration

    async def _next(self) -> R:
        try:
            async with asyncio.timeout(self._longest_wait):
                response: R = await anext(self._responses)
                return response
        except TimeoutError as error:
            self._call.cancel()
            raise HvctlError.local("TIMED_OUT", call=self._method) from error
        except asyncio.CancelledError:
            # grpc.aio raises this in the reader when the call is cancelled, by us or by whoever cancelled the reading
            # task.
            if self._cancelled:
                raise StopAsyncIteration from None
            raise

    async def write(self, request: Any) -> None:
        """Sends one request of a bidirectional call."""
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError:  # it has ended; the iteration tells how
            return
        except grpc.RpcError as error:
            raise from_rpc(error, self._endpoint, self._method) from error

    def cancel(self) -> None:
        """End it. The iteration ends without an error."""
        self._cancelled = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncConsole:
    """An attached console: iterate for what the guest writes, write() what is typed. `async with` or close() detaches.

    After the iteration has ended, `ended` is the guest as it ended, or None when the console was detached.
    `skipped_bytes` is what this viewer missed by being slow.
    """

    def __init__(self, client: AsyncClient, setup: guest_pb2.AttachConsoleSetup, timeout: float | None) -> None:
        call = Calls.__dict__["_attach_console"]
        self.ended: guest_pb2.Guest | None = None
        self.skipped_bytes = 0
        self._setup: guest_pb2.AttachConsoleSetup | None = setup
        invoke = client.channel.stream_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        self._stream: AsyncStream[guest_pb2.AttachConsoleResponse] = AsyncStream(
            invoke(timeout=timeout), client.endpoint, call.method
        )

    async def _begin(self) -> None:
        if self._setup is not None:
            setup, self._setup = self._setup, None
            await self._stream.write(guest_pb2.AttachConsoleRequest(setup=setup))

    async def frames(self) -> AsyncIterator[guest_pb2.AttachConsoleResponse]:
        """Every frame, with `attached` and `skipped_bytes` among them."""
        await self._begin()
        async for frame in self._stream:
            kind = frame.WhichOneof("frame")
            if kind == "skipped_bytes":
                self.skipped_bytes += frame.skipped_bytes
            elif kind == "ended":
                self.ended = frame.ended
            yield frame
            if kind == "ended":
                return

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for frame in self.frames():
            if frame.WhichOneof("frame") == "output":
                yield frame.output

    async def write(self, data: bytes) -> None:
        """Type this. Does not wait for the guest to read it."""
        await self._begin()
        await self._stream.write(guest_pb2.AttachConsoleRequest(input=data))

    async def end_input(self) -> None:
        """Nothing more will be typed: the end of the standard input of a container that was started with attach_stdin."""
        await self._begin()
        await self._stream.write(guest_pb2.AttachConsoleRequest(input_end=empty_pb2.Empty()))

    async def resize(self, rows: int, columns: int) -> None:
        await self._begin()
        await self._stream.write(guest_pb2.AttachConsoleRequest(size=guest_pb2.ConsoleSize(rows=rows, columns=columns)))

    async def close(self) -> None:
        """Detach."""
        self._stream.cancel()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncClient(Calls):
    """hvctl.sdk.Client for asyncio: the same methods, to be awaited or iterated with `async for`. Belongs to one
    event loop."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        channel: grpc.aio.Channel | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self.endpoint = Endpoint(endpoint or default_endpoint(), tls or TlsFiles())
        self.timeout = timeout
        self._channel = channel
        self._methods: dict[str, Any] = {}

    @property
    def channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            credentials = self.endpoint.credentials()
            target = self.endpoint.target()
            if credentials is None:
                self._channel = grpc.aio.insecure_channel(target, channel_options())
            else:
                self._channel = grpc.aio.secure_channel(target, credentials, channel_options())
        return self._channel

    def _unary(self, call: Unary[Q, R]) -> AsyncUnaryMethod[Q, R]:
        if call.path not in self._methods:
            self._methods[call.path] = AsyncUnaryMethod(self, call)
        return self._methods[call.path]  # type: ignore[no-any-return]

    def _server_stream(self, call: ServerStream[Q, R]) -> AsyncServerStreamMethod[Q, R]:
        if call.path not in self._methods:
            self._methods[call.path] = AsyncServerStreamMethod(self, call)
        return self._methods[call.path]  # type: ignore[no-any-return]

    async def wait_ready(self, timeout: float) -> bool:
        """Waits until the daemon serves and knows what became of its guests, at most so many seconds. False = it does
        not yet. Raises HvctlError for anything but a daemon that is away.
        """
        end = time.monotonic() + timeout
        watch: Any = self.channel.unary_stream(HEALTH_WATCH)
        while (left := end - time.monotonic()) > 0:
            call = watch(b"", timeout=left, wait_for_ready=True)
            try:
                async for status in call:
                    if status == HEALTH_SERVING:
                        return True
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:  # it has been reached, and can say no more
                    return True
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise from_rpc(error, self.endpoint, HEALTH_WATCH) from error
            finally:
                call.cancel()
        return False

    async def upload_file(
        self, path: Path, progress: Callable[[int, int], None] | None = None, *, most: int = MOST_LOADED_BYTES
    ) -> str:
        """Makes the file a blob of the daemon, unless it has it already. Returns its digest ("sha256:...").

        progress is called with (bytes sent, bytes in all). most: bytes that the file may have; disks may have more
        (hvctl.sdk.blobs.MOST_DISK_BYTES). Raises HvctlError FILE_UNREADABLE, FILE_TOO_LARGE, DISK_FULL, ...
        """
        told = None if progress is None else lambda path, sent, size: progress(sent, size)
        return (await self.upload_files([path], told, most=most))[0]

    async def upload_files(
        self,
        paths: Sequence[Path],
        progress: Callable[[Path, int, int], None] | None = None,
        *,
        most: int = MOST_LOADED_BYTES,
        known: Sequence[image_pb2.BlobInfo] = (),
    ) -> list[str]:
        """upload_file() of several, which asks but once what the daemon has. known: of each, what file_blob() says (hvctl.sdk.blobs), if it has
        been asked."""
        infos = known or [await asyncio.to_thread(file_blob, path, most) for path in paths]
        if not infos:
            return []
        there = set((await self.find_blobs(digests=[info.digest for info in infos])).digests)
        for path, info in zip(paths, infos, strict=True):
            if info.digest not in there:
                await self._upload(path, info, None if progress is None else functools.partial(progress, path))
                there.add(info.digest)
        return [info.digest for info in infos]

    async def _upload(self, path: Path, info: image_pb2.BlobInfo, progress: Callable[[int, int], None] | None) -> None:
        call = Calls.__dict__["_upload_blob"]
        invoke = self.channel.stream_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )

        async def frames() -> AsyncIterator[image_pb2.UploadBlobRequest]:
            sent = 0
            source = upload_frames(path, info)
            while (frame := await asyncio.to_thread(next, source, None)) is not None:
                yield frame
                sent += frame_bytes(frame)
                if progress is not None:
                    progress(sent, info.size_bytes)

        try:
            await invoke(frames())
        except grpc.RpcError as error:
            raise from_rpc(error, self.endpoint, call.method) from error

    async def export_snapshot_file(self, name: str, path: Path, *, timeout: float | None = None) -> None:
        """Writes a snapshot to a file, which is there only when it is whole. Raises HvctlError, also FILE_UNWRITABLE."""
        with new_file(path) as file:
            async with self.export_snapshot(name=name, timeout=timeout) as responses:
                async for response in responses:
                    await asyncio.to_thread(file.write, response.chunk)

    async def import_snapshot(
        self, path: Path, *, parent: str = "", snapshot_id: str = "", timeout: float | None = None
    ) -> guest_pb2.Snapshot:
        """Sends a file that export_snapshot_file() wrote. Raises HvctlError, also FILE_UNREADABLE."""
        call = Calls.__dict__["_import_snapshot"]
        invoke = self.channel.stream_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        source = import_frames(path, parent, snapshot_id)

        async def frames() -> AsyncIterator[guest_pb2.ImportSnapshotRequest]:
            while (frame := await asyncio.to_thread(next, source, None)) is not None:
                yield frame

        try:
            answer: guest_pb2.Snapshot = await invoke(frames(), timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, self.endpoint, call.method) from error
        return answer

    async def copy_in(
        self,
        name: str,
        path: str,
        chunks: Iterable[bytes],
        *,
        place: bool = True,
        keep_owners: bool = False,
        timeout: float | None = None,
    ) -> guest_pb2.CopyInResponse:
        """Sends a tar (hvctl.sdk.copying.archive_of makes one) into a container, as CopyInSetup says. Raises HvctlError, and
        what `chunks` raises."""
        call = Calls.__dict__["_copy_in"]
        invoke = self.channel.stream_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        source = copy_in_frames(name, path, chunks, place, keep_owners)
        failures: list[Exception] = []

        async def frames() -> AsyncIterator[guest_pb2.CopyInRequest]:
            try:
                while (frame := await asyncio.to_thread(next, source, None)) is not None:
                    yield frame
            except Exception as error:
                failures.append(error)  # grpc would only say that there was one
                raise

        try:
            answer: guest_pb2.CopyInResponse = await invoke(frames(), timeout=timeout)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise from_rpc(error, self.endpoint, call.method) from error
        return answer

    async def create(self, spec: GuestSpec, *, validate_only: bool = False) -> guest_pb2.Guest:
        """Uploads the guest's files and makes it, STOPPED."""
        files = (spec.kernel, spec.initrd, spec.symbols)
        digests = iter(await self.upload_files([path for path in files if path is not None]))
        guest = spec.message(*("" if path is None else next(digests) for path in files))
        return await self.create_guest(guest_id=spec.name, guest=guest, validate_only=validate_only)

    async def run_guest(self, *, paused: bool = False, **spec: Any) -> guest_pb2.Guest:
        """Makes a guest and starts it; the keyword arguments are GuestSpec's. Returns when its first instruction has
        run.

        When the start fails the guest stays, STOPPED or FAILED, to be looked at.
        """
        guest = await self.create(GuestSpec(**spec))
        return await self.start_guest(name=guest.name, paused=paused)

    async def guests(self, labels: dict[str, str] | None = None) -> AsyncIterator[guest_pb2.Guest]:
        """Every guest, page by page."""
        token = ""
        while True:
            page = await self.list_guests(page_token=token, labels=labels or {})
            for guest in page.guests:
                yield guest
            token = page.next_page_token
            if not token:
                return

    async def watch(
        self, names: Sequence[str] = (), *, changes_only: bool = False
    ) -> AsyncIterator[guest_pb2.GuestEvent]:
        """watch_guests that goes on by itself when the daemon restarts or this reader is too slow. PRESENT events
        again mean that the daemon no longer had what happened meanwhile. Fails only if it cannot begin."""
        state = Resume(names, changes_only)
        while True:
            try:
                async with self.watch_guests(state.request()) as events:
                    async for event in events:
                        state.saw(event)
                        yield event
                return
            except HvctlError as error:
                await asyncio.sleep(state.delay_after(error))

    def debug(self, name: str, *, architecture: str = "", timeout: float | None = None) -> AsyncDebugSession:
        """A debugger, which stops the guest: `async with` it. architecture: "i386", "i386:x86-64" or "i8086"; absent = what the vcpu executes
        now. timeout: seconds until it is ended with TIMED_OUT; absent = never."""
        from hvctl.sdk.debug import AsyncDebugSession

        return AsyncDebugSession(self, inspect_pb2.DebugSetup(name=name, architecture=architecture), timeout)

    def execute(self, setup: guest_pb2.ExecSetup, *, timeout: float | None = None) -> AsyncExecution:
        """Another program in a running guest: `async with` it. timeout: seconds until it is killed; absent = never."""
        from hvctl.sdk.execution import AsyncExecution

        return AsyncExecution(self, setup, timeout)

    async def download_file(self, digest: str, path: Path) -> None:
        """Writes a blob of the daemon to a new file. Raises HvctlError BLOB_NOT_FOUND, ...; OSError."""
        with await asyncio.to_thread(open, path, "xb") as file:
            async with self.download_blob(digest=digest) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk.chunk)

    def console(
        self,
        name: str,
        *,
        replay_bytes: int = 0,
        read_only: bool = False,
        size: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> AsyncConsole:
        """Attaches to a guest's console. replay_bytes: so much of what it wrote since its start first (at most 1 MiB).
        size: rows, columns.
        timeout: seconds until it is detached with TIMED_OUT; absent = never."""
        setup = guest_pb2.AttachConsoleSetup(name=name, replay_bytes=replay_bytes, read_only=read_only)
        if size is not None:
            setup.size.rows, setup.size.columns = size
        return AsyncConsole(self, setup, timeout)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        self.endpoint.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
