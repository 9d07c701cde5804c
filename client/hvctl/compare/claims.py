"""What is said of a kind, and the figures of a comparison that stand beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hvctl.compare.kinds import Claim, Kind, Measure
from hvctl.compare.text import crossings_text, digits, time_text
from hvctl.values import size_text

Document = dict[str, Any]


def claim_rows(document: Document, place: str, kind: Kind) -> list[tuple[Claim, list[str]]]:
    """Each claim with a line for each of its measures that were taken."""
    return [(claim, [line for measure in claim.measures if (line := _SAID[measure.what](document, place, measure))]) for claim in kind.claims]


def found(document: Document, workload: str, place: str) -> dict[str, Any] | None:
    """The result of a workload in a place, if there is one with samples."""
    for each in document["workloads"]:
        if each["name"] == workload:
            for result in each["results"]:
                if result["place"] == place and result["samples"]:
                    return dict(result, title=each["title"])
    return None


def _ratio(document: Document, place: str, measure: Measure) -> str:
    result = found(document, measure.workload, place)
    if result is None or "ratio" not in result:
        return ""
    spread = f"{digits(result['ratio_least'])} to {digits(result['ratio_most'])}"
    return f"{result['title']}: {digits(result['ratio'])} times {document['reference']} ({spread})"


def _crossings(document: Document, place: str, measure: Measure) -> str:
    result = found(document, measure.workload, place)
    return f"{result['title']}: crosses {crossings_text(result['crossings'])}" if result and result["crossings"] else ""


def _beside(document: Document, place: str, measure: Measure) -> str:
    own, other = found(document, measure.workload, place), found(document, measure.workload, measure.place)
    return f"{own['title']}: {time_text(own['median'])}; {measure.place}: {time_text(other['median'])}" if own and other else ""


def _memory(document: Document, place: str, measure: Measure) -> str:
    """Of programs, at the most."""

    def most(where: str) -> int:
        programs = (each for each in document["workloads"] if each["group"] != "nano")
        return max((result.get("memory_bytes", 0) for each in programs for result in each["results"] if result["place"] == where), default=0)

    if not (own := most(place)):
        return ""
    others = [f"{other['name']} {size_text(most(other['name']))}" for other in document["places"] if other["name"] != place and most(other["name"])]
    return f"resident after the work: {size_text(own)}; {', '.join(others)}"


def _group(document: Document, place: str, measure: Measure) -> str:
    """Which of a group it runs, and why not the others."""
    what = {"programs": "programs in a Linux of its own", "nano": "a kernel of its own"}[measure.what]
    results = [result for each in document["workloads"] if each["group"] == measure.what for result in each["results"] if result["place"] == place]
    if not results:
        return ""
    missing = [result["reason"] for result in results if not result["samples"]]
    return f"{what}: runs" if not missing else f"{what}: {missing[0] or 'not tried'}"


_SAID: Final[dict[str, Callable[[Document, str, Measure], str]]] = {
    "ratio": _ratio,
    "crossings": _crossings,
    "beside": _beside,
    "memory": _memory,
    "programs": _group,
    "nano": _group,
}
