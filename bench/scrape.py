"""A scrape of /metrics with a thousand guests, beside the library that writes the text, with as many series and nothing to gather."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from bench.figure import Figure, alone, compared
from bench.lab import Lab
from hvd.metrics.endpoint import MetricsEndpoint
from hvd.trace.points import BY_NAME
from tests.fake_guests import Host, page

GUESTS: Final = 1000
# A guest of a Linux crosses for some ten.
USUAL_REASONS: Final = 12
PEER: Final = "prometheus_client, as many series in one gauge"


def measure(lab: Lab) -> Iterator[Figure]:
    numbers = sorted(point.id for point in BY_NAME.values())
    for reasons, what in ((numbers[:USUAL_REASONS], f"{USUAL_REASONS} reasons"), (numbers, "every reason there is")):
        host = Host(lab.new_directory("guests"))
        points = {number: (number, 1000, {3: number}) for number in reasons}
        for number in range(GUESTS):
            host.add(f"g{number}", page(points, run_ns=5, records=1), image="images/linux")
        lab.say(f"scrapes of {GUESTS} guests, {what}")
        own, beside, series = asyncio.run(_in_turns(host, lab.runs(5)))
        yield compared(f"scrape of {GUESTS} guests that have crossed for {what} ({series} series)", "s", own, beside, PEER)
    host.guests.clear()
    left = asyncio.run(_series(host))
    yield alone("the first scrape after all of them are deleted", "s", [left[1]], note=f"{left[0]} series are left, the daemon's own")


async def _in_turns(host: Host, runs: int) -> tuple[list[float], list[float], int]:
    own, beside, series = [], [], 0
    for turn in range(-1, runs):  # the first turn warms up
        series, seconds = await _series(host)
        registry = CollectorRegistry()
        gauge = Gauge("series", "As many.", ["guest", "reason"], registry=registry)
        for number in range(series):
            gauge.labels(f"g{number % GUESTS}", f"r{number // GUESTS}").set(number)
        began = time.perf_counter()
        generate_latest(registry)
        if turn >= 0:
            own.append(seconds)
            beside.append(time.perf_counter() - began)
    return own, beside, series


async def _series(host: Host) -> tuple[int, float]:
    """Series of the page, and seconds that it took, as Prometheus has it: over HTTP."""
    endpoint = MetricsEndpoint(host.metrics)
    port = await endpoint.start("127.0.0.1:0")
    try:
        began = time.perf_counter()
        text = await asyncio.to_thread(_fetch, f"http://127.0.0.1:{port}/metrics")
        return sum(not line.startswith(b"#") for line in text.splitlines()), time.perf_counter() - began
    finally:
        await endpoint.close()


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        return bytes(response.read())
