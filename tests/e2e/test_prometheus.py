"""A real Prometheus scrapes a daemon with a guest of every backend: what its query API says is what hvctl shows."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hvctl.sdk import Client
from prometheus import Prometheus, dashboard_queries, documented, tool
from prometheus_client.parser import text_string_to_metric_families
from real_daemon import GUESTS, RealDaemon

# Backend -> a kernel for it that goes on for ever and crosses.
KERNELS = {"paravirt": "ticker.pv.elf"}
KERNEL = "ticker.elf"
BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="module")
def guests(shared_daemon: RealDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Backend -> its guest, of all that run here."""
    tool("prometheus")
    found = {}
    for backend in shared_daemon.ok("backends", "-o", "json").json["backends"]:
        name = backend["name"].removeprefix("backends/")
        kernel = GUESTS / KERNELS.get(name, KERNEL)
        if not backend["available"]:
            continue
        if "container" in backend["capabilities"]:
            if not BUSYBOX.exists():
                continue
            root = tmp_path_factory.mktemp("root")
            (root / "bin").mkdir()
            shutil.copy2(BUSYBOX, root / "bin" / "sh")
            root.chmod(0o755)
            shared_daemon.ok("image", "import", "box", str(root))
            shared_daemon.ok("run", "-d", "--name", name, "--image", "box", "--", "sh", "-c", "while :; do :; done")
        else:
            with shared_daemon.client() as client:
                client.run_guest(name=name, backend=name, memory_bytes=8 << 20, kernel=kernel)
        found[name] = name
    assert "emulation" in found
    yield found
    shared_daemon.clear()


@pytest.fixture(scope="module")
def prometheus(shared_daemon: RealDaemon, guests: dict[str, str]) -> Iterator[Prometheus]:
    with Prometheus(urlsplit(shared_daemon.metrics_url()).netloc) as running:
        # All of them tick: they cross.
        ticking = guests.keys() - {"container"}
        running.wait(lambda: _crossed(running).keys() >= ticking and len(running.query("hvd_guest_info")) == len(guests), "not all guests are there")
        yield running


def test_its_values_are_those_that_hvctl_shows(shared_daemon: RealDaemon, guests: dict[str, str], prometheus: Prometheus) -> None:
    shared_daemon.ok("pause", *guests)
    listed = {guest["name"].removeprefix("guests/"): guest for guest in shared_daemon.ok("list", "-o", "json").json["guests"]}
    assert {guest["state"] for guest in listed.values()} == {"PAUSED"}
    stats = {row["name"].removeprefix("guests/"): row for row in shared_daemon.ok("stats", "--count", "1", "-o", "json").json["stats"]}
    states = 'sum by (backend) (hvd_guests{state="PAUSED"})'
    prometheus.wait(lambda: prometheus.by("backend", states) == dict.fromkeys(guests, 1.0), "the guests are not paused there")
    # The scrape after that is of guests that stood still.
    expected = {name: float(row["exits"]) for name, row in stats.items() if int(row["exits"])}
    prometheus.wait(lambda: _crossed(prometheus) == expected, f"{_crossed(prometheus)} crossings, not {expected}")
    assert expected.keys() == guests.keys() - {"container"}
    limits = {name: float(row["memory_limit_bytes"]) for name, row in stats.items() if int(row["memory_limit_bytes"])}
    assert prometheus.by("guest", "hvd_guest_memory_limit_bytes") == limits
    uids = {dict(labels)["guest"]: dict(labels)["uid"] for labels in prometheus.query("hvd_guest_info")}
    assert uids == {name: guest["uid"] for name, guest in listed.items()}
    for name, cpu in prometheus.by("guest", "sum by (guest) (hvd_guest_cpu_seconds_total)").items():
        assert 0 < cpu == pytest.approx(stats[name]["cpu_seconds"], abs=0.1)
    with Client(shared_daemon.endpoint) as client:
        reasons = {row.reason: float(row.count) for row in client.summarize_trace(name="guests/emulation").rows if row.count}
    exits = prometheus.by("reason", 'hvd_guest_exits_total{guest="emulation"}')
    assert {reason: count for reason, count in exits.items() if count} == reasons
    shared_daemon.ok("resume", *guests)


def _crossed(prometheus: Prometheus) -> dict[str, float]:
    return prometheus.by("guest", "sum by (guest) (hvd_guest_exits_total) > 0")


def test_the_rules_and_the_dashboard_work_on_it(prometheus: Prometheus) -> None:
    overhead = "guest:hvd_guest_overhead:ratio_rate5m"
    prometheus.wait(lambda: prometheus.query(overhead), "the rules have no result")
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    for query in dashboard_queries():
        prometheus.query(query)
    assert not [rule["name"] for rule in prometheus.rules() if rule["type"] == "alerting" and rule["state"] == "firing"]


def test_every_series_is_documented(shared_daemon: RealDaemon, guests: dict[str, str]) -> None:
    with urllib.request.urlopen(shared_daemon.metrics_url(), timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    assert {sample.name for family in families for sample in family.samples} <= documented() | {"hvd_operation_duration_seconds_created"}


def test_a_deleted_guests_series_end_there_too(shared_daemon: RealDaemon, guests: dict[str, str], prometheus: Prometheus) -> None:
    shared_daemon.ok("delete", "--force", *guests)
    prometheus.wait(lambda: not prometheus.query('{__name__=~"hvd_.*",guest!=""}'), "series of deleted guests are left")
    # What is counted over all guests there were stays.
    assert prometheus.query('hvd_exit_handling_seconds_count{backend="emulation"}')
