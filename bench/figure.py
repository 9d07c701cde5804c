"""A figure: what was measured beside its peer, and how it is printed.

Two ways of doing the same thing are run in turns (A B A B ..), so that whatever else the machine does hits both; the
ratio is the median of the ratios of neighbours, and its range is printed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

# unit -> how a value in SI base units is written: factor and suffix, the first whose threshold it reaches.
SCALES: Final[dict[str, tuple[tuple[float, float, str], ...]]] = {
    "s": ((1, 1, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "us"), (0, 1e9, "ns")),
    "us": ((0, 1e6, "us"),),
    "bytes": ((1 << 30, 1 / (1 << 30), "GiB"), (1 << 20, 1 / (1 << 20), "MiB"), (0, 1 / 1024, "KiB")),
    "instructions/s": ((1e9, 1e-9, "G instructions/s"), (1e6, 1e-6, "M instructions/s"), (0, 1, "instructions/s")),
    "records/s": ((1e6, 1e-6, "M records/s"), (1e3, 1e-3, "k records/s"), (0, 1, "records/s")),
    "calls/s": ((0, 1, "calls/s"),),
    "turns/s": ((1e3, 1e-3, "k turns/s"), (0, 1, "turns/s")),
    "bytes/s": ((1e9, 1e-9, "GB/s"), (1e6, 1e-6, "MB/s"), (0, 1e-3, "kB/s")),
}  # fmt: skip
COLUMNS: Final = ("figure", "hvd", "peer", "peer is", "ratio", "range", "target", "runs", "note")


@dataclass(slots=True)
class Figure:
    """One line of the table. ratio is own : peer, or None when there is no peer (here)."""

    name: str
    unit: str  # of SCALES
    own: float  # median
    runs: int
    peer: str = ""  # what `beside` was measured of
    beside: float | None = None  # median
    ratio: float | None = None
    least: float | None = None  # of the ratios of single pairs
    most: float | None = None
    target: str = ""  # "<= 2.5" or ">= 0.9", of the ratio
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Does the ratio reach the target? None without either."""
        if self.ratio is None or not self.target:
            return None
        relation, _, bound = self.target.partition(" ")
        return self.ratio <= float(bound) if relation == "<=" else self.ratio >= float(bound)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"met": self.met}

    def cells(self) -> tuple[str, ...]:
        """The line's texts, by COLUMNS."""
        verdict = {True: " (met)", False: " (missed)", None: ""}[self.met]
        return (
            self.name,
            shown(self.own, self.unit),
            shown(self.beside, self.unit) if self.beside is not None else "-",
            self.peer or "-",
            f"**{self.ratio:.2f}**" if self.ratio is not None else "-",
            f"{self.least:.2f}-{self.most:.2f}" if self.ratio is not None else "-",
            self.target + verdict if self.target else "-",
            str(self.runs),
            self.note or "-",
        )


def shown(value: float, unit: str) -> str:
    """A value in the scale that suits it, three digits."""
    for threshold, factor, suffix in SCALES[unit]:
        if value >= threshold:
            scaled = value * factor
            return f"{scaled:.0f} {suffix}" if scaled >= 100 else f"{scaled:.3g} {suffix}"
    return f"{value:.3g} {unit}"


def in_turns(ways: Mapping[str, Callable[[], float]], runs: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Each way's measurements, made in turns. The first `warm_up` rounds count for nobody: they fill caches."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm_up, runs):
        for name, measure in ways.items():
            value = measure()
            if turn >= 0:
                samples[name].append(value)
    return samples


def compared(
    name: str,
    unit: str,
    own: Sequence[float],
    beside: Sequence[float],
    peer: str,
    *,
    target: str = "",
    note: str = "",
) -> Figure:
    """The figure of samples that were taken in turns."""
    ratios = [mine / theirs for mine, theirs in zip(own, beside, strict=True)]
    return Figure(
        name, unit, median(own), len(own), peer, median(beside), median(ratios), min(ratios), max(ratios), target, note,
        {"own": list(own), "peer": list(beside)},
    )  # fmt: skip


def alone(name: str, unit: str, own: Sequence[float], *, note: str = "") -> Figure:
    """A figure without a peer: part of another one, or the peer is not installed."""
    return Figure(name, unit, median(own), len(own), note=note, samples={"own": list(own)})


def table(figures: Sequence[Figure]) -> str:
    """Markdown."""
    lines = [COLUMNS, *(figure.cells() for figure in figures)]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(COLUMNS), *rows[1:]])
