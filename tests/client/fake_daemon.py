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
from fake_images import FakeImages
from fake_inspection import FakeInspection
from fake_state import refuse
from google.protobuf import empty_pb2
from hvapi.v1 import (
    guest_pb2,
    guest_pb2_grpc,
    image_pb2_grpc,
    inspect_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    trace_pb2_grpc,
)

Guest = guest_pb2.Guest


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
    FakeInspection,
    FakeImages,
    guest_pb2_grpc.GuestServiceServicer,
    metrics_pb2_grpc.MetricsServiceServicer,
    system_pb2_grpc.SystemServiceServicer,
):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.consoles: dict[str, _Console] = {}
        self.changed = threading.Condition()
        self.events: list[guest_pb2.GuestEvent] = []
        self.sizes: list[tuple[int, int]] = []
        self.screens: list[guest_pb2.Screen] = []  # of every guest, one after the other
        self.watch_breaks_after = 0  # 0 = never
        self.expired_tokens: set[str] = set()
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

    # guests

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
                refuse(
                    context,
                    "NOT_FOUND",
                    "BLOB_NOT_FOUND",
                    f"the daemon has no blob {digest}",
                    "upload it first",
                    digest=digest,
                )
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
        return self.find(request.name, context)

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
        guest = self.find(request.guest.name, context)
        if "labels" in request.update_mask.paths:
            guest.labels.clear()
            guest.labels.update(request.guest.labels)
        return guest

    def DeleteGuest(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.calls.append(("DeleteGuest", request))
        if request.name not in self.guests and request.allow_missing:
            return empty_pb2.Empty()
        guest = self.find(request.name, context)
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
        guest = self.find(request.name, context)
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
        self.find(request.name, context)
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
        self.find(request.name, context)
        for screen in self.screens if request.watch else self.screens[:1]:
            yield guest_pb2.GetScreenResponse(screen=screen)

    def TypeKeys(self, request: Any, context: Any) -> guest_pb2.TypeKeysResponse:
        self.calls.append(("TypeKeys", request))
        self.find(request.name, context)
        return guest_pb2.TypeKeysResponse(events=2 * len(request.inputs))

    def PauseGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        guest = self.find(request.name, context)
        if guest.state != Guest.RUNNING:
            self._wrong_state(context, guest, "pause", "start it first")
        return self.change(request.name, state=Guest.PAUSED)

    def ResumeGuest(self, request: Any, context: Any) -> guest_pb2.Guest:
        self.find(request.name, context)
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
        self.find(request.name, context)
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
        guest = self.find(setup.name, context)
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
        self.find(request.name, context)
        lines = self.consoles[request.name].log.splitlines(keepends=True)
        if request.HasField("tail"):
            lines = lines[len(lines) - request.tail :]
        for line in lines:
            entry = guest_pb2.LogLine(stream="stdout", text=line)
            entry.time.FromSeconds(1_700_000_000)
            yield guest_pb2.GetLogsResponse(lines=[entry])

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
