"""GET /metrics over HTTP, for Prometheus: a server of one page on the daemon's event loop.

    /metrics               all series
    /metrics?guest=a&guest=b    those of the named guests

Form (Prometheus text or OpenMetrics) and gzip are negotiated. One request a connection; it never asks a guest.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import structlog
from prometheus_client.exposition import choose_encoder

from hvd.errors import HvdError
from hvd.metrics.metrics import Metrics

MOST_HEADER_BYTES = 16 << 10
REQUEST_SECONDS = 10.0
# Each scrape at work holds its text: more than this many at a time are turned away.
MOST_CONNECTIONS = 32

log = structlog.get_logger()


@dataclass(slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class MetricsEndpoint:
    """Listens from start() to close()."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, listen: str) -> int:
        """listen: "host:port"; port 0 = any free one. The port. Raises HvdError ENDPOINT_UNUSABLE."""
        host, _, port = listen.rpartition(":")
        try:
            self._server = await asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=MOST_HEADER_BYTES)
        except OSError as error:
            raise HvdError(
                "ENDPOINT_UNUSABLE",
                endpoint=f"http://{listen}",
                problem=error,
                remedy="choose another --metrics-listen",
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > MOST_CONNECTIONS:
                _write(writer, _text(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"), False)
            else:
                async with asyncio.timeout(REQUEST_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.decode("latin-1").partition(" ")
                answer = await self._answer(method, rest)
                _write(writer, answer, method == "HEAD")
            async with asyncio.timeout(REQUEST_SECONDS):
                await writer.drain()
        except asyncio.LimitOverrunError:
            _write(writer, _text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too long a header"), False)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went, or says nothing: there is nobody to tell
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, method: str, rest: str) -> _Answer:
        request, _, lines = rest.partition("\r\n")
        target, _, protocol = request.rpartition(" ")
        if not protocol.startswith("HTTP/1.") or not target.startswith("/"):
            return _text(HTTPStatus.BAD_REQUEST, "no HTTP/1 request")
        if method not in ("GET", "HEAD"):
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", Allow="GET, HEAD")
        url = urlsplit(target)
        if url.path == "/":
            return _text(HTTPStatus.OK, "hvd: the metrics are at /metrics")
        if url.path != "/metrics":
            return _text(HTTPStatus.NOT_FOUND, "there is only /metrics")
        headers = {name.strip().lower(): value.strip() for name, _, value in map(_split, lines.split("\r\n"))}
        try:
            return await self._page(parse_qs(url.query).get("guest", []), headers)
        except HvdError as error:
            return _text(HTTPStatus.NOT_FOUND, str(error))
        except Exception:
            log.exception("metrics could not be gathered")
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the daemon's log has the traceback")

    async def _page(self, guests: list[str], headers: Mapping[str, str]) -> _Answer:
        snapshot = await self._metrics.snapshot(guests)
        encode, content_type = choose_encoder(headers.get("accept", ""))
        wants_gzip = any(
            coding.split(";")[0].strip() == "gzip" for coding in headers.get("accept-encoding", "").split(",")
        )

        def encoded() -> bytes:
            body = encode(snapshot)
            return gzip.compress(body, compresslevel=1) if wants_gzip else body

        answer = _Answer(HTTPStatus.OK, await asyncio.to_thread(encoded), {"Content-Type": content_type})
        if wants_gzip:
            answer.headers["Content-Encoding"] = "gzip"
        return answer


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _text(status: HTTPStatus, text: str, **headers: str) -> _Answer:
    return _Answer(status, f"{text}\n".encode(), {"Content-Type": "text/plain; charset=utf-8", **headers})


def _write(writer: asyncio.StreamWriter, answer: _Answer, head_only: bool) -> None:
    headers = {**answer.headers, "Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if not head_only:
        writer.write(answer.body)
