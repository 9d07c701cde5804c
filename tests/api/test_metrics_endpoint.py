"""Metrics over HTTP."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_guests import Host, page, series_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from hvd.errors import HvdError
from hvd.metrics.endpoint import MetricsEndpoint
from hvd.trace.points import BY_NAME
from tests.api.promtool import check_with_promtool

PORT_OUT = BY_NAME["port-out"].id


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture
async def endpoint(host: Host) -> AsyncIterator[int]:
    served = MetricsEndpoint(host.metrics)
    yield await served.start("127.0.0.1:0")
    await served.close()


async def send(port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    raw = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(status.split()[1]), headers, body)


async def get(port: int, target: str = "/metrics", method: str = "GET", **headers: str) -> Answer:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return await send(port, ("\r\n".join(lines) + "\r\n\r\n").encode())


class TestEndpoint:
    async def test_text(self, host: Host, endpoint: int) -> None:
        host.add("a", page({PORT_OUT: (3, 0, {})}))
        answer = await get(endpoint)
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert series_of(answer.body.decode())['hvd_guest_exits_total{guest="a",reason="port-out"}'] == 3
        assert {family.name for family in text_string_to_metric_families(answer.body.decode())} > {"hvd_guest_exits"}
        check_with_promtool(answer.body)

    async def test_open_metrics_and_gzip_as_prometheus_asks(self, host: Host, endpoint: int) -> None:
        host.add("a", page({PORT_OUT: (3, 3000, {3: 3})}))
        answer = await get(
            endpoint,
            Accept="application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
            Accept_Encoding="gzip",
        )
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert answer.headers["content-encoding"] == "gzip"
        text = gzip.decompress(answer.body).decode()
        families = {family.name: family for family in parse_openmetrics(text)}
        assert families["hvd_guest_exits"].type == "counter"
        assert families["hvd_exit_handling_seconds"].type == "histogram"

    async def test_filter(self, host: Host, endpoint: int) -> None:
        for name in "abc":
            host.add(name, page({PORT_OUT: (3, 0, {})}))
        text = (await get(endpoint, "/metrics?guest=a&guest=guests/b")).body.decode()
        assert 'guest="a"' in text and 'guest="b"' in text and 'guest="c"' not in text and "hvd_build" not in text
        answer = await get(endpoint, "/metrics?guest=nobody")
        assert answer.status == 404 and b"nobody" in answer.body

    @pytest.mark.parametrize(
        ("request_line", "status"),
        [
            ("GET / HTTP/1.1", 200),
            ("GET /favicon.ico HTTP/1.1", 404),
            ("POST /metrics HTTP/1.1", 405),
            ("GET /metrics HTTP/2", 400),
            ("GET http://x/metrics HTTP/1.1", 400),
            ("garbage", 400),
            ("\x00\xff", 400),
            ("GET /metrics HTTP/1.0", 200),
        ],
    )
    async def test_requests(self, endpoint: int, request_line: str, status: int) -> None:
        assert (await send(endpoint, request_line.encode("latin-1") + b"\r\n\r\n")).status == status

    async def test_head(self, endpoint: int) -> None:
        answer = await get(endpoint, method="HEAD")
        assert answer.status == 200 and answer.body == b"" and int(answer.headers["content-length"]) > 0

    async def test_too_long_a_header(self, endpoint: int) -> None:
        assert (await get(endpoint, X=40_000 * "x")).status == 431

    async def test_silent_clients_do_no_harm(self, endpoint: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", endpoint) for _ in range(5)]
        assert (await get(endpoint)).status == 200
        for _, writer in silent:
            writer.close()
        assert (await get(endpoint)).status == 200

    async def test_a_port_that_is_taken(self, host: Host, endpoint: int) -> None:
        with pytest.raises(HvdError) as raised:
            await MetricsEndpoint(host.metrics).start(f"127.0.0.1:{endpoint}")
        assert raised.value.reason == "ENDPOINT_UNUSABLE"
