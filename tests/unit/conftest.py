"""Runners that a test starts end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from runner_rig import ALL, Launch, spec

from hvd.runner.client import RunnerInstance


@pytest_asyncio.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Launch]:
    started: list[RunnerInstance] = []

    async def start(name: str, directory: Path = tmp_path, **values: Any) -> RunnerInstance:
        instance = await RunnerInstance.launch(directory, spec(name, **values), "emulation", ALL)
        started.append(instance)
        return instance

    yield start
    for instance in started:
        await instance.kill()
        await instance.close()
