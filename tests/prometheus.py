"""Prometheus' own tools (Debian's package prometheus), and what of deploy/ they are given."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.free_port import free_port

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
# Where deploy/packages.sh puts them when they are not installed.
TOOLS = ROOT / "build" / "tools" / "usr" / "bin"
SECONDS = 60.0
_BRACES = re.compile(r"^(.*?)\{([^}]*)\}(.*)$")


def tool(name: str) -> str:
    """promtool or prometheus; skips the test when there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(TOOLS))
    if found is None:
        pytest.skip(f"needs {name}, of the Debian package prometheus: `make setup` fetches it")
    return found


def documented() -> set[str]:
    """Every series that docs/metrics.md lists, with a histogram's three."""
    names: set[str] = set()
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith(("| `hvd_", "| `process_")):
            series, kind = line.split("|")[1:3]
            for name in re.findall(r"`([^`]+)`", series):
                for each in _expanded(name):
                    names |= {f"{each}_{part}" for part in ("bucket", "count", "sum")} if "histogram" in kind else {each}
    return names


def _expanded(name: str) -> list[str]:
    """As a shell does: a_{b,c} is a_b and a_c."""
    match = _BRACES.match(name)
    if match is None:
        return [name]
    return [each for word in match[2].split(",") for each in _expanded(f"{match[1]}{word}{match[3]}")]


def dashboard_queries() -> list[str]:
    """Those of deploy/grafana-dashboard.json, with what Grafana would put in for its variables."""
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [query.replace("$__rate_interval", "1m").replace("$guest", ".+") for query in queries]


class Prometheus:
    """A real one, that scrapes the address every second and has the rules of deploy/."""

    def __init__(self, address: str) -> None:
        program = tool("prometheus")
        self._directory = tempfile.TemporaryDirectory(prefix="hvd-prometheus-", ignore_cleanup_errors=True)
        folder = Path(self._directory.name)
        shutil.copy2(DEPLOY / "hvd.rules.yml", folder)
        config = (DEPLOY / "prometheus.yml").read_text()
        assert "127.0.0.1:9464" in config and "15s" in config
        (folder / "prometheus.yml").write_text(
            "global: {evaluation_interval: 1s}\n" + config.replace("127.0.0.1:9464", address).replace("15s", "1s")
        )
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self.wait(lambda: self._get("/-/ready") is not None, "it is not ready")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"{self._url}{path}", timeout=30) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            body = error.read()
            assert error.code in (404, 503), body
            return None
        except OSError:
            return None

    def wait(self, condition: Any, what: str) -> Any:
        """The condition's first true value."""
        end = time.monotonic() + SECONDS
        while not (value := condition()):
            if time.monotonic() > end or self._process.poll() is not None:
                pytest.fail(f"prometheus: {what}; {self._log.read_text()[-1500:]}")
            time.sleep(0.1)
        return value

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """Labels, without those that Prometheus adds -> value, now."""
        body = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        assert body is not None, expression
        answer = json.loads(body)
        assert answer["status"] == "success", answer
        found = {}
        for sample in answer["data"]["result"]:
            labels = {name: value for name, value in sample["metric"].items() if name not in ("__name__", "instance", "job")}
            found[frozenset(labels.items())] = float(sample["value"][1])
        return found

    def by(self, label: str, expression: str) -> dict[str, float]:
        """The same of an expression with one label."""
        return {dict(labels)[label]: value for labels, value in self.query(expression).items()}

    def rules(self) -> list[dict[str, Any]]:
        body = self._get("/api/v1/rules")
        assert body is not None
        return [rule for group in json.loads(body)["data"]["groups"] for rule in group["rules"]]
