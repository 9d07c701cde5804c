"""How much one client may ask for: calls a second, calls at a time, bytes in a message.

A client is a unix socket's role, since calls of one socket cannot be told apart, or a certificate's name. Who asks for more is refused
with RESOURCE_EXHAUSTED and the time to wait (google.rpc.RetryInfo), so that a flood on one socket leaves the others their share.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hvd.errors import HvdError

# So many seconds' worth of calls may come at once.
BURST_SECONDS = 2.0
# Clients that are remembered; certificates may be many.
MOST_CLIENTS = 1024
# A client that has too many calls under way is told to come again after this.
BUSY_SECONDS = 1.0
# What grpc takes at all; it refuses more before it has read it, without our details.
RECEIVE_BYTES = 5 << 20
# Of a message that describes something, and of one that carries a piece of a file or memory.
MESSAGE_BYTES = 1 << 20
DATA_BYTES = 4 << 20
_DATA = frozenset(
    f"/hvd.v1.{method}"
    for method in (
        "ImageService/UploadBlob", "GuestService/CopyIn", "GuestService/ImportSnapshot", "GuestService/ExecGuest",
        "GuestService/AttachConsole", "InspectService/WriteMemory", "InspectService/Debug",
    )
)  # fmt: skip


def message_bytes(method: str) -> int:
    """The most that one message to this method may have."""
    return DATA_BYTES if method in _DATA else MESSAGE_BYTES


@dataclass(slots=True)
class _Client:
    tokens: float
    at: float
    calls: int = 0


class CallLimits:
    """rate: calls a second; most_calls: at a time, streams included; each of one client."""

    def __init__(self, rate: float, most_calls: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._most = rate, rate * BURST_SECONDS, most_calls
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def begin(self, name: str) -> _Client:
        """A call; it counts until end() is told of what this gave. Raises HvdError RATE_LIMITED, TOO_MANY_CALLS."""
        client = self._client(name)
        now = self._clock()
        client.tokens = min(self._burst, client.tokens + (now - client.at) * self._rate)
        client.at = now
        if client.calls >= self._most:
            raise HvdError("TOO_MANY_CALLS", client=name, limit=self._most, retry_seconds=BUSY_SECONDS)
        if client.tokens < 1:
            wait = (1 - client.tokens) / self._rate
            raise HvdError("RATE_LIMITED", client=name, rate=f"{self._rate:g}", retry_seconds=f"{wait:.3f}")
        client.tokens -= 1
        client.calls += 1
        return client

    def end(self, client: _Client) -> None:
        client.calls -= 1

    def _client(self, name: str) -> _Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(self._burst, self._clock())
            if len(self._clients) > MOST_CLIENTS:
                self._forget()
        self._clients.move_to_end(name)
        return client

    def _forget(self) -> None:
        """The one that has been silent longest; never one with calls under way."""
        idle = next((name for name, client in self._clients.items() if not client.calls), None)
        if idle is not None:
            del self._clients[idle]
