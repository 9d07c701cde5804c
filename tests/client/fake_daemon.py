"""A daemon without guests, for tests of the client: real gRPC over a real unix socket, states kept in dictionaries.

A guest's kernel command line is its program: "say=TEXT" prints, "echo" repeats what is typed until it reads q, "hang" waits for ever,
"exit=N" is the exit code, "fail" ends FAILED, "refuse" cannot be started.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from hvapi import record
from hvapi.v1 import (
    guest_pb2,
    guest_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    inspect_pb2,
    inspect_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)

Guest = guest_pb2.Guest


def refuse(context: grpc.ServicerContext, code: str, reason: str, message: str, help: str, **metadata: str) -> NoReturn:
    """As the daemon does: google.rpc.Status with ErrorInfo and Help."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="hvd", metadata=metadata)]
    links = error_details_pb2.Help(links=[error_details_pb2.Help.Link(description=help)])
    packed = []
    for detail in (*details, links):
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=f"{message}; {help}", details=packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


def make_record(
    time_ns: int, point: int, *arguments: int, duration: int = 1200, flags: int = 0, rip: int = 0x100123
) -> bytes:
    values = (*arguments, 0, 0, 0, 0)[:4]
    return record.RECORD.pack(time_ns, duration, point, 1, 1, 0, flags, 0, rip, *values)


POINTS = [
    trace_pb2.TracePoint(
        id=2,
        name="port-out",
        kind="port-io",
        arguments=[
            trace_pb2.TraceArgument(name="port", format="hex"),
            trace_pb2.TraceArgument(name="size", format="dec"),
            trace_pb2.TraceArgument(name="value", format="hex"),
        ],
    ),
    trace_pb2.TracePoint(
        id=65,
        name="hypercall.log",
        kind="hypercall",
        arguments=[
            trace_pb2.TraceArgument(name="address", format="hex"),
            trace_pb2.TraceArgument(name="length", format="dec"),
            trace_pb2.TraceArgument(name="-", format="hex"),
            trace_pb2.TraceArgument(name="result", format="errno"),
        ],
    ),
]


class _Console:
    """What one guest writes, kept, and the viewers that follow it."""

    def __init__(self) -> None:
        self.log = b""
        self.input: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.changed = threading.Condition()

    def write(self, data: bytes) -> None:
        with self.changed:
            self.log += data
            self.changed.notify_all()


