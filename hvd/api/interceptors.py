"""What every call passes: role, errors, timing, a line in the log. One interceptor per server, since a server has one
role.

Handlers are wrapped once per method and kept, so a call pays for one coroutine more and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from hvd.api import errors, roles
from hvd.api.roles import Role
from hvd.errors import HvdError

log = structlog.get_logger()

# Called at the end of each call with method, name of the status code, and seconds:
# hvd_operation_duration_seconds{method,code}.
Observer = Callable[[str, str, float], None]
_Context = grpc.aio.ServicerContext[Any, Any]

# The permissions of the call that is being served.
granted: contextvars.ContextVar[frozenset[roles.Permission]] = contextvars.ContextVar("granted", default=frozenset())


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

    def __init__(self, role: Role | None, streams: Streams, observe: Observer = nobody) -> None:
        self._role = role
        self._streams = streams
        self._observe = observe
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
            with self._call(method) as call:
                try:
                    self._admit(method, context)
                    return await behaviour(_sound(request), context)
                except Exception as error:  # noqa: BLE001 - told to the client, logged by errors.py
                    await call.fail(context, error)

        return answer

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def stream(request: Any, context: _Context) -> None:
            with self._call(method) as call:
                try:
                    with self._streams.joined():
                        self._admit(method, context)
                        result = behaviour(_sound(request), context)
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

    def _admit(self, method: str, context: _Context) -> None:
        role = self._role or roles.role_of_certificate(context.auth_context())
        permissions = roles.GRANTS[role]
        if roles.permission_of(method) not in permissions:
            raise HvdError("ROLE_FORBIDDEN", role=role, method=method.rpartition("/")[2])
        granted.set(permissions)

    def _call(self, method: str) -> _Call:
        return _Call(method, self._observe)


def _decoder(method: str, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A damaged message becomes the error to be raised: grpc would answer UNKNOWN, with a traceback in our log."""
    kind = method.rpartition("/")[2]

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            remedy = "send what proto/hvd/v1 says; client and daemon may differ in version"
            return HvdError("REQUEST_INVALID", problem=f"a damaged message to {kind}: {error}", remedy=remedy)

    return decoded


def _sound(request: Any) -> Any:
    """The request, or the stream of them, without what could not be decoded. Raises HvdError REQUEST_INVALID."""
    if isinstance(request, HvdError):
        raise request
    return _sound_stream(request) if isinstance(request, AsyncIterable) else request


async def _sound_stream(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _sound(request)


async def _send(context: _Context, response: Any) -> None:
    """Raises CancelledError when the client has gone: a killed one's connection breaks before grpc ends the call."""
    try:
        await context.write(response)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


class _Call:
    """One call, from its begin to its line in the log."""

    def __init__(self, method: str, observe: Observer) -> None:
        self._method = method
        self._observe = observe
        self._began = time.perf_counter()
        self._error: HvdError | None = None

    def __enter__(self) -> _Call:
        return self

    async def fail(self, context: _Context, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        self._error = errors.as_hvd_error(error, self._method)
        await errors.abort(context, self._error)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        seconds = time.perf_counter() - self._began
        code = self._error.code if self._error else "OK" if kind is None else "CANCELLED"
        self._observe(self._method, code, seconds)
        fields = {"reason": self._error.reason, "problem": self._error.message} if self._error else {}
        # Reading is not worth a line above debug; changing something is.
        level = log.debug if roles.permission_of(self._method) is roles.Permission.VIEW else log.info
        level("call", method=self._method.rpartition("/")[2], code=code, ms=round(seconds * 1000, 2), **fields)


def require(permission: roles.Permission, method: str) -> None:
    """For a method whose permission depends on its request. Raises HvdError ROLE_FORBIDDEN."""
    held = granted.get()
    if permission not in held:
        role = next((role for role, grants in roles.GRANTS.items() if grants == held), Role.VIEW)
        raise HvdError("ROLE_FORBIDDEN", role=role, method=method)
