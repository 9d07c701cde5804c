"""What the tests of the command line share with their fixtures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fake_daemon import FakeDaemon


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Hvctl = Callable[..., Outcome]


def environment(daemon: FakeDaemon | None = None) -> dict[str, str]:
    variables = os.environ | {"PYTHONUNBUFFERED": "1", "TERM": "xterm"}
    if daemon is not None:
        variables["HVD_ENDPOINT"] = daemon.endpoint
    return variables