class FakeDaemon(
    guest_pb2_grpc.GuestServiceServicer,
    inspect_pb2_grpc.InspectServiceServicer,
    trace_pb2_grpc.TraceServiceServicer,
    metrics_pb2_grpc.MetricsServiceServicer,
    image_pb2_grpc.ImageServiceServicer,
    system_pb2_grpc.SystemServiceServicer,
):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.guests: dict[str, guest_pb2.Guest] = {}
        self.consoles: dict[str, _Console] = {}
        self.changed = threading.Condition()
        self.events: list[guest_pb2.GuestEvent] = []
        self.blobs: dict[str, bytes] = {}
        self.chunks: list[int] = []
        self.searches = 0
        self.images: dict[str, image_pb2.Image] = {}
        self.calls: list[tuple[str, Any]] = []
        self.sizes: list[tuple[int, int]] = []
        self.trace_blocks: list[trace_pb2.StreamTraceResponse] = []
        self.memory = bytearray(range(256)) * 16
        self.screens: list[guest_pb2.Screen] = []  # of every guest, one after the other
        self.unavailable_answers = 0  # so many calls fail with UNAVAILABLE first
        self.watch_breaks_after = 0  # 0 = never
        self.expired_tokens: set[str] = set()
        self.silent_after: int | None = None  # pieces of memory, after which nothing comes; None = they all do
        self.stopping = False
        self.server: grpc.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        self.stopping = False
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
        for add in (
            guest_pb2_grpc.add_GuestServiceServicer_to_server,
            inspect_pb2_grpc.add_InspectServiceServicer_to_server,
            trace_pb2_grpc.add_TraceServiceServicer_to_server,
            metrics_pb2_grpc.add_MetricsServiceServicer_to_server,
            image_pb2_grpc.add_ImageServiceServicer_to_server,
            system_pb2_grpc.add_SystemServiceServicer_to_server,
        ):
            add(self, self.server)  # type: ignore[arg-type]
        assert self.server.add_insecure_port(f"unix:{self.path}")
        self.server.start()

    def stop(self) -> None:
        self.stopping = True
        with self.changed:
            self.changed.notify_all()
        for console in self.consoles.values():
            with console.changed:
                console.changed.notify_all()
        if self.server is not None:
            self.server.stop(grace=None).wait(5)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    # guests

    def _find(self, name: str, context: grpc.ServicerContext) -> guest_pb2.Guest:
        self._flaky(context)
        if name not in self.guests:
            short = name.removeprefix("guests/")
            refuse(
                context,
                "NOT_FOUND",
                "GUEST_NOT_FOUND",
                f"there is no guest '{short}'",
                "`hvctl list` shows the guests there are",
                name=short,
            )
        return self.guests[name]

    def _flaky(self, context: grpc.ServicerContext) -> None:
        if self.unavailable_answers:
            self.unavailable_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

    def change(self, name: str, kind: int = guest_pb2.GuestEvent.CHANGED, **fields: Any) -> guest_pb2.Guest:
        with self.changed:
            guest = self.guests[name]
            for key, value in fields.items():
                setattr(guest, key, value)
            event = guest_pb2.GuestEvent(type=kind, guest=guest, resume_token=str(len(self.events) + 1))
            event.time.GetCurrentTime()
            self.events.append(event)
            self.changed.notify_all()
            return guest

    def CreateGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        machine = request.guest.machine
        for digest in (machine.kernel, machine.initrd, machine.symbols):
            if digest and digest not in self.blobs:
                refuse(context, "NOT_FOUND", "BLOB_NOT_FOUND", f"the daemon has no blob {digest}", "upload it first", digest=digest)
        self.calls.append(("CreateGuest", request))
        short = request.guest_id or f"guest-{len(self.guests) + 1}"
        name = f"guests/{short}"
        if name in self.guests:
            refuse(
                context, "ALREADY_EXISTS", "NAME_TAKEN", f"guest '{short}' exists already", "choose another", name=short
            )
        if request.guest.backend == "kvm":
            refuse(
                context,
                "FAILED_PRECONDITION",
                "BACKEND_UNAVAILABLE",
                "backend kvm does not run here: /dev/kvm is missing",
                "load the kvm module",
                backend="kvm",
                problem="/dev/kvm is missing",
            )
        guest = Guest()
        guest.CopyFrom(request.guest)
        guest.name, guest.uid, guest.state = name, f"uid-{short}", Guest.STOPPED
        if not guest.backend:
            guest.backend, guest.backend_reason = "emulation", "the only one that runs here"
        guest.etag = "1"
        guest.create_time.GetCurrentTime()
        self.guests[name] = guest
        self.consoles[name] = _Console()
        self.change(name, guest_pb2.GuestEvent.CREATED)
        return guest

    def GetGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        return self._find(request.name, context)

    def ListGuests(self, request: Any, context: Any) -> guest_pb2.ListGuestsResponse:
        """Pages of two, so that the client has to turn them."""
        self._flaky(context)
        fitting = [
            guest
            for _, guest in sorted(self.guests.items())
            if all(guest.labels.get(key) == value for key, value in request.labels.items())
        ]
        start = int(request.page_token or 0)
        more = str(start + 2) if start + 2 < len(fitting) else ""
        return guest_pb2.ListGuestsResponse(guests=fitting[start : start + 2], next_page_token=more)

    def UpdateGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self.calls.append(("UpdateGuest", request))
        guest = self._find(request.guest.name, context)
        if "labels" in request.update_mask.paths:
            guest.labels.clear()
            guest.labels.update(request.guest.labels)
        return guest

    def DeleteGuest(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.calls.append(("DeleteGuest", request))
        if request.name not in self.guests and request.allow_missing:
            return empty_pb2.Empty()
        guest = self._find(request.name, context)
        if guest.state == Guest.RUNNING and not request.force:
            self._wrong_state(context, guest, "delete", "`hvctl delete --force` kills it first")
        self.change(request.name, guest_pb2.GuestEvent.DELETED)
        del self.guests[request.name]
        return empty_pb2.Empty()

    def _wrong_state(self, context: Any, guest: guest_pb2.Guest, verb: str, remedy: str) -> NoReturn:
        state, short = Guest.State.Name(guest.state), guest.name.removeprefix("guests/")
        message = f"guest '{short}' is {state}; {verb} needs another"
        refuse(context, "FAILED_PRECONDITION", "GUEST_WRONG_STATE", message, remedy, name=short, state=state, verb=verb)

    def StartGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self.calls.append(("StartGuest", request))
        guest = self._find(request.name, context)
        words = guest.machine.append.split()
        if "refuse" in words:
            refuse(
                context, "INVALID_ARGUMENT", "IMAGE_FORMAT", "the kernel is no kernel", "give another", what="kernel"
            )
        guest = self.change(request.name, state=Guest.PAUSED if request.paused else Guest.RUNNING, host_pid=4242)
        threading.Thread(target=self._program, args=(request.name, words), daemon=True).start()
        return guest

    def _program(self, name: str, words: list[str]) -> None:
        console = self.consoles[name]
        code = 0
        for word in words:
            key, _, value = word.partition("=")
            if key == "say":
                console.write(value.encode() + b"\r\n")
            elif key == "echo":
                while (data := console.input.get()) != b"" and b"q" not in data:
                    console.write(b"[" + data + b"]")
            elif key == "hang":
                return
            elif key == "exit":
                code = int(value)
        failed = "fail" in words
        self.change(
            name,
            state=Guest.FAILED if failed else Guest.STOPPED,
            reason="EXECUTION_ERROR" if failed else "EXITED",
            exit_code=code,
            host_pid=0,
        )
        with console.changed:
            console.changed.notify_all()

    def _end(self, request: Any, context: Any, reason: str) -> guest_pb2.Guest:
        self._find(request.name, context)
        guest = self.change(request.name, state=Guest.STOPPED, reason=reason, exit_code=0)
        console = self.consoles[request.name]
        with console.changed:
            console.changed.notify_all()
        return guest

    def StopGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self.calls.append(("StopGuest", request))
        return self._end(request, context, "POWEROFF")

    def KillGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self.calls.append(("KillGuest", request))
        return self._end(request, context, "KILLED")

    def GetScreen(self, request: Any, context: Any) -> Iterator[guest_pb2.GetScreenResponse]:
        self.calls.append(("GetScreen", request))
        self._find(request.name, context)
        for screen in self.screens if request.watch else self.screens[:1]:
            yield guest_pb2.GetScreenResponse(screen=screen)

    def TypeKeys(self, request: Any, context: Any) -> guest_pb2.TypeKeysResponse:
        self.calls.append(("TypeKeys", request))
        self._find(request.name, context)
        return guest_pb2.TypeKeysResponse(events=2 * len(request.inputs))

    def PauseGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        guest = self._find(request.name, context)
        if guest.state != Guest.RUNNING:
            self._wrong_state(context, guest, "pause", "start it first")
        return self.change(request.name, state=Guest.PAUSED)

    def ResumeGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self._find(request.name, context)
        return self.change(request.name, state=Guest.RUNNING)

    def ResetGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        refuse(
            context,
            "UNIMPLEMENTED",
            "CAPABILITY_MISSING",
            "backend emulation cannot reset",
            "`hvctl backends` shows what each can do",
            backend="emulation",
            capability="reset",
        )

    def WaitGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self.calls.append(("WaitGuest", request))
        self._find(request.name, context)
        wanted = list(request.states) or [Guest.STOPPED, Guest.FAILED, Guest.LOST]
        seconds = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else 60
        with self.changed:
            reached = self.changed.wait_for(lambda: self.guests[request.name].state in wanted, seconds)
        if not reached:
            refuse(
                context,
                "DEADLINE_EXCEEDED",
                "WAIT_TIMED_OUT",
                f"guest is still there after {seconds:g} s",
                "wait longer",
                name=request.name,
                seconds=f"{seconds:g}",
            )
        return self.guests[request.name]

    def WatchGuests(self, request: Any, context: Any) -> Iterator[guest_pb2.GuestEvent]:
        self.calls.append(("WatchGuests", request))
        if request.resume_token in self.expired_tokens:
            refuse(context, "OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED", "gone", "watch again", token=request.resume_token)
        sent = int(request.resume_token or len(self.events))
        if not request.resume_token and not request.changes_only:
            for _, guest in sorted(self.guests.items()):
                yield guest_pb2.GuestEvent(type=guest_pb2.GuestEvent.PRESENT, guest=guest)
            yield guest_pb2.GuestEvent(type=guest_pb2.GuestEvent.BOOKMARK, resume_token=str(sent))
        since = 0
        while context.is_active() and not self.stopping:
            with self.changed:
                self.changed.wait_for(lambda known=sent: len(self.events) > known or self.stopping, 0.2)
                fresh = self.events[sent:]
            for event in fresh:
                yield event
                sent += 1
                since += 1
                if since == self.watch_breaks_after:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon restarts")

    def AttachConsole(self, requests: Any, context: Any) -> Iterator[guest_pb2.AttachConsoleResponse]:
        setup = next(requests).setup
        self.calls.append(("AttachConsole", setup))
        guest = self._find(setup.name, context)
        console = self.consoles[setup.name]
        if setup.HasField("size"):
            self.sizes.append((setup.size.rows, setup.size.columns))

        def typed() -> None:
            try:
                for request in requests:
                    if request.WhichOneof("frame") == "input":
                        console.input.put(request.input)
                    else:
                        self.sizes.append((request.size.rows, request.size.columns))
            except grpc.RpcError:
                return  # the viewer has gone

        threading.Thread(target=typed, daemon=True).start()
        yield guest_pb2.AttachConsoleResponse(attached=empty_pb2.Empty())
        sent = max(0, len(console.log) - setup.replay_bytes)

        def ended() -> bool:
            return guest.state in (Guest.STOPPED, Guest.FAILED)

        while context.is_active() and not self.stopping:
            with console.changed:
                console.changed.wait_for(lambda known=sent: len(console.log) > known or ended() or self.stopping, 0.2)
                done, fresh = ended(), console.log[sent:]
            if fresh:
                yield guest_pb2.AttachConsoleResponse(output=fresh)
                sent += len(fresh)
            elif done:
                yield guest_pb2.AttachConsoleResponse(ended=guest)
                return
        if self.stopping:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon stops")

    def GetLogs(self, request: Any, context: Any) -> Iterator[guest_pb2.GetLogsResponse]:
        self.calls.append(("GetLogs", request))
        self._find(request.name, context)
        lines = self.consoles[request.name].log.splitlines(keepends=True)
        if request.HasField("tail"):
            lines = lines[len(lines) - request.tail :]
        for line in lines:
            entry = guest_pb2.LogLine(stream="stdout", text=line)
            entry.time.FromSeconds(1_700_000_000)
            yield guest_pb2.GetLogsResponse(lines=[entry])

    # inspection

    def ReadMemory(self, request: Any, context: Any) -> Iterator[inspect_pb2.ReadMemoryResponse]:
        self.calls.append(("ReadMemory", request))
        self._find(request.name, context)
        if request.address + request.length > len(self.memory):
            refuse(context, "OUT_OF_RANGE", "ADDRESS_OUTSIDE", "not within the guest's memory", "`hvctl mem map`")
        for number, offset in enumerate(range(0, request.length, 1000)):
            while number == self.silent_after and context.is_active() and not self.stopping:
                time.sleep(0.05)
            at = request.address + offset
            data = bytes(self.memory[at : at + min(1000, request.length - offset)])
            yield inspect_pb2.ReadMemoryResponse(address=at, data=data)

    def WriteMemory(self, request: Any, context: Any) -> inspect_pb2.WriteMemoryResponse:
        self.memory[request.address : request.address + len(request.data)] = request.data
        return inspect_pb2.WriteMemoryResponse(written_bytes=len(request.data))

    def GetMemoryMap(self, request: Any, context: Any) -> inspect_pb2.MemoryMap:
        region = inspect_pb2.MemoryRegion
        return inspect_pb2.MemoryMap(
            regions=[
                region(start=0, length=1024, kind=region.RAM, owner="ram"),
                region(start=1024, length=1024, kind=region.MMIO, owner="vga"),
                region(start=2048, length=2048, kind=region.RAM, owner="ram", file_offset=1024),
            ]
        )

    def TranslateAddress(self, request: Any, context: Any) -> inspect_pb2.AddressTranslation:
        if request.address >= 0x1000:
            return inspect_pb2.AddressTranslation(
                virtual_address=request.address, paging_mode="PAE", fault="the PDE at 0x2000 is not present"
            )
        entry = inspect_pb2.PageTableEntry(level="PTE", address=0x2000, value=0x67)
        return inspect_pb2.AddressTranslation(
            virtual_address=request.address,
            physical_address=request.address,
            writable=True,
            page_bytes=4096,
            paging_mode="32-bit",
            entries=[entry],
        )

    def GetRegisters(self, request: Any, context: Any) -> inspect_pb2.Registers:
        register = inspect_pb2.Register
        return inspect_pb2.Registers(
            mode="protected",
            registers=[register(name="eip", value=0x100123), register(name="cs", value=8, base=0, limit=0xFFFFFFFF)],
        )

    # trace

    def StreamTrace(self, request: Any, context: Any) -> Iterator[trace_pb2.StreamTraceResponse]:
        self.calls.append(("StreamTrace", request))
        for name in request.names:
            self._find(name, context)
        header = trace_pb2.TraceHeader(guests=request.names, points=POINTS)
        header.monotonic_epoch.FromSeconds(1_700_000_000)
        yield trace_pb2.StreamTraceResponse(header=header)
        yield from self.trace_blocks
        while context.is_active() and not self.stopping:
            time.sleep(0.05)

    def SummarizeTrace(self, request: Any, context: Any) -> trace_pb2.TraceSummary:
        self._find(request.name, context)
        row = trace_pb2.TraceSummaryRow
        return trace_pb2.TraceSummary(
            total=12,
            rows=[
                row(kind="port-io", reason="port-in", count=2, total_ns=1000, max_ns=600),
                row(kind="port-io", reason="port-out", count=10, total_ns=20000, max_ns=3000),
            ],
        )

    def ListTracePoints(self, request: Any, context: Any) -> trace_pb2.ListTracePointsResponse:
        return trace_pb2.ListTracePointsResponse(points=POINTS)

    # metrics

    def GetMetrics(self, request: Any, context: Any) -> metrics_pb2.GetMetricsResponse:
        self.calls.append(("GetMetrics", request))
        if request.as_text:
            return metrics_pb2.GetMetricsResponse(text="# TYPE hvd_guests gauge\nhvd_guests 1.0\n")
        return metrics_pb2.GetMetricsResponse(families=[metrics_pb2.MetricFamily(name="hvd_guests", type="gauge")])

    def WatchStats(self, request: Any, context: Any) -> Iterator[metrics_pb2.WatchStatsResponse]:
        self.calls.append(("WatchStats", request))
        while context.is_active() and not self.stopping:
            stats = [
                metrics_pb2.GuestStats(name="guests/idle", backend="emulation", state="RUNNING", cpu_ratio=0.01),
                metrics_pb2.GuestStats(
                    name="guests/busy", backend="emulation", state="RUNNING", cpu_ratio=0.99, exits=7
                ),
            ]
            yield metrics_pb2.WatchStatsResponse(stats=stats)
            time.sleep(0.05)

    # images

    def FindBlobs(self, request: Any, context: Any) -> image_pb2.FindBlobsResponse:
        self.searches += 1
        return image_pb2.FindBlobsResponse(digests=[digest for digest in request.digests if digest in self.blobs])

    def UploadBlob(self, requests: Any, context: Any) -> image_pb2.UploadBlobResponse:
        info = next(requests).info
        content = b""
        for request in requests:
            self.chunks.append(len(request.chunk))
            content += request.chunk or bytes(request.zeroes)
        if len(content) != info.size_bytes:
            refuse(context, "INVALID_ARGUMENT", "BLOB_SIZE", "wrong size", "upload it again")
        self.blobs[info.digest] = content
        return image_pb2.UploadBlobResponse(digest=info.digest)

    def CreateImage(self, request: Any, context: Any) -> image_pb2.Image:
        self.calls.append(("CreateImage", request))
        image = image_pb2.Image()
        image.CopyFrom(request.image)
        image.name = f"images/{request.image_id}"
        self.images[image.name] = image
        return image

    def ListImages(self, request: Any, context: Any) -> image_pb2.ListImagesResponse:
        return image_pb2.ListImagesResponse(images=self.images.values())

    def DeleteImage(self, request: Any, context: Any) -> empty_pb2.Empty:
        if request.name not in self.images and not request.allow_missing:
            refuse(context, "NOT_FOUND", "IMAGE_NOT_FOUND", "there is no such image", "`hvctl image list`")
        self.images.pop(request.name, None)
        return empty_pb2.Empty()

    def BuildImage(self, request: Any, context: Any) -> Iterator[image_pb2.BuildImageResponse]:
        for step, fraction in (("fetch", -1.0), ("compile", 0.5), ("compile", 1.0)):
            progress = image_pb2.BuildProgress(step=step, fraction=fraction, message="linux")
            yield image_pb2.BuildImageResponse(progress=progress)
        yield image_pb2.BuildImageResponse(image=image_pb2.Image(name=f"images/{request.recipe}", kind="linux"))

    # system

    def GetInfo(self, request: Any, context: Any) -> system_pb2.SystemInfo:
        finding = system_pb2.Finding(
            level=system_pb2.Finding.NOTE, subject="backend kvm", message="/dev/kvm is missing", remedy="load kvm"
        )
        return system_pb2.SystemInfo(version="9.9", pid=1, findings=[finding])

    def ListBackends(self, request: Any, context: Any) -> system_pb2.ListBackendsResponse:
        backend = system_pb2.Backend
        return system_pb2.ListBackendsResponse(
            backends=[
                backend(name="backends/emulation", kind="emulation", available=True, capabilities=["pause"]),
                backend(name="backends/kvm", kind="hardware assisted", reason="/dev/kvm is missing", remedy="load kvm"),
            ]
        )
