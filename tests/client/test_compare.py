"""hvctl compare: what becomes of samples, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_harness import Hvctl
from hvctl.compare.kinds import KINDS, SOURCES
from hvctl.compare.page import page
from hvctl.compare.result import NATIVE, Table
from hvctl.compare.text import reasons, rows, time_text
from hvctl.compare.workloads import NANO, PROGRAMS, cost, costs
from hvctl.sdk.errors import HvctlError

COMPARISON = Path(__file__).parent / "comparison.json"


def table() -> Table:
    kinds = {NATIVE: ("native", ""), "trap": ("trap and emulate", ""), "new": ("unheard of", "no luck")}
    found = Table({name: {"kind": kind, "reason": reason} for name, (kind, reason) in kinds.items()})
    found.of("getpid", NATIVE).seconds.update({0: 1e-6, 1: 2e-6, 2: 4e-6})
    measured = found.of("getpid", "trap")
    measured.seconds.update({0: 3e-6, 2: 4e-6})  # turn 1 failed
    measured.crossings += [{("privileged", "cli"): 30, ("privileged", "sti"): 10, ("port-io", "port-out"): 0}, {("privileged", "cli"): 10}]
    measured.operations, measured.memory_bytes = 20, 1 << 20
    found.of("fork-exec", "trap").reason = "it <b>fell</b></script>"
    return found


ABOUT = {"time": "now", "seconds": 1.0, "quick": False, "command": [], "image": "", "machine": {"cpu": "x", "cpus": 1, "kernel": "k", "load": 0.0}}


def test_ratios_are_those_of_one_turn() -> None:
    document = table().document({"programs": PROGRAMS}, **ABOUT)
    by_name = {each["name"]: {result["place"]: result for result in each["results"]} for each in document["workloads"]}
    trap = by_name["getpid"]["trap"]
    assert (trap["ratio"], trap["ratio_least"], trap["ratio_most"]) == pytest.approx((2.0, 1.0, 3.0))
    assert trap["crossings"] == [{"kind": "privileged", "count": 2.5, "reasons": {"cli": 2.0, "sti": 0.5}}]
    assert by_name["getpid"]["new"]["samples"] == [] and "ratio" not in by_name["fork-exec"]["trap"]
    assert json.loads(json.dumps(document)) == document


def test_what_cannot_run_is_told() -> None:
    document = table().document({"programs": PROGRAMS}, **ABOUT)
    assert reasons(document) == ["new cannot run here: no luck", "trap cannot run fork-exec: it <b>fell</b></script>"]
    assert [(workload["name"], result["place"]) for workload, result in rows(document)] == [("getpid", NATIVE), ("getpid", "trap")]


def test_words_of_guests_are_no_markup() -> None:
    text = page(table().document({"programs": PROGRAMS}, **ABOUT))
    assert "it <b>fell" not in text and "it &lt;b&gt;fell" in text
    assert text.count("</script>") == 1


def test_what_the_programs_report() -> None:
    text = "guest # x\r\nop getpid 1500 20000\r\nnano cli 2500 16\r\nop bad x 1\r\n"
    assert costs(text) == {"getpid": (pytest.approx(1.5e-6), 20000), "cli": (pytest.approx(2.5e-9), 16)}
    with pytest.raises(HvctlError, match="fork-exec was not reported"):
        cost(text, "fork-exec")


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (1.23456e-6, "1.23 us"), (234e-6, "234 us"), (3.19e-10, "0.319 ns")]
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_every_claim_is_of_a_workload_and_a_source_that_there_is() -> None:
    names = {workload.name for workload in (*PROGRAMS, *NANO)}
    for kind in KINDS.values():
        for claim in kind.claims:
            assert not claim.source or claim.source in SOURCES
            assert all(not measure.workload or measure.workload in names for measure in claim.measures)
            assert claim.measures, claim.text


def test_shows_what_was_measured_earlier(hvctl: Hvctl, tmp_path: Path) -> None:
    document = json.loads(COMPARISON.read_text())
    assert hvctl("compare", "--from", str(COMPARISON), "-o", "json").json == document
    done = hvctl("compare", "--from", str(COMPARISON), "--html", str(tmp_path / "page.html"))
    assert done.out.splitlines()[0].split()[:4] == ["WORKLOAD", "WHERE", "TIME", "RATIO"]
    assert "trap cannot run compute-1000" in done.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_bad_input(hvctl: Hvctl, tmp_path: Path) -> None:
    assert hvctl("compare", "--image", "box").code == 2
    assert hvctl("compare", "--", "true").code == 2
    (tmp_path / "bad").write_text('{"workloads": 1}')
    (tmp_path / "worse").write_text("{")
    for name in ("bad", "worse"):
        done = hvctl("compare", "--from", str(tmp_path / name))
        assert done.code == 1 and "is no comparison" in done.err
