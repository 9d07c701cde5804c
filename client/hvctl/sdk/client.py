"""The synchronous client."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import grpc

from hvctl.sdk.blobs import MOST_LOADED_BYTES, Path, file_blob, frame_bytes, upload_frames
from hvctl.sdk.calls import HEALTH_SERVING, HEALTH_WATCH, Calls, Q, R, ServerStream, Unary, channel_options
from hvctl.sdk.endpoint import Endpoint, TlsFiles, default_endpoint
from hvctl.sdk.errors import HvctlError, from_rpc
from hvctl.sdk.streams import Attempts, Stream

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2, image_pb2

    from hvctl.sdk.debug import DebugSession
    from hvctl.sdk.execution import Execution
    from hvctl.sdk.guests import GuestSpec

# Long enough for a start on a loaded host; a daemon that hangs shall not hang its clients.
DEFAULT_TIMEOUT = 120.0
# Messages that Console.write takes before it waits for the connection.
WRITES_AHEAD = 64


class UnaryMethod(Generic[Q, R]):
    """A bound RPC with one response."""

    def __init__(self, client: Client, call: Unary[Q, R]) -> None:
        self._client, self._call = client, call
        self._invoke = client.channel.unary_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )

    def __call__(self, request: Q | None = None, /, *, timeout: float | None = None, **fields: Any) -> R:
        """timeout: seconds; absent = the client's own. Raises HvctlError."""
        if timeout is None and not self._call.waits:
            timeout = self._client.timeout
        try:
            return self._invoke(self._call.make(request, fields), timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, self._client.endpoint, self._call.method) from error


class ServerStreamMethod(Generic[Q, R]):
    """A bound RPC with a stream of responses."""

    def __init__(self, client: Client, call: ServerStream[Q, R]) -> None:
        self._client, self._call = client, call
        self._invoke = client.channel.unary_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )

    def __call__(self, request: Q | None = None, /, *, timeout: float | None = None, **fields: Any) -> Stream[R]:
        """timeout: seconds until the stream is ended with TIMED_OUT; absent = never, but one that must not be silent (ServerStream.goes_on) is
        when nothing comes for the client's own. Errors come from the iteration."""
        message = self._call.make(request, fields)
        attempts = Attempts(lambda left: self._invoke(message, timeout=left), timeout, self._call.idempotent)
        longest_wait = self._client.timeout if timeout is None and self._call.is_bounded(message) else None
        return Stream(attempts.begin(), self._client.endpoint, self._call.method, attempts, longest_wait)


