"""The Python SDK: one client for synchronous code, one for asyncio, with the same method names.

    from hvctl.sdk import Client

    with Client() as client:
        guest = client.run_guest(kernel="kernel.elf", memory_bytes=16 << 20)
        guest = client.wait_guest(name=guest.name)
        print(guest.reason, guest.exit_code)

Importing this package is cheap: grpc and protobuf come with the first name that needs them. docs/sdk.md describes it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvctl.sdk.aio import AsyncClient, AsyncConsole, AsyncStream
    from hvctl.sdk.client import Client, Console
    from hvctl.sdk.debug import AsyncDebugSession, DebugSession
    from hvctl.sdk.endpoint import Endpoint, default_endpoint
    from hvctl.sdk.errors import HvctlError
    from hvctl.sdk.execution import AsyncExecution, Execution
    from hvctl.sdk.guests import GuestSpec
    from hvctl.sdk.names import guest_id, guest_name, image_id, image_name
    from hvctl.sdk.streams import Stream
    from hvctl.sdk.trace import TraceDecoder, TraceEvent

_HOME = {
    "AsyncClient": "aio",
    "AsyncConsole": "aio",
    "AsyncStream": "aio",
    "Client": "client",
    "Console": "client",
    "AsyncDebugSession": "debug",
    "AsyncExecution": "execution",
    "Execution": "execution",
    "DebugSession": "debug",
    "Endpoint": "endpoint",
    "default_endpoint": "endpoint",
    "HvctlError": "errors",
    "GuestSpec": "guests",
    "guest_id": "names",
    "guest_name": "names",
    "image_id": "names",
    "image_name": "names",
    "Stream": "streams",
    "TraceDecoder": "trace",
    "TraceEvent": "trace",
}

__all__ = [
    "AsyncClient",
    "AsyncConsole",
    "AsyncDebugSession",
    "AsyncExecution",
    "AsyncStream",
    "Client",
    "Console",
    "DebugSession",
    "Endpoint",
    "Execution",
    "GuestSpec",
    "HvctlError",
    "Stream",
    "TraceDecoder",
    "TraceEvent",
    "default_endpoint",
    "guest_id",
    "guest_name",
    "image_id",
    "image_name",
]


def __getattr__(name: str) -> object:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
