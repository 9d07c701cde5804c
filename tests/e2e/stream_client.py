"""A client of one streaming call, to be killed in the middle: `python stream_client.py ENDPOINT CALL GUEST [deaf]`.

Prints `ready` once the stream flows. A deaf one does not read any further.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from hvapi.v1 import guest_pb2, image_pb2
from hvctl.sdk import Client
from hvctl.sdk.calls import Calls
from hvctl.sdk.client import Console

UPLOAD_CHUNKS = 1024


def uploaded() -> Iterator[image_pb2.UploadBlobRequest]:
    yield image_pb2.UploadBlobRequest(
        info=image_pb2.BlobInfo(digest="sha256:" + "0" * 64, size_bytes=UPLOAD_CHUNKS << 20)
    )
    for number in range(UPLOAD_CHUNKS):
        if number == 10:
            print("ready", flush=True)
            threading.Event().wait()
        yield image_pb2.UploadBlobRequest(chunk=bytes(1 << 20))


def upload(client: Client, name: str) -> Iterable[Any]:
    call = Calls.__dict__["_upload_blob"]
    invoke = client.channel.stream_unary(
        call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
    )
    return [invoke(uploaded())]


def wait(client: Client, name: str) -> Iterable[Any]:
    print("ready", flush=True)
    return [client.wait_guest(name=name, timeout=1000)]


def console(client: Client, name: str) -> Iterable[Any]:
    attached = Console(client, guest_pb2.AttachConsoleSetup(name=name, replay_bytes=4096), None)
    attached.write(b"x" * 100)
    return attached.frames()


CALLS = {
    "AttachConsole": console,
    "GetLogs": lambda client, name: client.get_logs(name=name, follow=True),
    "WatchGuests": lambda client, name: client.watch_guests(),
    "StreamTrace": lambda client, name: client.stream_trace(names=[name]),
    "ReadMemory": lambda client, name: client.read_memory(name=name, length=60 << 20),
    "WatchStats": lambda client, name: client.watch_stats(),
    "BuildImage": lambda client, name: client.build_image(recipe="linux", force=True),
    "UploadBlob": upload,
    "WaitGuest": wait,
}


def main() -> None:
    endpoint, call, name, *deaf = sys.argv[1:]
    with Client(endpoint) as client:
        for number, _ in enumerate(CALLS[call](client, name)):
            if number == 0:
                print("ready", flush=True)
            if deaf:
                threading.Event().wait()


if __name__ == "__main__":
    main()
