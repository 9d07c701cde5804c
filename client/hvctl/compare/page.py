"""The comparison as one HTML page: no script, nothing fetched, every number that of the document, which it carries along."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from hvctl.compare import charts
from hvctl.compare.claims import claim_rows
from hvctl.compare.kinds import KINDS, SOURCES, UNKNOWN
from hvctl.compare.text import crossings_text, digits, reasons, time_text
from hvctl.output import printable
from hvctl.sdk.errors import HvctlError
from hvctl.values import size_text

Document = dict[str, Any]
_HOW_TO_READ = (
    "Every figure is the time of one operation, measured by the program that does it, by the clock of where it runs. "
    "The same program runs everywhere, in turns, again and again; <b>ratio</b> is that time divided by the time in {reference} in the same turn: "
    "1 is as fast, 2 takes twice as long. What is shown is the median of the turns; thin lines reach from the least to the most. "
    "Scales are logarithmic: each line of the grid is ten times the one before. A <b>crossing</b> is a change from the guest to the hypervisor "
    "(or, of a container, to the kernel): what virtualisation costs is how many there are, times what each takes."
)


def write(document: Document, path: Path) -> None:
    """Raises HvctlError FILE_UNWRITABLE."""
    try:
        path.write_text(page(document), encoding="utf-8")
    except OSError as error:
        raise HvctlError.local("FILE_UNWRITABLE", path=path, problem=error.strerror) from error


def page(document: Document) -> str:
    style = files("hvctl.compare").joinpath("page.css").read_text(encoding="utf-8")
    # "</script>" in a guest's words would end it.
    data = json.dumps(document).replace("<", "\\u003c")
    body = "".join((_head(document), _kinds(document), _plots(document), _numbers(document), _cannot(document), _sources()))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What virtualisation costs</title><style>{style}</style></head><body>{body}"
        f'<script type="application/json" id="document">{data}</script></body></html>\n'
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _marks(document: Document) -> dict[str, int]:
    """A place's colour and shape."""
    return {place["name"]: index for index, place in enumerate(document["places"])}


def _head(document: Document) -> str:
    machine = document["machine"]
    what = "The same work"
    if document["command"]:
        what = f"<code>{_text(' '.join(document['command']))}</code> of <code>{_text(document['image'])}</code>"
    quick = " <b>A quick run: few, short measurements; not for publication.</b>" if document["quick"] else ""
    return (
        f"<h1>What virtualisation costs</h1><p>{what}, run under every kind of virtualisation that this machine has.</p>"
        f'<p class="quiet">{_text(machine["cpu"])}, {machine["cpus"]} processors, load {machine["load"]:.1f}, Linux {_text(machine["kernel"])}, '
        f'{_text(document["time"])}, in {document["seconds"]:.0f} s, by <code>hvctl compare</code>.{quick}</p>'
        f"<h2>How to read this</h2><p>{_HOW_TO_READ.format(reference=_text(document['reference']))}</p>{_legend(document)}"
    )


def _legend(document: Document) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 18 18" aria-hidden="true">{charts.shape(mark, 9, 9)}</svg> '
        f'{_text(name)}</li>' for name, mark in _marks(document).items()
    )
    return f'<ul class="legend">{items}</ul>'


# --- kinds ---


def _kinds(document: Document) -> str:
    cards = []
    for place in document["places"]:
        kind = KINDS.get(place["kind"], UNKNOWN)
        rows = "".join(
            f'<tr><td class="{"good" if claim.good else "bad"}">{"advantage" if claim.good else "disadvantage"}</td>'
            f"<td>{escape(claim.text)}{f' <a href=#{claim.source}>[{claim.source}]</a>' if claim.source else ''}</td>"
            f"<td>{'<br>'.join(map(_text, measured)) or '-'}</td></tr>"
            for claim, measured in claim_rows(document, place["name"], kind)
        )
        table = f'<div class="wide"><table><tr><th></th><th>what is said</th><th>what was measured here</th></tr>{rows}</table></div>' if rows else ""
        about = escape(kind.what) or _text(place.get("description", ""))
        out = f'<p class="bad">Not here: {_text(place["reason"])}</p>' if place["reason"] else ""
        title = f"{escape(kind.title)} ({_text(place['name'])})" if kind.title else _text(place["name"])
        cards.append(f'<section class="card" data-kind="{_text(place["name"])}"><h3>{title}</h3><p>{about}</p>{out}{table}</section>')
    return f"<h2>The kinds, and what is said of them</h2>{''.join(cards)}"


