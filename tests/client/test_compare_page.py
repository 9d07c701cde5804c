"""The page of `hvctl compare`, as a browser has it: it renders, its numbers are those of the document, it can be read in light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium
from hvctl.compare.page import write
from hvctl.compare.text import digits, time_text
from hvctl.values import size_text

DOCUMENT = json.loads((Path(__file__).parent / "comparison.json").read_text())
# Every text that can be seen, with the contrast (WCAG 2, relative luminance) of its colour to the ground that it stands on.
CONTRAST = """(() => {
  const parse = text => { const m = text.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const ground = node => { for (let n = node; n; n = n.parentElement) { const c = parse(getComputedStyle(n).backgroundColor); if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const worst = {text: [99, ''], mark: [99, '']};
  for (const node of document.body.querySelectorAll('*')) {
    const style = getComputedStyle(node), svg = node instanceof SVGElement;
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    let kind = null, colour = null;
    if (svg && /mark-/.test(node.getAttribute('class') || '')) { kind = 'mark'; colour = style.fill; }
    else if (node.tagName === 'text' ) { kind = 'text'; colour = style.fill; }
    else if (own && !svg && node.tagName !== 'SCRIPT') { kind = 'text'; colour = style.color; }
    if (!kind) continue;
    const r = ratio(parse(colour), ground(node));
    if (r < worst[kind][0]) worst[kind] = [r, node.outerHTML.slice(0, 200)];
  }
  return worst;
})()"""  # noqa: E501
CELLS = """[...document.querySelectorAll('tr[data-workload]')].map(row => ({
  workload: row.dataset.workload, place: row.dataset.place,
  ...Object.fromEntries([...row.querySelectorAll('[data-field]')].map(cell => [cell.dataset.field, cell.innerText.trim()]))}))"""
# Labels and values of plots that stick out of them, or of the page.
OUTSIDE = """[...document.querySelectorAll('figure svg text')].filter(text => {
  const box = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1; }).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write(DOCUMENT, path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as chromium:
        yield chromium


class TestInABrowser:
    def test_renders_without_a_complaint_and_fetches_nothing(self, browser: Chromium, page: Path) -> None:
        browser.open(page)
        assert browser.evaluate("document.title") == "What virtualisation costs"
        assert browser.evaluate("[...document.querySelectorAll('figure svg')].every(svg => svg.getBoundingClientRect().height > 40)")
        assert browser.evaluate("document.querySelectorAll('figure svg').length") >= 8
        assert browser.evaluate(OUTSIDE) == []
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.requests() == [page.as_uri()] and not browser.problems()

    def test_its_numbers_are_those_of_the_document(self, browser: Chromium, page: Path) -> None:
        browser.open(page)
        assert json.loads(browser.evaluate("document.getElementById('document').textContent")) == DOCUMENT
        shown = {(row["workload"], row["place"]): row for row in browser.evaluate(CELLS)}
        results = {(each["name"], result["place"]): result for each in DOCUMENT["workloads"] for result in each["results"] if result["samples"]}
        assert shown.keys() == results.keys()
        for key, result in results.items():
            row = shown[key]
            assert row["median"] == time_text(result["median"]) and row["runs"] == str(len(result["samples"]))
            assert row["ratio"] == (f"{result['ratio']:.2f}" if "ratio" in result else "-")
            assert row["memory"] == (size_text(result["memory_bytes"]) if result["memory_bytes"] else "-")
        labels = browser.evaluate("[...document.querySelectorAll('figure svg .value')].map(text => text.textContent)")
        marks = browser.evaluate("[...document.querySelectorAll('figure svg title')].map(text => text.textContent)")
        workloads = {each["name"]: each for each in DOCUMENT["workloads"]}
        for (name, place), result in results.items():
            if workloads[name]["group"] == "nano":
                assert f"{workloads[name]['title']}, {place}: {time_text(result['median'])}" in marks
            elif "ratio" in result:
                assert f"{digits(result['ratio'])}x  ({time_text(result['median'])})" in labels

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_can_be_read(self, browser: Chromium, page: Path, scheme: str) -> None:
        """WCAG 2: 4.5 : 1 for text, 3 : 1 for what a plot shows."""
        browser.open(page, scheme)
        ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        worst = browser.evaluate(CONTRAST)
        assert worst["text"][0] >= 4.5, worst
        assert worst["mark"][0] >= 3, worst

    def test_on_a_telephone(self, browser: Chromium, page: Path) -> None:
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
        try:
            browser.open(page)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        finally:
            browser.call("Emulation.clearDeviceMetricsOverride")
