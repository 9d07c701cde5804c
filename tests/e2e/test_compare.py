"""`hvctl compare` on a real daemon: the same work in several places, and a command of a root file system that is the user's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from guest_images import is_built
from hvctl.compare.workloads import NANO, PROGRAMS
from real_daemon import GUESTS, RealDaemon

SECONDS = 900.0


@pytest.fixture(autouse=True)
def small_linux() -> None:
    if not is_built("linux-i386"):
        pytest.skip("the small Linux is not built: hvctl image build linux --arch i386")


def is_available(daemon: RealDaemon, backend: str) -> bool:
    return any(each["name"] == f"backends/{backend}" and each["available"] for each in daemon.ok("backends", "-o", "json").json["backends"])


@pytest.mark.slow
def test_the_same_work_everywhere(daemon: RealDaemon, tmp_path: Path) -> None:
    wanted = [name for name in ("emulation", "container", "trap") if is_available(daemon, name)]
    words = [word for name in wanted for word in ("--backend", name)]
    page = tmp_path / "page.html"
    document = daemon.ok("compare", "--quick", *words, "--html", str(page), "-o", "json", timeout=SECONDS).json
    results = {(each["name"], result["place"]): result for each in document["workloads"] for result in each["results"]}
    assert {place["name"] for place in document["places"]} == {"native", "qemu-tcg", *wanted}
    for workload in PROGRAMS:
        for place in ("native", "emulation", *({"container"} & set(wanted))):
            result = results[workload.name, place]
            assert result["samples"] and result["ratio_least"] <= result["ratio"] <= result["ratio_most"], result
        assert results[workload.name, "native"]["ratio"] == 1
    for workload in NANO:
        native, emulated = results[workload.name, "native"], results[workload.name, "emulation"]
        assert emulated["samples"] and bool(native["samples"]) != bool(workload.not_natively) and native["reason"] == workload.not_natively
        assert workload.not_natively or emulated["ratio_least"] <= emulated["ratio"] <= emulated["ratio_most"]
    calls = {row["kind"]: row["count"] for row in results["getpid", "emulation"]["crossings"]}
    assert calls["system-call"] == pytest.approx(1, rel=0.2)
    if "container" in wanted:
        (row,) = results["getpid", "container"]["crossings"]
        assert row["kind"] == "system-call" and row["reasons"]["getpid"] == pytest.approx(1, rel=0.01)
        assert "no kernel of its own" in results["cli", "container"]["reason"]
    if "trap" in wanted:
        assert results["cli", "trap"]["samples"]
        assert not results["getpid", "trap"]["samples"] and "do not trap" in results["getpid", "trap"]["reason"]
    assert json.dumps(document["workloads"][0]["results"][0]["samples"])[1:-1] in page.read_text()
    assert_nothing_is_left(daemon)


@pytest.mark.slow
def test_a_users_own_command(daemon: RealDaemon, tmp_path: Path) -> None:
    if not is_available(daemon, "container") or os.geteuid():
        pytest.skip("containers do not run here, or not as root")
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy2(GUESTS / "ops", root / "bin" / "work")
    root.chmod(0o755)
    daemon.ok("image", "import", "own", str(root))
    words = ("compare", "--quick", "--backend", "container", "--backend", "emulation", "--image", "own", "-o", "json", "--")
    document = daemon.ok(*words, "/bin/work", "n=100", "fork-exec", timeout=SECONDS).json
    (workload,) = document["workloads"]
    results = {result["place"]: result for result in workload["results"]}
    assert document["reference"] == "container" and "native" not in results
    assert results["container"]["ratio"] == 1 and results["emulation"]["samples"]
    failed = daemon.ok(*words, "/bin/nothing", timeout=SECONDS).json
    assert {result["place"]: "exit code 127" in result["reason"] for result in failed["workloads"][0]["results"]}["emulation"]
    assert_nothing_is_left(daemon)


def test_says_what_is_missing(daemon: RealDaemon, tmp_path: Path) -> None:
    done = daemon.hvctl("compare", "--quick", "--guests", str(tmp_path))
    assert done.returncode == 6 and "make guests" in done.stderr
    assert daemon.hvctl("compare", "--backend", "unheard-of").returncode == 1
    assert daemon.hvctl("compare", "--image", "nothing", "--", "true").returncode == 3
    assert_nothing_is_left(daemon)


def assert_nothing_is_left(daemon: RealDaemon) -> None:
    assert not daemon.ok("list", "-o", "name").stdout
    assert not [name for name in daemon.ok("image", "list", "-o", "name").stdout.split() if "compare" in name]
