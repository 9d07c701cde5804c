"""What was measured, as one document: text, JSON and the page show the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hvctl.compare.places import Crossings
from hvctl.compare.workloads import Workload

# What everything is compared with, and what else is no backend of the daemon.
NATIVE, QEMU = "native", "qemu-tcg"


@dataclass(slots=True)
class Measured:
    """One workload in one place. reason: why there are no samples."""

    seconds: dict[int, float] = field(default_factory=dict)  # by turn: of one operation
    crossings: list[Crossings] = field(default_factory=list)  # of one operation each, times `operations`
    operations: int = 0  # that the crossings are of
    memory_bytes: int = 0
    reason: str = ""

    def crossed(self) -> list[dict[str, Any]]:
        """Crossings of one operation, by kind, the most frequent first."""
        kinds: dict[str, dict[str, float]] = {}
        for counts in self.crossings:
            for (kind, reason), count in counts.items():
                reasons = kinds.setdefault(kind, {})
                reasons[reason] = reasons.get(reason, 0) + count / self.operations
        rows: list[dict[str, Any]] = [
            {"kind": kind, "count": sum(reasons.values()), "reasons": dict(sorted(reasons.items(), key=lambda each: -each[1]))}
            for kind, reasons in kinds.items()
        ]
        return sorted((row for row in rows if row["count"]), key=lambda row: -float(row["count"]))

    def document(self, place: str, reference: Measured | None) -> dict[str, Any]:
        samples = list(self.seconds.values())
        found: dict[str, Any] = {"place": place, "samples": samples, "reason": self.reason}
        if samples:
            found |= {"median": median(samples), "memory_bytes": self.memory_bytes}
            found["crossings"] = self.crossed() if self.crossings else None
        pairs = [(own, reference.seconds[turn]) for turn, own in self.seconds.items() if turn in reference.seconds] if reference else []
        if ratios := [own / theirs for own, theirs in pairs if theirs]:
            found |= {"ratio": median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
        return found


@dataclass(slots=True)
class Table:
    """All of it. Places are told in their order; a place's reason is why it runs nothing at all."""

    places: dict[str, dict[str, Any]]
    reference: str = NATIVE
    measured: dict[tuple[str, str], Measured] = field(default_factory=dict)  # (workload, place)

    def of(self, workload: str, place: str) -> Measured:
        return self.measured.setdefault((workload, place), Measured())

    def settle(self, workloads: Sequence[Workload]) -> None:
        """Turn -1 warms up, and counts for a workload only where nothing came after it."""
        for workload in workloads:
            rows = [measured for (name, _), measured in self.measured.items() if name == workload.name and measured.seconds]
            if all(max(measured.seconds) >= 0 for measured in rows):
                for measured in rows:
                    measured.seconds.pop(-1, None)

    def document(self, groups: Mapping[str, Sequence[Workload]], **about: Any) -> dict[str, Any]:
        """groups: by name."""
        return {
            **about,
            "reference": self.reference,
            "places": [{"name": name, **row} for name, row in self.places.items()],
            "workloads": [
                {
                    "name": workload.name,
                    "group": group,
                    "title": workload.title,
                    "stresses": workload.stresses,
                    "natively": workload.natively,
                    "results": [
                        self.of(workload.name, place).document(place, self.measured.get((workload.name, self.reference)))
                        for place in self.places
                    ],
                }
                for group, workloads in groups.items()
                for workload in workloads
            ],
        }
