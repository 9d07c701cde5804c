"""Plots as inline SVG. Colours are classes (page.css), so that they follow the reader's light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 760
_LABELS, _VALUES = 150, 120  # left and right of the plot
_ROW, _AXIS = 26, 24
# Of rows of marks: longer labels, no values, and room for marks that would lie upon one another.
_DOTS_LABELS, _DOTS_RIGHT, _DOTS_ROW, _DOTS_STEP = 300, 24, 34, 2.6
TickText = Callable[[float], str]
MARKS: Final = 8  # classes mark-0 ... of page.css; as many shapes


class Bar(NamedTuple):
    label: str
    value: float
    text: str  # how the value is written
    mark: int
    least: float = 0.0  # of its spread; 0 = none is shown
    most: float = 0.0
    title: str = ""


class Row(NamedTuple):
    label: str
    points: Sequence[Bar]


class _Scale:
    """Logarithmic, decades as ticks; left, right: of the plot, for labels and values."""

    def __init__(self, values: Sequence[float], left: int = _LABELS, right: int = _VALUES) -> None:
        self.left, self.width = left, WIDTH - left - right
        positive = [value for value in values if value > 0] or [1.0]
        self.low = math.floor(math.log10(min(positive)))
        self.high = max(math.ceil(math.log10(max(positive))), self.low + 1)

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        return self.left + self.width * min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def bars(items: Sequence[Bar], name: str, tick: TickText, base: float = 0.0) -> str:
    """A bar for each, on a logarithmic scale. base: where they begin, with a line; 0 = at the left."""
    scale = _Scale([value for item in items for value in (item.value, item.least, item.most, base)])
    height = len(items) * _ROW + _AXIS
    parts = [*_grid(scale, height, tick)]
    zero = scale.x(base) if base else float(_LABELS)
    for index, item in enumerate(items):
        top, x = index * _ROW + 5, scale.x(item.value)
        middle = top + 8
        parts.append(
            f'<g><title>{escape(item.title or f"{item.label}: {item.text}")}</title>'
            f'<text class="label" x="{_LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(item.label)}</text>'
            f'<rect class="mark-{item.mark % MARKS}" x="{min(zero, x):.1f}" y="{top}" width="{max(abs(x - zero), 1.5):.1f}" height="16" rx="2"/>'
        )
        if item.least and item.most:
            parts.append(_whisker(scale.x(item.least), scale.x(item.most), middle))
        end = max(x, zero, scale.x(item.most) if item.most else 0.0)
        parts.append(f'<text class="value" x="{end + 6:.1f}" y="{middle + 4}">{escape(item.text)}</text></g>')
    if base:
        parts.append(f'<line class="base" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height - _AXIS}"/>')
    return _svg(parts, height, name)


def dots(rows: Sequence[Row], name: str, tick: TickText) -> str:
    """A line for each row, a mark for each of its points: colour and shape tell which. Marks are a little above and below the line, by
    their number, so that none hides another."""
    scale = _Scale([point.value for row in rows for point in row.points], _DOTS_LABELS, _DOTS_RIGHT)
    height = len(rows) * _DOTS_ROW + _AXIS
    parts = [*_grid(scale, height, tick)]
    most = max((point.mark for row in rows for point in row.points), default=0)
    for index, row in enumerate(rows):
        middle = index * _DOTS_ROW + _DOTS_ROW // 2
        parts.append(
            f'<text class="label" x="{scale.left - 12}" y="{middle + 4}" text-anchor="end">{escape(row.label)}</text>'
            f'<line class="grid" x1="{scale.left}" x2="{scale.left + scale.width}" y1="{middle}" y2="{middle}"/>'
        )
        for point in row.points:
            title = escape(f"{row.label}, {point.label}: {point.text}")
            y = middle + (point.mark - most / 2) * _DOTS_STEP
            parts.append(f"<g><title>{title}</title>{shape(point.mark, scale.x(point.value), y)}</g>")
    return _svg(parts, height, name)


def shape(mark: int, x: float, y: float, size: float = 6.0) -> str:
    """The sign of a place, in plots and legends."""
    name = f'class="mark-{mark % MARKS}"'
    corners = {
        1: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        2: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        3: [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
        5: [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4),
            (-1.2, -0.4), (-0.4, -0.4)],
        6: [(-1.3, -0.6), (1.3, -0.6), (1.3, 0.6), (-1.3, 0.6)],
        7: [(-0.6, -1.3), (0.6, -1.3), (0.6, 1.3), (-0.6, 1.3)],
    }  # fmt: skip
    if mark % MARKS == 4:
        return f'<rect {name} x="{x - size * 0.9:.1f}" y="{y - size * 0.9:.1f}" width="{size * 1.8:.1f}" height="{size * 1.8:.1f}"/>'
    if mark % MARKS not in corners:
        return f'<circle {name} cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners[mark % MARKS])
    return f'<polygon {name} points="{points}"/>'


def _grid(scale: _Scale, height: int, tick: TickText) -> list[str]:
    ticks = scale.ticks()
    every = -(-len(ticks) // 8)
    return [
        f'<line class="grid" x1="{scale.x(value):.1f}" x2="{scale.x(value):.1f}" y1="0" y2="{height - _AXIS}"/>'
        f'<text class="tick" x="{scale.x(value):.1f}" y="{height - 6}" text-anchor="middle">{escape(tick(value))}</text>'
        for index, value in enumerate(ticks)
        if index % every == 0
    ]


def _whisker(left: float, right: float, y: float) -> str:
    ends = "".join(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y + 4}"/>' for x in (left, right))
    return f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>{ends}'


def _svg(parts: Sequence[str], height: int, name: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name, quote=True)}">{"".join(parts)}</svg>'
