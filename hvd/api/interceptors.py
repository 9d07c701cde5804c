"""What every call passes: limits, role, errors, timing, a line in the log. One interceptor per server, since a server has one
role.

Handlers are wrapped once per method and kept, so a call pays for one coroutine more and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import random
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from hvd.api import audit, errors, roles
from hvd.api.audit import AuditLog, Peers
from hvd.api.limits import CallLimits, message_bytes
from hvd.api.roles import Role
from hvd.errors import HvdError

log = structlog.get_logger()

# Called at the end of each call with method, name of the status code, and seconds:
# hvd_operation_duration_seconds{method,code}.
Observer = Callable[[str, str, float], None]
_Context = grpc.aio.ServicerContext[Any, Any]

# Characters of what was wrong in the log: messages repeat what a client sent.
MOST_PROBLEM = 300
# https://www.w3.org/TR/trace-context: version, trace, parent, flags. A caller's own trace goes on in our log.
_TRACE_PARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

# The role of the call that is being served.
granted: contextvars.ContextVar[Role] = contextvars.ContextVar("granted", default=Role.VIEW)


def nobody(method: str, code: str, seconds: float) -> None:
    """An Observer that does not care."""


class Streams:
    """The streaming calls under way on all servers, so that the end of the daemon can be told to each of them."""

    def __init__(self) -> None:
        self.closing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def joined(self) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self.closing:
                raise HvdError("SHUTTING_DOWN") from None
            raise
        finally:
            self._tasks.discard(task)

    def close(self) -> None:
        """End them all with SHUTTING_DOWN."""
        self.closing = True
        for task in self._tasks:
            task.cancel()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """role: of the socket this server listens on; None = of each client's certificate."""

    def __init__(
        self,
        role: Role | None,
        streams: Streams,
        observe: Observer = nobody,
        limits: CallLimits | None = None,
        audit_log: AuditLog | None = None,
        sockets: Sequence[Path] = (),
        verbose: bool = True,
    ) -> None:
        """sockets: the paths on which this server listens, for the audit log. verbose: a line for calls that only look, too."""
        self._verbose = verbose
        self._role = role
        self._streams = streams
        self._observe = observe
        self._limits = limits
        self._audit = audit_log or AuditLog(None)
        self._peers = Peers(sockets)
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        method = handler_call_details.method
        if (known := self._wrapped.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # UNIMPLEMENTED; not kept, or a client could fill the memory with names
        self._wrapped[method] = wrapped = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        if not handler.response_streaming:
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            behaviour = self._answering(
                method, handler.stream_unary if handler.request_streaming else handler.unary_unary
            )
        else:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            behaviour = self._streaming(
                method, handler.stream_stream if handler.request_streaming else handler.unary_stream
            )
        decode = _decoder(method, handler.request_deserializer)
        return make(behaviour, decode, handler.response_serializer)

    def _answering(self, method: str, behaviour: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        async def answer(request: Any, context: _Context) -> Any:
            with self._call(method, request, context) as call:
                try:
                    self._admit(call)
                    return await behaviour(call.sound(request), context)
                except Exception as error:  # noqa: BLE001 - told to the client, logged by errors.py
                    await call.fail(context, error)

        return answer

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def stream(request: Any, context: _Context) -> None:
            with self._call(method, request, context) as call:
                try:
                    with self._streams.joined():
                        self._admit(call)
                        result = behaviour(call.sound(request), context)
                        if not hasattr(result, "__aiter__"):
                            await result  # writes by itself
                            return
                        # Closed here and now, not by the garbage collector: it holds sockets, files and trace rings.
                        async with contextlib.aclosing(result) as responses:
                            async for response in responses:
                                await _send(context, response)
                except Exception as error:  # noqa: BLE001 - told to the client, logged by errors.py
                    await call.fail(context, error)

        return stream

    def _admit(self, call: _Call) -> None:
        """Raises HvdError RATE_LIMITED, TOO_MANY_CALLS, ROLE_FORBIDDEN."""
        if self._limits is not None:
            client = self._limits.begin(call.client)
            call.at_end = functools.partial(self._limits.end, client)
        if (needed := roles.permission_of(call.method)) not in roles.GRANTS[call.role]:
            raise roles.forbidden(call.role, needed, call.method)
        granted.set(call.role)

    def _call(self, method: str, request: Any, context: _Context) -> _Call:
        if self._role is not None:
            role, client = self._role, f"socket {self._role}"
        else:
            identity = context.auth_context()
            role = roles.role_of_certificate(identity)
            client = f"certificate {roles.name_of_certificate(identity)}"
        return _Call(method, request, role, client, context, self._observe, self._audit, self._peers, self._verbose)


def _decoder(method: str, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A damaged or too large message becomes the error to be raised: grpc would answer UNKNOWN, with a traceback in our log."""
    kind = method.rpartition("/")[2]
    most = message_bytes(method)

    def decoded(data: bytes) -> Any:
        if len(data) > most:
            return HvdError("MESSAGE_TOO_LARGE", method=kind, size=len(data), most=most)
        try:
            return decode(data)
        except DecodeError as error:
            remedy = "send what proto/hvd/v1 says; client and daemon may differ in version"
            return HvdError("REQUEST_INVALID", problem=f"a damaged message to {kind}: {error}", remedy=remedy)

    return decoded


async def _send(context: _Context, response: Any) -> None:
    """Raises CancelledError when the client has gone: a killed one's connection breaks before grpc ends the call."""
    try:
        await context.write(response)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def _trace_id(context: _Context) -> str:
    """The caller's, or one of our own."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str) and (found := _TRACE_PARENT.fullmatch(value)):
            return found[1]
    return f"{random.getrandbits(128):032x}"


class _Call:
    """One call, from its begin to its line in the log."""

    def __init__(
        self,
        method: str,
        request: Any,
        role: Role,
        client: str,
        context: _Context,
        observe: Observer,
        audit_log: AuditLog,
        peers: Peers,
        verbose: bool,
    ) -> None:
        self.method, self.role, self.client = method, role, client
        self._observe = observe
        self._audit, self._peers = audit_log, peers
        self._verbose = verbose
        self._began = time.perf_counter()
        self._error: HvdError | None = None
        self._ended = False
        self._request = request if isinstance(request, Message) else None  # of a stream, its first
        self._who: dict[str, Any] = {}
        self.at_end: Callable[[], None] | None = None
        # Whatever else is logged on its behalf has it too.
        structlog.contextvars.bind_contextvars(trace_id=_trace_id(context))

    def __enter__(self) -> _Call:
        # Reading is not worth a line above debug; changing something, and seeing what is inside a guest, is.
        self._audited = roles.permission_of(self.method) is not roles.Permission.VIEW
        if self._audited:
            self._who = self._peers()  # now: it may hang up before the end
        return self

    def sound(self, request: Any) -> Any:
        """The request, or the stream of them, without what could not be decoded. Raises HvdError REQUEST_INVALID,
        MESSAGE_TOO_LARGE."""
        if isinstance(request, HvdError):
            raise request
        return self._sound_stream(request) if isinstance(request, AsyncIterable) else request

    async def _sound_stream(self, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if isinstance(request, HvdError):
                raise request
            if self._request is None:
                self._request = request
            yield request

    async def fail(self, context: _Context, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        self._error = errors.as_hvd_error(error, self.method)
        self._end(self._error.code)  # whoever is told of it finds it counted and written down
        await errors.abort(context, self._error)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if not self._ended:
            self._end("OK" if kind is None else "CANCELLED")

    def _end(self, code: str) -> None:
        self._ended = True
        if self.at_end is not None:
            self.at_end()
        seconds = time.perf_counter() - self._began
        self._observe(self.method, code, seconds)
        if not self._audited and not self._verbose:
            return
        fields: dict[str, Any] = {"method": self.method.rpartition("/")[2], "code": code, "ms": round(seconds * 1000, 2)}
        if self._error:
            fields |= {"reason": self._error.reason, "problem": self._error.message[:MOST_PROBLEM]}
        targets = audit.targets(self._request)
        if guest := next((name for name in targets if name.startswith("guests/")), None):
            fields["guest"] = guest
        if self._audited:
            about = {"role": str(self.role), "client": self.client, **self._who, "targets": targets}
            self._audit.write(fields | about)
        else:
            log.debug("call", **fields)


def require(permission: roles.Permission, method: str) -> None:
    """For a method whose permission depends on its request. Raises HvdError ROLE_FORBIDDEN."""
    role = granted.get()
    if permission not in roles.GRANTS[role]:
        raise roles.forbidden(role, permission, method)