class Console:
    """An attached console: iterate for what the guest writes, write() what is typed. `with` or close() detaches.

    After the iteration has ended, `ended` is the guest as it ended, or None when the console was detached.
    `skipped_bytes` is what this viewer missed by being slow.
    """

    def __init__(self, client: Client, setup: guest_pb2.AttachConsoleSetup, timeout: float | None) -> None:
        from hvapi.v1 import guest_pb2

        call = Calls.__dict__["_attach_console"]
        self.ended: guest_pb2.Guest | None = None
        self.skipped_bytes = 0
        # SimpleQueue.put is reentrant: resize() may be called from a signal handler.
        self._requests: queue.SimpleQueue[guest_pb2.AttachConsoleRequest | None] = queue.SimpleQueue()
        self._requests.put(guest_pb2.AttachConsoleRequest(setup=setup))
        self._room = threading.Semaphore(WRITES_AHEAD)
        self._closed = False
        invoke = client.channel.stream_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        self._frames: Stream[guest_pb2.AttachConsoleResponse] = Stream(
            invoke(self._sent(), timeout=timeout), client.endpoint, call.method
        )

    def _sent(self) -> Iterator[guest_pb2.AttachConsoleRequest]:
        while (request := self._requests.get()) is not None:
            if request.WhichOneof("frame") == "input":
                self._room.release()
            yield request

    def frames(self) -> Iterator[guest_pb2.AttachConsoleResponse]:
        """Every frame, with `attached` and `skipped_bytes` among them."""
        for frame in self._frames:
            kind = frame.WhichOneof("frame")
            if kind == "skipped_bytes":
                self.skipped_bytes += frame.skipped_bytes
            elif kind == "ended":
                self.ended = frame.ended
            yield frame
            if kind == "ended":
                return

    def __iter__(self) -> Iterator[bytes]:
        return (frame.output for frame in self.frames() if frame.WhichOneof("frame") == "output")

    def write(self, data: bytes) -> None:
        """Type this. Waits while much of what was typed before is still on its way to the daemon, not for the guest
        to read it."""
        from hvapi.v1 import guest_pb2

        self._room.acquire()
        if self._closed:
            self._room.release()  # for the next writer that waits
            return
        self._requests.put(guest_pb2.AttachConsoleRequest(input=data))

    def end_input(self) -> None:
        """Nothing more will be typed: the end of the standard input of a container that was started with attach_stdin."""
        from google.protobuf import empty_pb2
        from hvapi.v1 import guest_pb2

        self._requests.put(guest_pb2.AttachConsoleRequest(input_end=empty_pb2.Empty()))

    def resize(self, rows: int, columns: int) -> None:
        from hvapi.v1 import guest_pb2

        self._requests.put(guest_pb2.AttachConsoleRequest(size=guest_pb2.ConsoleSize(rows=rows, columns=columns)))

    def close(self) -> None:
        """Detach; from any thread."""
        self._closed = True
        self._requests.put(None)
        self._room.release()
        self._frames.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client(Calls):
    """A connection to the daemon. Its methods are the rows of Calls and the helpers below; all raise HvctlError.

    endpoint: unix:///path or host:port; absent = default_endpoint(). timeout: seconds for each call that gives none.
    channel: for tests; otherwise made on first use. tls: of host:port; absent = what HVD_TLS_* name.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        channel: grpc.Channel | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self.endpoint = Endpoint(endpoint or default_endpoint(), tls or TlsFiles())
        self.timeout = timeout
        self._channel = channel
        self._methods: dict[str, Any] = {}

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            credentials = self.endpoint.credentials()
            target = self.endpoint.target()
            if credentials is None:
                self._channel = grpc.insecure_channel(target, channel_options())
            else:
                self._channel = grpc.secure_channel(target, credentials, channel_options())
        return self._channel

    def _unary(self, call: Unary[Q, R]) -> UnaryMethod[Q, R]:
        if call.path not in self._methods:
            self._methods[call.path] = UnaryMethod(self, call)
        return self._methods[call.path]  # type: ignore[no-any-return]

    def _server_stream(self, call: ServerStream[Q, R]) -> ServerStreamMethod[Q, R]:
        if call.path not in self._methods:
            self._methods[call.path] = ServerStreamMethod(self, call)
        return self._methods[call.path]  # type: ignore[no-any-return]

    def wait_ready(self, timeout: float) -> bool:
        """Waits until the daemon serves and knows what became of its guests, at most so many seconds. False = it does
        not yet. Raises HvctlError for anything but a daemon that is away.
        """
        end = time.monotonic() + timeout
        watch: Any = self.channel.unary_stream(HEALTH_WATCH)
        while (left := end - time.monotonic()) > 0:
            call = watch(b"", timeout=left, wait_for_ready=True)
            try:
                if any(status == HEALTH_SERVING for status in call):
                    return True
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:  # it has been reached, and can say no more
                    return True
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise from_rpc(error, self.endpoint, HEALTH_WATCH) from error
            finally:
                call.cancel()
        return False

    def upload_file(
        self, path: Path, progress: Callable[[int, int], None] | None = None, *, most: int = MOST_LOADED_BYTES
    ) -> str:
        """Makes the file a blob of the daemon, unless it has it already. Returns its digest ("sha256:...").

        progress is called with (bytes sent, bytes in all). most: bytes that the file may have; disks may have more
        (hvctl.sdk.blobs.MOST_DISK_BYTES). Raises HvctlError FILE_UNREADABLE, FILE_TOO_LARGE, DISK_FULL, ...
        """
        told = None if progress is None else lambda path, sent, size: progress(sent, size)
        return self.upload_files([path], told, most=most)[0]

    def upload_files(
        self,
        paths: Sequence[Path],
        progress: Callable[[Path, int, int], None] | None = None,
        *,
        most: int = MOST_LOADED_BYTES,
        known: Sequence[image_pb2.BlobInfo] = (),
    ) -> list[str]:
        """upload_file() of several, which asks but once what the daemon has. known: of each, what file_blob() says (hvctl.sdk.blobs), if it has
        been asked."""
        infos = known or [file_blob(path, most) for path in paths]
        if not infos:
            return []
        there = set(self.find_blobs(digests=[info.digest for info in infos]).digests)
        for path, info in zip(paths, infos, strict=True):
            if info.digest not in there:
                self._upload(path, info, None if progress is None else functools.partial(progress, path))
                there.add(info.digest)
        return [info.digest for info in infos]

    def _upload(self, path: Path, info: image_pb2.BlobInfo, progress: Callable[[int, int], None] | None) -> None:
        call = Calls.__dict__["_upload_blob"]
        invoke = self.channel.stream_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        try:
            invoke(_reported(upload_frames(path, info), info.size_bytes, progress))
        except grpc.RpcError as error:
            raise from_rpc(error, self.endpoint, call.method) from error

    def export_snapshot_file(self, name: str, path: Path, *, timeout: float | None = None) -> None:
        """Writes a snapshot to a file, which is there only when it is whole. Raises HvctlError, also FILE_UNWRITABLE."""
        from hvctl.sdk.files import new_file

        with new_file(path) as file, self.export_snapshot(name=name, timeout=timeout) as responses:
            for response in responses:
                file.write(response.chunk)

    def import_snapshot(
        self, path: Path, *, parent: str = "", snapshot_id: str = "", timeout: float | None = None
    ) -> guest_pb2.Snapshot:
        """Sends a file that export_snapshot_file() wrote. Raises HvctlError, also FILE_UNREADABLE."""
        from hvctl.sdk.files import import_frames

        call = Calls.__dict__["_import_snapshot"]
        invoke = self.channel.stream_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        try:
            answer: guest_pb2.Snapshot = invoke(import_frames(path, parent, snapshot_id), timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error, self.endpoint, call.method) from error
        return answer

    def create(self, spec: GuestSpec, *, validate_only: bool = False) -> guest_pb2.Guest:
        """Uploads the guest's files and makes it, STOPPED."""
        files = (spec.kernel, spec.initrd, spec.symbols)
        digests = iter(self.upload_files([path for path in files if path is not None]))
        guest = spec.message(*("" if path is None else next(digests) for path in files))
        return self.create_guest(guest_id=spec.name, guest=guest, validate_only=validate_only)

    def run_guest(self, *, paused: bool = False, **spec: Any) -> guest_pb2.Guest:
        """Makes a guest and starts it; the keyword arguments are GuestSpec's. Returns when its first instruction has
        run.

        When the start fails the guest stays, STOPPED or FAILED, to be looked at.
        """
        from hvctl.sdk.guests import GuestSpec

        guest = self.create(GuestSpec(**spec))
        return self.start_guest(name=guest.name, paused=paused)

    def guests(self, labels: dict[str, str] | None = None) -> Iterator[guest_pb2.Guest]:
        """Every guest, page by page."""
        token = ""
        while True:
            page = self.list_guests(page_token=token, labels=labels or {})
            yield from page.guests
            token = page.next_page_token
            if not token:
                return

    def watch(self, names: Sequence[str] = (), *, changes_only: bool = False) -> Iterator[guest_pb2.GuestEvent]:
        """watch_guests that goes on by itself when the daemon restarts or this reader is too slow. PRESENT events
        again mean that the daemon no longer had what happened meanwhile. Fails only if it cannot begin."""
        from hvctl.sdk.watching import Resume

        state = Resume(names, changes_only)
        while True:
            try:
                with self.watch_guests(state.request()) as events:
                    for event in events:
                        state.saw(event)
                        yield event
                return
            except HvctlError as error:
                time.sleep(state.delay_after(error))

    def debug(self, name: str, *, architecture: str = "", timeout: float | None = None) -> DebugSession:
        """Attaches a debugger, which stops the guest. architecture: "i386", "i386:x86-64" or "i8086"; absent = what the vcpu executes now.
        timeout: seconds until it is ended with TIMED_OUT; absent = never."""
        from hvapi.v1 import inspect_pb2

        from hvctl.sdk.debug import DebugSession

        return DebugSession(self, inspect_pb2.DebugSetup(name=name, architecture=architecture), timeout)

    def download_file(self, digest: str, path: Path) -> None:
        """Writes a blob of the daemon to a new file. Raises HvctlError BLOB_NOT_FOUND, ...; OSError."""
        with open(path, "xb") as file, self.download_blob(digest=digest) as chunks:
            for chunk in chunks:
                file.write(chunk.chunk)

    def console(
        self,
        name: str,
        *,
        replay_bytes: int = 0,
        read_only: bool = False,
        size: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> Console:
        """Attaches to a guest's console. replay_bytes: so much of what it wrote since its start first (at most 1 MiB).
        size: rows, columns.
        timeout: seconds until it is detached with TIMED_OUT; absent = never."""
        from hvapi.v1 import guest_pb2

        setup = guest_pb2.AttachConsoleSetup(name=name, replay_bytes=replay_bytes, read_only=read_only)
        if size is not None:
            setup.size.rows, setup.size.columns = size
        return Console(self, setup, timeout)

    def execute(self, setup: guest_pb2.ExecSetup, *, timeout: float | None = None) -> Execution:
        """Runs another program in a running guest; returns when it runs. timeout: seconds until it is killed."""
        from hvctl.sdk.execution import Execution

        return Execution(self, setup, timeout)

    def copy_in(
        self,
        name: str,
        path: str,
        chunks: Iterable[bytes],
        *,
        place: bool = True,
        keep_owners: bool = False,
        timeout: float | None = None,
    ) -> guest_pb2.CopyInResponse:
        """Sends a tar (hvctl.sdk.copying.archive_of makes one) into a container, as CopyInSetup says. Raises HvctlError, and what `chunks` raises."""
        from hvctl.sdk.copying import copy_in_frames

        call = Calls.__dict__["_copy_in"]
        invoke = self.channel.stream_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        failures: list[Exception] = []

        def frames() -> Iterator[guest_pb2.CopyInRequest]:
            try:
                yield from copy_in_frames(name, path, chunks, place, keep_owners)
            except Exception as error:
                failures.append(error)  # grpc would only say that there was one
                raise

        try:
            answer: guest_pb2.CopyInResponse = invoke(frames(), timeout=timeout)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise from_rpc(error, self.endpoint, call.method) from error
        return answer

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self.endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reported(
    frames: Iterator[image_pb2.UploadBlobRequest], size: int, progress: Callable[[int, int], None] | None
) -> Iterator[image_pb2.UploadBlobRequest]:
    sent = 0
    for frame in frames:
        yield frame
        sent += frame_bytes(frame)
        if progress is not None:
            progress(sent, size)
