"""What is said of a kind, and the figures of a comparison that stand beside it; and what the comparison alone says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hvctl.compare.kinds import Claim, Kind, Measure
from hvctl.compare.text import crossings_text, digits, time_text
from hvctl.values import size_text

Document = dict[str, Any]
# A ratio up to the first is as fast as the reference, one from the second on is dear.
FAST, DEAR = 1.3, 1.5
# So many operations are told of those at which a place is the best or the worst.
TOLD: Final = 5


class Found(NamedTuple):
    """A figure beside a claim. agrees: whether it is as is said; None = it tells neither."""

    text: str
    agrees: bool | None = None


def claim_rows(document: Document, place: str, kind: Kind) -> list[tuple[Claim, list[Found]]]:
    """Each claim with the measures of it that were taken."""
    return [
        (claim, [found for measure in claim.measures if (found := _SAID[measure.what](document, place, measure, claim.good))])
        for claim in kind.claims
    ]


def extremes(document: Document, place: str) -> tuple[list[str], list[str]]:
    """Titles of the work that is done the quickest, and the slowest, of all places that have a kernel of their own."""
    best, worst = [], []
    own = {each["place"] for workload in document["workloads"] if workload["group"] == "nano" for each in workload["results"] if each["samples"]}
    own.discard(document["reference"])
    for workload in document["workloads"]:
        times = {each["place"]: each["median"] for each in workload["results"] if each["samples"] and each["place"] in own}
        if place not in times or len(times) < 3:
            continue
        if times[place] == min(times.values()):
            best.append(workload["title"])
        if times[place] == max(times.values()):
            worst.append(workload["title"])
    return best, worst


def found(document: Document, workload: str, place: str) -> dict[str, Any] | None:
    """The result of a workload in a place, if there is one with samples."""
    for each in document["workloads"]:
        if each["name"] == workload:
            for result in each["results"]:
                if result["place"] == place and result["samples"]:
                    return dict(result, title=each["title"])
    return None


def spread_text(result: dict[str, Any]) -> str:
    """Of its ratio, in brackets."""
    if len(result["samples"]) < 2:
        return "(one run)"
    return f"({digits(result['ratio_least'])} to {digits(result['ratio_most'])})"


def _ratio(document: Document, place: str, measure: Measure, good: bool) -> Found | None:
    result = found(document, measure.workload, place)
    if result is None or "ratio" not in result:
        return None
    text = f"{result['title']}: {digits(result['ratio'])} times {document['reference']} {spread_text(result)}"
    # As fast in some turns, dear in others, or in between: that tells neither.
    if FAST < result["ratio"] < DEAR or (result["ratio_least"] <= FAST and result["ratio_most"] >= DEAR):
        return Found(text)
    return Found(text, (result["ratio"] <= FAST) == good)


def _crossings(document: Document, place: str, measure: Measure, good: bool) -> Found | None:
    result = found(document, measure.workload, place)
    return Found(f"{result['title']}: crosses {crossings_text(result['crossings'])}") if result and result["crossings"] else None


def _beside(document: Document, place: str, measure: Measure, good: bool) -> Found | None:
    own, other = found(document, measure.workload, place), found(document, measure.workload, measure.place)
    if not own or not other:
        return None
    quicker = own["median"] < other["median"]
    text = f"{own['title']}: {time_text(own['median'])}; {measure.place}: {time_text(other['median'])}"
    return Found(text, quicker == good)


def _memory(document: Document, place: str, measure: Measure, good: bool) -> Found | None:
    """Of programs, at the most."""

    def most(where: str) -> int:
        programs = (each for each in document["workloads"] if each["group"] != "nano")
        return max((result.get("memory_bytes", 0) for each in programs for result in each["results"] if result["place"] == where), default=0)

    if not (own := most(place)):
        return None
    others = {other["name"]: size for other in document["places"] if other["name"] != place and (size := most(other["name"]))}
    text = ", ".join(f"{name} {size_text(size)}" for name, size in others.items())
    return Found(f"resident after the work: {size_text(own)}; {text}", all(own < size for size in others.values()) == good if others else None)


def _group(document: Document, place: str, measure: Measure, good: bool) -> Found | None:
    """Which of a group it runs, and why not the others."""
    what = {"programs": "programs in a Linux of its own", "nano": "a kernel of its own"}[measure.what]
    results = [result for each in document["workloads"] if each["group"] == measure.what for result in each["results"] if result["place"] == place]
    if not results:
        return None
    missing = [result["reason"] for result in results if not result["samples"]]
    return Found(f"{what}: runs" if not missing else f"{what}: {missing[0] or 'not tried'}", bool(not missing) == good)


_SAID: Final[dict[str, Callable[[Document, str, Measure, bool], Found | None]]] = {
    "ratio": _ratio,
    "crossings": _crossings,
    "beside": _beside,
    "memory": _memory,
    "programs": _group,
    "nano": _group,
}
