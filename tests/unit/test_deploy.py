"""What deploy/ gives to Prometheus and Grafana."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus import DEPLOY, dashboard_queries, documented, tool

RULES = yaml.safe_load((DEPLOY / "hvd.rules.yml").read_text())["groups"][0]["rules"]
NAME = re.compile(r"\b(?:[a-z_]+:)?(?:hvd|process)_[a-z0-9_]+(?::[a-z0-9_]+)?")


def promtool(*words: str) -> None:
    done = subprocess.run([tool("promtool"), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_valid() -> None:
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))


def test_the_rules_do_what_they_say() -> None:
    promtool("test", "rules", str(DEPLOY / "hvd.rules.test.yml"))


def test_every_rule_is_tested() -> None:
    tests = (DEPLOY / "hvd.rules.test.yml").read_text()
    for rule in RULES:
        assert (rule.get("record") or rule["alert"]) in tests


@pytest.mark.parametrize("query", [*dashboard_queries(), *(rule["expr"] for rule in RULES)])
def test_queries_name_series_that_there_are(query: str) -> None:
    names = set(NAME.findall(query))
    assert names or 'up{job="hvd"}' in query
    assert names <= documented() | {rule["record"] for rule in RULES if "record" in rule}, query


def test_the_dashboards_queries_parse(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(dashboard_queries())]
    file = tmp_path / "dashboard.rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"] and panel["datasource"]["uid"] == "${datasource}"
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "guest"}
