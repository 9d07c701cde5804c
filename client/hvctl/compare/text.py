"""The document for a terminal."""

from __future__ import annotations

from typing import Any

from hvctl.output import Column
from hvctl.values import size_text

MOST_KINDS = 3
_SCALES = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "us"), (0.0, 1e9, "ns"))


def time_text(seconds: float) -> str:
    """Three digits."""
    for least, factor, unit in _SCALES:
        if seconds >= least:
            return f"{digits(seconds * factor)} {unit}"
    return f"{seconds} s"


def digits(value: float) -> str:
    """Three of them, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def crossings_text(crossings: list[dict[str, Any]] | None) -> str:
    if crossings is None:
        return "-"
    return ", ".join(f"{digits(row['count'])} {row['kind']}" for row in crossings[:MOST_KINDS] if row["count"] >= 0.005) or "none"


Row = tuple[dict[str, Any], dict[str, Any]]  # a workload, and one of its results


def rows(document: dict[str, Any]) -> list[Row]:
    return [(workload, result) for workload in document["workloads"] for result in workload["results"] if result["samples"]]


COLUMNS: list[Column[Row]] = [
    Column("WORKLOAD", lambda row: row[0]["name"]),
    Column("WHERE", lambda row: row[1]["place"]),
    Column("TIME", lambda row: time_text(row[1]["median"]), right=True),
    Column("RATIO", lambda row: f"{row[1]['ratio']:.2f}" if "ratio" in row[1] else "-", right=True),
    Column("RANGE", lambda row: f"{row[1]['ratio_least']:.2f}-{row[1]['ratio_most']:.2f}" if "ratio" in row[1] else "-"),
    Column("RUNS", lambda row: str(len(row[1]["samples"])), right=True),
    Column("MEMORY", lambda row: size_text(row[1]["memory_bytes"]) if row[1]["memory_bytes"] else "-", right=True),
    Column("CROSSINGS OF ONE", lambda row: crossings_text(row[1]["crossings"])),
]  # fmt: skip


# Group -> what all of it together is called.
GROUPS = {"programs": "the programs", "nano": "the nanobenchmark"}


def reasons(document: dict[str, Any]) -> list[str]:
    """A line for each place and reason: what cannot run there, and why."""
    lines = [f"{place['name']} cannot run here: {place['reason']}" for place in document["places"] if place["reason"]]
    found: dict[tuple[str, str, str], list[str]] = {}
    sizes: dict[str, int] = {}
    for workload in document["workloads"]:
        sizes[workload["group"]] = sizes.get(workload["group"], 0) + 1
        for result in workload["results"]:
            if result["reason"]:
                found.setdefault((result["place"], result["reason"], workload["group"]), []).append(workload["name"])
    for (place, reason, group), names in found.items():
        what = GROUPS[group] if group in GROUPS and 1 < len(names) == sizes[group] else ", ".join(names)
        lines.append(f"{place} cannot run {what}: {reason}")
    return lines


def cuts(document: dict[str, Any]) -> list[str]:
    """What was left out so as to end in time; none of a document from before that was told."""
    return list(document.get("cut", ()))
