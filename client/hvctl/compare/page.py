"""The comparison as one HTML page: no script, nothing fetched, every number that of the document, which it carries along."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from hvctl.compare import charts
from hvctl.compare.claims import TOLD, Found, claim_rows, extremes
from hvctl.compare.kinds import KINDS, SOURCES, UNKNOWN, Kind
from hvctl.compare.text import crossings_text, cuts, digits, reasons, time_text
from hvctl.output import printable
from hvctl.sdk.errors import HvctlError
from hvctl.values import size_text

Document = dict[str, Any]
_HOW_TO_READ = (
    "Every figure is the time of one operation, measured by the program that does it, by the clock of where it runs. "
    "The same program runs everywhere, in turns, again and again, and tells the quickest of a few runs in a row; <b>ratio</b> is that time divided "
    "by the time in {reference} in the same turn: 1 is as fast, 2 takes twice as long. What is shown is the median of the turns; thin lines reach "
    "from the least to the most. Scales are logarithmic: each line of the grid is ten times the one before. A <b>crossing</b> is a change from "
    "the guest to the hypervisor (or, of a container, to the kernel): what virtualisation costs is how many there are, times what each takes."
)
_HOW_TO_JUDGE = (
    "Beside each thing that is said of a kind stands what was measured here, with <span class=good>✓</span> where it agrees, "
    "<span class=bad>✗</span> where it does not, and ~ where it tells neither: as fast is up to 1.3 times {reference}, dear is from 1.5 times on."
)
_ROOM = 1.5  # processes that want to run, per processor: beyond that, figures say more about who else runs


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
    body = "".join((_head(document), _kinds(document), _plots(document), _numbers(document), _cannot(document), _left_out(document), _sources()))
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
    if machine["load"] > _ROOM * machine["cpus"]:
        quick += " <b>The machine was busy with other things: times are too long, and ratios uncertain.</b>"
    when = str(document["time"]).replace("T", " ").replace("+00:00", " UTC")
    return (
        f"<h1>What virtualisation costs</h1><p>{what}, run under every kind of virtualisation that this machine has.</p>"
        f'<p class="quiet">{_text(machine["cpu"])}, {machine["cpus"]} processors, load {machine["load"]:.1f}, Linux {_text(machine["kernel"])}, '
        f'{_text(when)}, in {document["seconds"]:.0f} s, by <code>hvctl compare</code>.{quick}</p>'
        f"<h2>How to read this</h2><p>{_HOW_TO_READ.format(reference=_text(document['reference']))}</p>{_legend(document)}"
    )


def _mark(mark: int) -> str:
    return f'<svg viewBox="0 0 18 18" aria-hidden="true">{charts.shape(mark, 9, 9)}</svg>'


def _legend(document: Document, group: str = "") -> str:
    """Of all places, or of those that have run something of a group."""
    shown = {
        result["place"] for workload in document["workloads"] if group in ("", workload["group"]) for result in workload["results"]
        if result["samples"] or not group
    }  # fmt: skip
    items = "".join(f"<li>{_mark(mark)} {_text(name)}</li>" for name, mark in _marks(document).items() if name in shown)
    return f'<ul class="legend">{items}</ul>'


# --- kinds ---


def _kinds(document: Document) -> str:
    marks = _marks(document)
    cards = [_card(document, place, KINDS.get(place["kind"], UNKNOWN), _mark(marks[place["name"]])) for place in document["places"]]
    here = {place["kind"] for place in document["places"]}
    if not document["command"]:  # of the whole of it
        nowhere = {"name": "", "reason": "hvd has no backend of this kind yet"}
        cards += [_card(document, nowhere, kind, "") for name, kind in KINDS.items() if name not in here]
    judge = _HOW_TO_JUDGE.format(reference=_text(document["reference"]))
    return f"<h2>The kinds, and what is said of them</h2><p>{judge}</p>{''.join(cards)}"


def _card(document: Document, place: Document, kind: Kind, mark: str) -> str:
    rows = "".join(
        f'<tr><td class="{"good" if claim.good else "bad"}">{"advantage" if claim.good else "disadvantage"}</td>'
        f"<td>{escape(claim.text)}{f' <a href=#{claim.source}>[{claim.source}]</a>' if claim.source else ''}</td>"
        f"<td>{''.join(map(_found, measured)) or 'not measured'}</td></tr>"
        for claim, measured in claim_rows(document, place["name"], kind)
    )
    head = "<tr><th></th><th>what is said</th><th>what was measured here</th></tr>"
    table = f'<div class="wide"><table class="claims">{head}{rows}</table></div>' if rows else ""
    about = escape(kind.what) or _text(place.get("description", ""))
    out = f'<p class="bad">Not here: {_text(place["reason"])}.</p>' if place["reason"] else ""
    name = _text(place["name"])
    title = f"{mark} {escape(kind.title) or name}" + (f" <code>{name}</code>" if kind.title and name else "")
    return f'<section class="card" data-kind="{name}"><h3>{title}</h3><p>{about}</p>{out}{table}{_extremes(document, place)}</section>'


def _found(found: Found) -> str:
    sign = {True: "<span class=good>✓</span>", False: "<span class=bad>✗</span>", None: "~"}[found.agrees]
    return f'<div class="found">{sign} {_text(found.text)}</div>'


def _extremes(document: Document, place: Document) -> str:
    lines = []
    for what, titles in zip(("quickest", "slowest"), extremes(document, place["name"]), strict=True):
        if titles:
            more = f"; and {len(titles) - TOLD} more" if len(titles) > TOLD else ""
            lines.append(f"<b>The {what}</b> of the kinds with a kernel of their own at: {_text('; '.join(titles[:TOLD]))}{more}.")
    return f"<p>Measured here, whatever is said: {' '.join(lines)}</p>" if lines else ""


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
        charts.Row(workload["title"], [
            charts.Bar(result["place"], result["median"], time_text(result["median"]), marks[result["place"]])
            for result in workload["results"] if result["samples"]
        ])
        for workload in document["workloads"] if workload["group"] == "nano"
    ]  # fmt: skip
    if any(row.points for row in nano):
        parts.append(
            "<h3>Single operations of a kernel</h3><p class=quiet>The nanobenchmark, after Adams and Agesen: a kernel that does one thing again "
            "and again. Time of one, the further left the cheaper. What of it a process of the host can do, or its kernel for it, is here as well: "
            f"the table below says how.</p>{_legend(document, 'nano')}"
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
        results = [result for result in workload["results"] if result["samples"]]
        if not results:
            continue
        natively = f" Natively: {workload['natively']}." if workload.get("natively") else ""
        about = f'<span class="quiet">{_text(workload["stresses"])}.{_text(natively)}</span>'
        rows.append(f'<tr class="group"><th colspan="7">{_text(workload["title"])} <code>{_text(workload["name"])}</code><br>{about}</th></tr>')
        for result in results:
            cells = {
                "median": time_text(result["median"]),
                "ratio": f"{result['ratio']:.2f}" if "ratio" in result else "-",
                "range": f"{result['ratio_least']:.2f}-{result['ratio_most']:.2f}" if "ratio" in result else "-",
                "runs": str(len(result["samples"])),
                "memory": size_text(result["memory_bytes"]) if result["memory_bytes"] else "-",
            }
            rows.append(
                f'<tr data-workload="{_text(workload["name"])}" data-place="{_text(result["place"])}"><td>{_text(result["place"])}</td>'
                + "".join(f'<td class="number" data-field="{field}">{text}</td>' for field, text in cells.items())
                + f'<td data-field="crossings">{_text(crossings_text(result["crossings"]))}</td></tr>'
            )
    return (
        '<h2>All numbers</h2><div class="wide"><table class="numbers"><tr><th>where</th><th class="number">time</th><th class="number">ratio</th>'
        '<th class="number">range</th><th class="number">runs</th><th class="number">memory</th><th>crossings of one</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _cannot(document: Document) -> str:
    lines = reasons(document)
    if not lines:
        return ""
    return f"<h2>What cannot run, and why</h2><ul id=reasons>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _left_out(document: Document) -> str:
    if not cuts(document):
        return ""
    lines = "".join(f"<li>{_text(cut)}</li>" for cut in cuts(document))
    return f"<h2>What was left out, since time was up</h2><ul>{lines}</ul>"


def _sources() -> str:
    return f"<h2>Sources</h2><ul>{''.join(f'<li id={name}>[{name}] {escape(text)}</li>' for name, text in SOURCES.items())}</ul>"
