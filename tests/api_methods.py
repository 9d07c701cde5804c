"""Every method of the API, out of its descriptors: tests that go through all of them forget none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from hvapi.v1 import guest_pb2, image_pb2, inspect_pb2, metrics_pb2, network_pb2, system_pb2, trace_pb2, volume_pb2

LOADED = (guest_pb2, image_pb2, inspect_pb2, metrics_pb2, network_pb2, system_pb2, trace_pb2, volume_pb2)


@dataclass(frozen=True)
class Method:
    service: str
    name: str
    client_streams: bool
    server_streams: bool
    request: Any  # the class of its messages
    response: Any

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    def __str__(self) -> str:
        return self.name


def methods(services: Iterable[str]) -> list[Method]:
    found = []
    for service in services:
        descriptor: Any = descriptor_pool.Default().FindServiceByName(service)
        for method in descriptor.methods:
            request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
            found.append(Method(service, method.name, method.client_streaming, method.server_streaming, request, response))
    return found
