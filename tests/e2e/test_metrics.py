"""The same figures three ways: Prometheus' page, `hvctl metrics`, MetricsService; as promtool and a parser read them."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request

import pytest
from hvctl.sdk import Client
from prometheus_client.parser import text_string_to_metric_families
from real_daemon import ROOT, RealDaemon

# Where deploy/packages.sh puts promtool when it is not installed.
TOOLS = ROOT / "build" / "tools" / "usr" / "bin"
# What goes on while a guest stands still: time, and what the daemon counts of itself.
MOVING = ("hvd_guest_cpu_seconds", "hvd_guest_halted_seconds", "hvd_guest_memory_resident_bytes")

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of_guest(series: Series, guest: str) -> Series:
    return {key: value for key, value in series.items() if ("guest", guest) in key[1] and not key[0].startswith(MOVING)}


def page(daemon: RealDaemon) -> str:
    with urllib.request.urlopen(daemon.metrics_url(), timeout=30) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return str(response.read().decode())


def test_promtool_finds_nothing_to_complain_about(daemon: RealDaemon) -> None:
    promtool = shutil.which("promtool") or shutil.which("promtool", path=str(TOOLS))
    if promtool is None:
        pytest.skip("promtool is missing: `make setup` fetches it (Debian: apt install prometheus)")
    daemon.run("echo.elf")
    daemon.run("hypercalls.elf", name="ended")
    daemon.wait("ended")
    checked = subprocess.run([promtool, "check", "metrics"], input=page(daemon), capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0 and not checked.stdout + checked.stderr, checked


def test_three_ways_one_truth(daemon: RealDaemon) -> None:
    name = daemon.run("ticker.elf")
    daemon.wait_logs(name, "tick 1")
    daemon.ok("pause", name)
    by_http = of_guest(parsed(page(daemon)), name)
    by_hvctl = of_guest(parsed(daemon.ok("metrics", name).stdout), name)
    assert by_http == by_hvctl
    with Client(daemon.endpoint) as client:
        stats = next(iter(client.watch_stats(names=[f"guests/{name}"]))).stats[0]
        assert of_guest(parsed(client.get_metrics(names=[f"guests/{name}"], as_text=True).text), name) == by_http
    exits = {dict(labels)["reason"]: value for (series, labels), value in by_http.items() if series == "hvd_guest_exits_total"}
    assert sum(exits.values()) == stats.exits
    summary = {row["reason"]: float(row["count"]) for row in daemon.ok("trace", "summary", name, "-o", "json").json["rows"]}
    assert {reason: count for reason, count in exits.items() if count} == {reason: count for reason, count in summary.items() if count}
    assert exits["interrupt"] > 0 < exits["halt"]


def test_a_guests_series_go_with_it(daemon: RealDaemon) -> None:
    name = daemon.run("echo.elf")
    assert of_guest(parsed(page(daemon)), name)
    daemon.ok("delete", "--force", name)
    assert f'guest="{name}"' not in page(daemon)
    assert daemon.hvctl("metrics", name).returncode == 3


def test_guests_are_counted_by_state(daemon: RealDaemon) -> None:
    def count(state: str) -> float:
        return parsed(page(daemon)).get(("hvd_guests", frozenset({("backend", "emulation"), ("state", state)})), 0)

    before = {state: count(state) for state in ("RUNNING", "PAUSED", "STOPPED")}
    name = daemon.run("echo.elf")
    assert count("RUNNING") == before["RUNNING"] + 1
    daemon.ok("pause", name)
    assert (count("RUNNING"), count("PAUSED")) == (before["RUNNING"], before["PAUSED"] + 1)
    daemon.ok("kill", name)
    assert (count("PAUSED"), count("STOPPED")) == (before["PAUSED"], before["STOPPED"] + 1)
