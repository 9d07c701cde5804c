"""hvctl compare: what becomes of samples, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_harness import Hvctl
from hvctl.compare.budget import FULL, LEAST_SECONDS, Budget
from hvctl.compare.claims import claim_rows
from hvctl.compare.kinds import KINDS, SOURCES, Claim, Kind, Measure
from hvctl.compare.page import page
from hvctl.compare.places import LOST, Usage
from hvctl.compare.result import NATIVE, Table
from hvctl.compare.runs import COUNTED_TIMES, COUNTING_TRIES, SLICES, Runs
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
    found = table()
    for workload in NANO:
        found.of(workload.name, NATIVE).reason = workload.not_natively
        found.of(workload.name, "trap").reason = "all of it"
    document = found.document({"programs": PROGRAMS, "nano": NANO}, **ABOUT)
    told = reasons(document)
    assert told[:2] == ["new cannot run here: no luck", "trap cannot run fork-exec: it <b>fell</b></script>"]
    assert "trap cannot run the nanobenchmark: all of it" in told
    assert any(line.startswith("native cannot run cr-write, sti-cli, cli: ") for line in told)
    assert [(workload["name"], result["place"]) for workload, result in rows(document)] == [("getpid", NATIVE), ("getpid", "trap")]


def test_a_warm_up_counts_only_where_nothing_came_after_it() -> None:
    found = table()
    found.of("getpid", NATIVE).seconds[-1] = found.of("getpid", "trap").seconds[-1] = 9.0
    found.of("fork-exec", NATIVE).seconds.update({-1: 1.0, 0: 2.0})
    found.of("fork-exec", "trap").seconds[-1] = 3.0  # time was up in the middle of turn 0
    found.settle(PROGRAMS)
    assert 9.0 not in [*found.of("getpid", NATIVE).seconds.values(), *found.of("getpid", "trap").seconds.values()]
    (workload,) = (each for each in found.document({"programs": PROGRAMS}, **ABOUT)["workloads"] if each["name"] == "fork-exec")
    assert {result["place"]: result.get("ratio") for result in workload["results"]} == {NATIVE: 1.0, "trap": 3.0, "new": None}


class Lossy:
    """A Session whose calls are counted as long as a run makes no more than so many."""

    def __init__(self, most: int) -> None:
        self._most, self._crossings, self.numbers = most, {LOST: 1, ("system-call", "getpid"): 5}, list[int]()

    def run(self, words: Sequence[str], seconds: float) -> str:
        number = int(words[1].removeprefix("n=")) * SLICES if words[-1] == "getpid" else 0
        self.numbers.append(number)
        self._crossings[LOST] += max(0, number - self._most)
        self._crossings["system-call", "getpid"] += min(number, self._most)
        return f"op getpid 100 {number}"

    def usage(self) -> Usage:
        return Usage(dict(self._crossings), 0)


@pytest.mark.parametrize(("most", "counted"), [(1_000_000, 4000), (300, 248), (1, 0)])
def test_crossings_are_counted_whole_or_not_at_all(most: int, counted: int) -> None:
    found, session = table(), Lossy(most)
    (workload,) = (each for each in PROGRAMS if each.name == "getpid")
    runs = Runs(found, lambda *_: None, lambda: 1.0, {}, "ops", None)
    runs.sample = 1.0
    runs._costs["getpid", "new"] = COUNTED_TIMES / 4000
    measured = found.of("getpid", "new")
    assert runs.count((workload,), "new", session) == ([] if counted else [workload])
    assert sum(sum(crossings.values()) for crossings in measured.crossings) == measured.operations == counted
    assert session.numbers[0] == 0 and len(session.numbers) == (COUNTING_TRIES + 1 if not counted else 2 if counted == 4000 else 4)


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_turns_are_as_many_as_fit() -> None:
    clock, said = Clock(), []
    budget = Budget(100.0, clock)
    for turn in budget.turns(9, 0.5, "work", said.append):
        clock.now += 20.0 if turn else 5.0
    # 5 + 20 + 20 s; another 20 would end at 65, and a half of the time is for this.
    assert clock.now == 45.0 and budget.cuts == ["work: 3 of 9 turns"] and said[-1] == "work: 3 of 9 turns, since time is up"
    with budget.stopped():
        clock.now += 1000.0
    assert budget.left(0.5) == 5.0 and budget.left() == 55.0 and budget.limit(30.0, 0.5) == 5.0
    clock.now += 54.5
    for turn in budget.turns(9, 1.0, "more", said.append):
        assert turn == 0
        clock.now += 0.3
    assert budget.limit(30.0) == LEAST_SECONDS
    clock.now += 1.0
    assert not list(budget.turns(9, 1.0, "nothing", said.append)) and budget.cuts[-1] == "nothing: 0 of 9 turns"


def test_measurements_are_shorter_when_there_is_little_time() -> None:
    budget = Budget(FULL.seconds, Clock())
    assert budget.sample(FULL, 42, 0.05, 1.0) == FULL.sample
    assert FULL.least_sample < budget.sample(FULL, 42, 3.0, 1.0) < FULL.sample
    assert budget.sample(FULL, 42, 30.0, 1.0) == FULL.least_sample


@pytest.mark.parametrize(("ratios", "good", "agrees"), [
    ((1.0, 1.1), True, True), ((3.0, 4.0), True, False), ((3.0, 4.0), False, True), ((1.0, 4.0), True, None), ((1.35, 1.4), True, None),
])  # fmt: skip
def test_what_agrees_with_a_claim(ratios: tuple[float, float], good: bool, agrees: bool | None) -> None:
    found = table()
    found.of("compute-1000", NATIVE).seconds.update({0: 1.0, 1: 1.0})
    found.of("compute-1000", "trap").seconds.update(enumerate(ratios))
    kind = Kind("", "", (Claim("", "", (Measure("ratio", "compute-1000"),), good),))
    ((_, (figure,)),) = claim_rows(found.document({"programs": PROGRAMS}, **ABOUT), "trap", kind)
    assert figure.agrees is agrees


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
    assert "trap cannot run the programs: " in done.out and "native cannot run hypercall: " in done.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_bad_input(hvctl: Hvctl, tmp_path: Path) -> None:
    assert hvctl("compare", "--image", "box").code == 2
    assert hvctl("compare", "--", "true").code == 2
    (tmp_path / "bad").write_text('{"workloads": 1}')
    (tmp_path / "worse").write_text("{")
    for name in ("bad", "worse"):
        done = hvctl("compare", "--from", str(tmp_path / name))
        assert done.code == 1 and "is no comparison" in done.err
