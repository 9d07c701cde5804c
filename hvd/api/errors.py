"""Errors on the wire: HvdError becomes a google.rpc.Status with ErrorInfo (AIP-193), everything else INTERNAL with a
traceback in the log.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import grpc
import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hvd.errors import DOMAIN, HvdError
from hvd.host_errors import known

log = structlog.get_logger()

# ErrorInfo's values travel in HTTP/2 trailers, of which a client takes 8 KiB: a value longer than this is cut.
_MOST_VALUE = 1000
_SECONDS = re.compile(r"\d{1,6}(\.\d{1,6})?")


def to_status(error: HvdError) -> status_pb2.Status:
    """The error as google.rpc.Status: ErrorInfo has the reason and every variable part, Help the next step,
    RetryInfo how long to wait where waiting helps (metadata retry_seconds)."""
    metadata = {key: value[:_MOST_VALUE] for key, value in error.metadata.items()}
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=str(error)[: 2 * _MOST_VALUE])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.help:
        link = error_details_pb2.Help.Link(description=error.help[:_MOST_VALUE])
        status.details.add().Pack(error_details_pb2.Help(links=[link]))
    if seconds := _SECONDS.fullmatch(error.metadata.get("retry_seconds", "")):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(1, round(float(seconds[0]) * 1000)))
        status.details.add().Pack(retry)
    return status


@functools.cache
def _status_code(number: int) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == number)


def as_hvd_error(error: Exception, method: str) -> HvdError:
    """What the client is told of any exception; one that nobody expected is logged."""
    found = known(error)
    if found.reason == "INTERNAL" and found is not error:
        log.error("internal error", method=method, exc_info=error)
    return found


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: HvdError) -> None:
    """End the call with this error; always raises."""
    status = to_status(error)
    trailers = rpc_status.to_status(status).trailing_metadata
    await context.abort(_status_code(status.code), status.message, trailers)