# --- plots ---


def _plots(document: Document) -> str:
    marks = _marks(document)
    parts = []
    for workload in document["workloads"]:
        if workload["group"] == "nano":
            continue
        items = [
            charts.Bar(
                result["place"], result["ratio"], f"{digits(result['ratio'])}x  ({time_text(result['median'])})", marks[result["place"]],
                result["ratio_least"], result["ratio_most"],
            )
            for result in workload["results"]
            if result.get("ratio")
        ]  # fmt: skip
        if items:
            plot = charts.bars(items, f"{workload['title']}: ratio to {document['reference']}", lambda value: f"{value:g}x", 1.0)
            parts.append(f"<h3>{_text(workload['title'])}</h3><p class=quiet>{_text(workload['stresses'])}</p><figure>{plot}</figure>")
    nano = [
        charts.Row(workload["name"], [
            charts.Bar(result["place"], result["median"], time_text(result["median"]), marks[result["place"]])
            for result in workload["results"] if result["samples"]
        ])
        for workload in document["workloads"] if workload["group"] == "nano"
    ]  # fmt: skip
    if any(row.points for row in nano):
        parts.append(
            "<h3>Single operations of a kernel</h3><p class=quiet>The nanobenchmark, after Adams and Agesen: a kernel that does one thing again "
            f"and again. Time of one, the further left the cheaper.</p>{_legend(document)}"
            f"<figure>{charts.dots(nano, 'time of one operation of a kernel', time_text)}</figure>"
        )
    parts.append(_memory(document, marks))
    return f"<h2>What it costs</h2>{''.join(parts)}"


def _memory(document: Document, marks: dict[str, int]) -> str:
    most: dict[str, int] = {}
    for workload in document["workloads"]:
        for result in workload["results"] if workload["group"] != "nano" else ():
            most[result["place"]] = max(most.get(result["place"], 0), result.get("memory_bytes", 0))
    items = [charts.Bar(place, size, size_text(size), marks[place]) for place, size in most.items() if size]
    if not items:
        return ""
    plot = charts.bars(items, "resident memory", _decimal_size)
    return (
        "<h3>Memory</h3><p class=quiet>What it takes to have the place at all: resident memory after the work, at its most. A guest's includes "
        f"a kernel of its own and what it keeps in its caches; natively there is nothing.</p><figure>{plot}</figure>"
    )


def _decimal_size(value: float) -> str:
    """Of a decade of the scale."""
    factor, unit = (1e9, "GB") if value >= 1e9 else (1e6, "MB") if value >= 1e6 else (1e3, "kB")
    return f"{value / factor:g} {unit}"


# --- numbers ---


def _numbers(document: Document) -> str:
    rows = []
    for workload in document["workloads"]:
        for result in workload["results"]:
            if not result["samples"]:
                continue
            cells = {
                "median": time_text(result["median"]),
                "ratio": f"{result['ratio']:.2f}" if "ratio" in result else "-",
                "range": f"{result['ratio_least']:.2f}-{result['ratio_most']:.2f}" if "ratio" in result else "-",
                "runs": str(len(result["samples"])),
                "memory": size_text(result["memory_bytes"]) if result["memory_bytes"] else "-",
            }
            rows.append(
                f'<tr data-workload="{_text(workload["name"])}" data-place="{_text(result["place"])}"><td>{_text(workload["title"])}</td>'
                f"<td>{_text(result['place'])}</td>"
                + "".join(f'<td class="number" data-field="{field}">{text}</td>' for field, text in cells.items())
                + f'<td data-field="crossings">{_text(crossings_text(result["crossings"]))}</td></tr>'
            )
    return (
        '<h2>All numbers</h2><div class="wide"><table><tr><th>work</th><th>where</th><th>time</th><th>ratio</th><th>range</th><th>runs</th>'
        f"<th>memory</th><th>crossings of one</th></tr>{''.join(rows)}</table></div>"
    )


def _cannot(document: Document) -> str:
    lines = reasons(document)
    if not lines:
        return ""
    return f"<h2>What cannot run, and why</h2><ul id=reasons>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _sources() -> str:
    return f"<h2>Sources</h2><ul>{''.join(f'<li id={name}>[{name}] {escape(text)}</li>' for name, text in SOURCES.items())}</ul>"
