"""Streams of responses: how they are begun again when the daemon was away for a moment, and what keeps one from waiting for ever.

Streams are repeated here and not by gRPC's retry policy, which loses them: a stream whose connection breaks just before its first response
may never be heard of again (gRPC 1.85, daemon killed under load).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from hvctl.sdk.calls import BACKOFF_SECONDS, LONGEST_BACKOFF, MOST_ATTEMPTS, R
from hvctl.sdk.errors import HvctlError, from_rpc

if TYPE_CHECKING:
    from hvctl.sdk.endpoint import Endpoint

# Begins the call; it may take so many seconds, None = for ever.
Begin = Callable[[float | None], Any]


_AWAY = frozenset({"DAEMON_UNREACHABLE", "SHUTTING_DOWN"})


class Attempts:
    """Of a stream: only before its first response, since what came cannot come twice, and only when the daemon was not there, or going."""

    def __init__(self, begin: Begin, timeout: float | None, idempotent: bool) -> None:
        self._begin = begin
        self._end = None if timeout is None else time.monotonic() + timeout
        self._left = MOST_ATTEMPTS - 1 if idempotent else 0
        self._delay = BACKOFF_SECONDS

    def begin(self) -> Any:
        return self._begin(None if self._end is None else max(0.0, self._end - time.monotonic()))

    def begun(self) -> None:
        """A response has come."""
        self._left = 0

    def delay_after(self, error: HvctlError) -> float | None:
        """Seconds until the next; None = there is none."""
        if self._left == 0 or error.reason not in _AWAY:
            return None
        self._left -= 1
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_BACKOFF)
        return delay


class Stream(Iterator[R]):
    """Responses as they come; `with` or cancel() ends it. Iteration raises HvctlError."""

    def __init__(
        self, call: Any, endpoint: Endpoint, method: str, attempts: Attempts | None = None, longest_wait: float | None = None
    ) -> None:
        """longest_wait: seconds without a response, while one is waited for, after which it ends with TIMED_OUT; None = for ever."""
        self._call, self._endpoint, self._method = call, endpoint, method
        self._attempts = attempts
        self._cancelled = threading.Event()
        self.longest_wait = longest_wait
        self.waits_since: float | None = None
        self.is_late = False
        if longest_wait is not None:
            _WATCH.add(self)

    def __next__(self) -> R:
        while True:
            self.waits_since = time.monotonic()
            try:
                response: R = next(self._call)
            except StopIteration:
                _WATCH.discard(self)
                raise
            except grpc.RpcError as error:
                self._again_after(error)
                continue
            finally:
                self.waits_since = None
            if self._attempts is not None:
                self._attempts.begun()
            return response

    def _again_after(self, error: grpc.RpcError) -> None:
        """Returns when it was begun again. Raises StopIteration, HvctlError."""
        failure = from_rpc(error, self._endpoint, self._method)
        delay = self._attempts.delay_after(failure) if self._attempts is not None else None
        if not self._cancelled.is_set() and not self.is_late and delay is not None and self._attempts is not None:
            self.waits_since = None
            if not self._cancelled.wait(delay):
                self._call = self._attempts.begin()
                if not self._cancelled.is_set():  # by another thread, between the two
                    return
                self._call.cancel()
        _WATCH.discard(self)
        if self._cancelled.is_set():
            raise StopIteration from None
        if self.is_late:
            raise HvctlError.local("TIMED_OUT", call=self._method) from error
        raise failure from error

    def give_up(self) -> None:
        """It has waited for too long."""
        self.is_late = True
        self._call.cancel()

    def cancel(self) -> None:
        """End it; from any thread. The iteration ends without an error."""
        self._cancelled.set()
        _WATCH.discard(self)
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class _Watch:
    """Gives up the streams that wait for too long: one thread for all, which is there while such streams are. grpc has deadlines for whole
    calls only, and a download may take as long as it takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, stream: Stream[Any]) -> None:
        with self._changed:
            self._streams.add(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hvctl-streams", daemon=True)
                self._thread.start()
            else:
                self._changed.notify_all()

    def discard(self, stream: Stream[Any]) -> None:
        with self._changed:
            self._streams.discard(stream)

    def _run(self) -> None:
        while True:
            with self._changed:
                streams = list(self._streams)
                if not streams:
                    self._thread = None
                    return
            now, pause = time.monotonic(), 60.0
            for stream in streams:
                since, most = stream.waits_since, stream.longest_wait
                if most is None or stream.is_late:
                    continue
                left = most if since is None else since + most - now
                pause = min(pause, left)
                if left <= 0:
                    stream.give_up()
            del streams, stream  # a stream that nobody has any more goes, and is no reason to stay
            with self._changed:
                self._changed.wait(max(pause, 0.05))


_WATCH = _Watch()
