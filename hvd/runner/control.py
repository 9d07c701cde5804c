"""The control socket of a runner: what the daemon asks of one virtual machine.

Imported when the first connection comes: the guest runs by then, and does not wait for protobuf.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hvapi.runner.v1 import control_pb2
from hvapi.v1 import guest_pb2, inspect_pb2

from hvd.board.devices.keyboard import Keyboard
from hvd.board.devices.vga import ScreenImage, Vga
from hvd.board.keys import KEYS, Stroke
from hvd.board.machine import Machine
from hvd.board.memory import Region
from hvd.board.paging import CR0_PE, EFER_LMA, Translation
from hvd.board.vcpu import Shadow
from hvd.errors import HvdError
from hvd.runner.directory import ENDS
from hvd.runner.protocol import LENGTH_BYTES, MOST_BYTES, FrameError, frame, frame_length

MOST_CONNECTIONS = 64
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
LARGEST_CONSOLE = 65535


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.to_send = bytearray()
        self.busy = False  # a request is being worked on; the next waits for it
        self.waits_for: tuple[int, control_pb2.WaitStatus] | None = None
        self.events = 0
        self.closed = False


class ControlServer:
    """Serves connections; belongs to the thread of the selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        machine: Machine,
        post: Callable[[Callable[[], None]], None],
        log_error: Callable[[], str],
        kill: Callable[[], None],
        sensitive: Callable[[], int] = lambda: 0,
    ) -> None:
        """post: run a function in the selector's thread, callable from any thread. log_error: what is wrong with the
        console log. sensitive: how many instructions of the kernel are known that cannot trap though they should."""
        self._selector = selector
        self._machine = machine
        self._post = post
        self._log_error = log_error
        self._kill_machine = kill
        self._sensitive = sensitive
        self._connections: set[_Connection] = set()
        # Who waits for room in the keyboard.
        self._typists: dict[_Connection, tuple[int, list[Stroke]]] = {}
        machine.device(Keyboard).on_room = lambda: post(self._retry_typists)
        self._calls: dict[str, Callable[[_Connection, int, Any], None]] = {
            "get_status": self._get_status,
            "wait_status": self._wait_status,
            "pause": lambda c, i, r: self._in_vcpu(c, i, machine.pause),
            "resume": lambda c, i, r: self._in_vcpu(c, i, machine.resume),
            "reset": lambda c, i, r: self._in_vcpu(c, i, machine.reset),
            "power_button": self._power_button,
            "kill": self._kill,
            "read_memory": self._read_memory,
            "write_memory": self._write_memory,
            "get_memory_map": lambda c, i, r: self._in_vcpu(c, i, machine.regions, _memory_map),
            "translate_address": self._translate_address,
            "get_registers": self._get_registers,
            "resize_console": self._resize_console,
            "get_screen": lambda c, i, r: self._in_vcpu(c, i, machine.device(Vga).screen, lambda image: {"screen": screen_message(image)}),
            "type_keys": self._type_keys,
            "save_snapshot": self._save_snapshot,
            "get_census": self._get_census,
        }

    def accept(self, sock: socket.socket) -> None:
        """Serve a new connection."""
        if len(self._connections) >= MOST_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        connection = _Connection(sock)
        self._connections.add(connection)
        self._watch(connection)

    def status_changed(self) -> None:
        """Answer those who wait for it."""
        for connection in tuple(self._connections):
            if connection.waits_for is not None and self._differs(connection.waits_for[1]):
                id_ = connection.waits_for[0]
                connection.waits_for = None
                self._answer(connection, id_, status=self._status())

    @property
    def waiting(self) -> bool:
        """Are there answers that have not left yet?"""
        return any(connection.to_send for connection in self._connections)

    def close(self) -> None:
        for connection in tuple(self._connections):
            self._drop(connection)

    # ---- connections

    def _event(self, connection: _Connection, events: int) -> None:
        if events & WRITE:
            self._send(connection)
        if events & READ and not connection.closed:
            self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.received += data
        self._advance(connection)

    def _advance(self, connection: _Connection) -> None:
        """Begin the next request, if it is there and the one before it is answered."""
        received = connection.received
        try:
            while len(received) >= LENGTH_BYTES and not (connection.busy or connection.to_send or connection.closed):
                end = LENGTH_BYTES + frame_length(received[:LENGTH_BYTES])
                if len(received) < end:
                    break
                request = control_pb2.RunnerRequest.FromString(bytes(received[LENGTH_BYTES:end]))
                del received[:end]
                connection.busy = True
                self._begin(connection, request)
        except (FrameError, DecodeError):
            # Nothing that follows can be understood.
            self._drop(connection)
            return
        self._watch(connection)

    def _begin(self, connection: _Connection, request: control_pb2.RunnerRequest) -> None:
        name = request.WhichOneof("call")
        if name is None:
            error = HvdError(
                "REQUEST_INVALID", problem="the runner does not know this call", remedy="restart the guest"
            )
            self._answer(connection, request.id, error=_error(error))
            return
        try:
            self._calls[name](connection, request.id, getattr(request, name))
        except HvdError as error:
            self._answer(connection, request.id, error=_error(error))

    def _answer(self, connection: _Connection, id_: int, **result: Any) -> None:
        if connection.closed:
            return
        connection.to_send += frame(control_pb2.RunnerResponse(id=id_, **result))
        connection.busy = False
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            while connection.to_send:
                sent = connection.sock.send(connection.to_send, socket.MSG_NOSIGNAL)
                del connection.to_send[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        self._watch(connection)
        if connection.received and not connection.to_send and not connection.busy:
            self._post(lambda: self._advance(connection))

    def _watch(self, connection: _Connection) -> None:
        if connection.closed:
            return
        # Requests are taken from a client only as fast as it takes the answers.
        room = len(connection.received) <= MOST_BYTES and not connection.to_send
        events = (READ if room else 0) | (WRITE if connection.to_send else 0)
        if events == connection.events:
            return
        if connection.events:
            self._selector.unregister(connection.sock)
        if events:
            self._selector.register(connection.sock, events, lambda ready: self._event(connection, ready))
        connection.events = events

    def _drop(self, connection: _Connection) -> None:
        if connection.events:
            self._selector.unregister(connection.sock)
            connection.events = 0
        connection.closed = True
        connection.waits_for = None
        self._typists.pop(connection, None)
        connection.sock.close()
        self._connections.discard(connection)

    # ---- calls

    def _in_vcpu(
        self,
        connection: _Connection,
        id_: int,
        function: Callable[[], Any],
        to_result: Callable[[Any], dict[str, Any]] = lambda nothing: {"done": control_pb2.Done()},
    ) -> None:
        def done(result: Any, error: HvdError | None) -> None:
            self._post(lambda: answer(result, error))

        def answer(result: Any, error: HvdError | None) -> None:
            self._answer(connection, id_, **({"error": _error(error)} if error else to_result(result)))

        self._machine.call(function, done)

    def _status(self) -> control_pb2.Status:
        machine = self._machine
        status = control_pb2.Status(
            state=machine.state,
            resets=machine.resets,
            log_error=self._log_error(),
            debugged=machine.debugger is not None,
            sensitive_instructions=self._sensitive(),
            neglected=machine.neglected,
        )
        if machine.end is not None:
            status.state = ENDS[machine.end.reason]
            status.reason, status.message = machine.end.reason, machine.end.message
        return status

    def _get_status(self, connection: _Connection, id_: int, request: control_pb2.GetStatus) -> None:
        self._answer(connection, id_, status=self._status())

    def _differs(self, known: control_pb2.WaitStatus) -> bool:
        machine = self._machine
        return (
            machine.end is not None
            or known.state != machine.state
            or (known.HasField("resets") and known.resets != machine.resets)
            or (known.HasField("log_failing") and known.log_failing != bool(self._log_error()))
            or (known.HasField("debugged") and known.debugged != (machine.debugger is not None))
            or (known.HasField("sensitive_instructions") and known.sensitive_instructions != self._sensitive())
            or (known.HasField("neglected") and known.neglected != machine.neglected)
        )

    def _wait_status(self, connection: _Connection, id_: int, request: control_pb2.WaitStatus) -> None:
        if self._differs(request):
            self._answer(connection, id_, status=self._status())
        else:
            connection.waits_for = (id_, request)

    def _power_button(self, connection: _Connection, id_: int, request: control_pb2.PowerButton) -> None:
        def press() -> None:
            if not self._machine.power_button():  # nobody in there listens: there is nothing to wait for
                raise HvdError("CAPABILITY_MISSING", backend=self._machine.spec.backend, capability="stop")

        self._in_vcpu(connection, id_, press)

    def _kill(self, connection: _Connection, id_: int, request: control_pb2.Kill) -> None:
        self._answer(connection, id_, done=control_pb2.Done())
        self._kill_machine()

    def _save_snapshot(self, connection: _Connection, id_: int, request: control_pb2.SaveSnapshot) -> None:
        from hvd.runner.saving import save_snapshot  # most guests never are

        def done(saved: control_pb2.SnapshotSaved | None, error: HvdError | None) -> None:
            result: dict[str, Any] = {"snapshot_saved": saved} if error is None else {"error": _error(error)}
            self._post(lambda: self._answer(connection, id_, **result))

        save_snapshot(self._machine, Path(request.path), request.about, done)

    def _get_census(self, connection: _Connection, id_: int, request: control_pb2.GetCensus) -> None:
        if self._machine.vcpu.rewrites:
            self._get_rewritten(connection, id_, request)
            return
        from hvd.runner import census  # most guests are never asked

        def done(found: Any, hits: dict[int, int], error: HvdError | None) -> None:
            result = {"error": _error(error)} if error is not None else {"census": census.message(found, hits)}
            self._post(lambda: self._answer(connection, id_, **result))

        census.request(self._machine, request.count_ns, done)

    def _get_rewritten(self, connection: _Connection, id_: int, request: control_pb2.GetCensus) -> None:
        from hvd.runner import rewritten

        def done(found: Any, error: HvdError | None) -> None:
            result = {"error": _error(error)} if error is not None else {"rewritten": rewritten.message(found, bool(request.count_ns))}
            self._post(lambda: self._answer(connection, id_, **result))

        rewritten.request(self._machine, request.count_ns, done)

    def _read_memory(self, connection: _Connection, id_: int, request: control_pb2.ReadMemory) -> None:
        address, length, virtual = request.address, request.length, request.virtual
        self._in_vcpu(
            connection,
            id_,
            lambda: self._machine.read_memory(address, length, virtual),
            lambda data: {"memory_data": control_pb2.MemoryData(address=address, data=data)},
        )

    def _write_memory(self, connection: _Connection, id_: int, request: control_pb2.WriteMemory) -> None:
        self._in_vcpu(
            connection, id_, lambda: self._machine.write_memory(request.address, request.data, request.virtual)
        )

    def _translate_address(self, connection: _Connection, id_: int, request: control_pb2.TranslateAddress) -> None:
        self._in_vcpu(
            connection,
            id_,
            lambda: (self._machine.translate(request.address), self._machine.vcpu.shadows(request.address)),
            lambda found: {"address_translation": self._translation(*found)},
        )

    def _translation(self, found: Translation, shadows: Sequence[Shadow]) -> inspect_pb2.AddressTranslation:
        answer = inspect_pb2.AddressTranslation(
            virtual_address=found.virtual_address,
            writable=found.writable,
            user=found.user,
            executable=found.executable,
            page_bytes=found.page_bytes,
            paging_mode=found.mode,
            fault=found.fault,
        )
        for entry in found.entries:
            answer.entries.add(level=entry.level, address=entry.address, value=entry.value)
        for page in shadows:
            answer.shadows.add(
                view=page.view, host_address=page.host_address, mapped=page.mapped, readable=page.readable, writable=page.writable,
                executable=page.executable, host_offset=page.file_offset,
            )  # fmt: skip
        if found.physical_address is not None:
            answer.physical_address = found.physical_address
            with contextlib.suppress(HvdError):  # mapped, but not to RAM: there is no offset
                answer.host_offset = self._machine.memory.file_offset(found.physical_address)
        return answer

    def _get_registers(self, connection: _Connection, id_: int, request: control_pb2.GetRegisters) -> None:
        if request.vcpu != 0:
            raise HvdError("REQUEST_INVALID", problem=f"the guest has no vcpu {request.vcpu}", remedy="it has vcpu 0")
        self._in_vcpu(connection, id_, lambda: self._machine.vcpu.registers(), _registers)

    def _resize_console(self, connection: _Connection, id_: int, request: control_pb2.ResizeConsole) -> None:
        for name, value in (("rows", request.rows), ("columns", request.columns)):
            if value > LARGEST_CONSOLE:
                remedy = f"use at most {LARGEST_CONSOLE}"
                raise HvdError("FIELD_INVALID", field=name, value=value, problem="too large", remedy=remedy)
        self._machine.console_size = (request.rows, request.columns)
        self._machine.kick()  # the virtio console tells its guest
        self._answer(connection, id_, done=control_pb2.Done())

    def _type_keys(self, connection: _Connection, id_: int, request: control_pb2.TypeKeys) -> None:
        strokes: list[Stroke] = [tuple(stroke.keys) for stroke in request.strokes]
        for stroke in strokes:
            if unknown := [key for key in stroke if key not in KEYS]:
                problem = "there is no such key"
                raise HvdError("FIELD_INVALID", field="key", value=unknown[0], problem=problem, remedy="update the daemon")
        self._type(connection, id_, strokes)

    def _type(self, connection: _Connection, id_: int, strokes: list[Stroke]) -> None:
        def done(taken: Any, error: HvdError | None) -> None:
            self._post(lambda: answer(taken, error))

        def answer(taken: int, error: HvdError | None) -> None:
            if error is not None:
                self._answer(connection, id_, error=_error(error))
            elif taken or not strokes:
                self._answer(connection, id_, keys_typed=control_pb2.KeysTyped(strokes=taken))
            elif not connection.closed:
                self._typists[connection] = (id_, strokes)

        self._machine.call(lambda: self._machine.device(Keyboard).type(strokes), done)

    def _retry_typists(self) -> None:
        typists, self._typists = self._typists, {}
        for connection, (id_, strokes) in typists.items():
            self._type(connection, id_, strokes)


def _error(error: HvdError) -> control_pb2.Error:
    return control_pb2.Error(reason=error.reason, metadata=error.metadata)


def screen_message(image: ScreenImage) -> guest_pb2.Screen:
    """The API's form."""
    screen = guest_pb2.Screen(
        columns=image.columns, rows=image.rows, cells=image.cells, palette=image.palette, note=image.note
    )
    if image.cursor is not None:
        screen.cursor_row, screen.cursor_column = image.cursor
    return screen


def _memory_map(regions: list[Region]) -> dict[str, Any]:
    answer = inspect_pb2.MemoryMap()
    for region in regions:
        answer.regions.add(
            start=region.start,
            length=region.length,
            kind=region.kind.value,
            owner=region.owner,
            file_offset=region.file_offset,
        )
    return {"memory_map": answer}


def _registers(values: dict[str, int]) -> dict[str, Any]:
    """Hidden parts (`cs.base`, `gdtr.limit`) join the register they belong to."""
    answer = inspect_pb2.Registers()
    by_name: dict[str, inspect_pb2.Register] = {}
    for name, value in values.items():
        register, _, part = name.partition(".")
        if register not in by_name:
            by_name[register] = answer.registers.add(name=register)
        if part in ("base", "limit"):
            setattr(by_name[register], part, value)
        elif not part:
            by_name[register].value = value
    if not values["cr0"] & CR0_PE:
        answer.mode = "real"
    else:
        answer.mode = "long" if values["efer"] & EFER_LMA else "protected"
        answer.privilege_level = values["cs"] & 3
    return {"registers": answer}
