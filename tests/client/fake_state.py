"""What the services of the client tests' daemon share: what it was asked, its guests, how it refuses."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from hvapi.v1 import guest_pb2


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


class FakeState:
    def __init__(self) -> None:
        self.guests: dict[str, guest_pb2.Guest] = {}
        self.calls: list[tuple[str, Any]] = []
        self.unavailable_answers = 0  # so many calls fail with UNAVAILABLE first
        self.stopping = False

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def find(self, name: str, context: grpc.ServicerContext) -> guest_pb2.Guest:
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
