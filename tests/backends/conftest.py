"""The conformance suite's parameters: every backend and engine of this build, found as the daemon finds them.

A backend that cannot run here is skipped with its own reason; under HVD_REQUIRE_BACKENDS=a,b (what this machine must have) the skip of
one of those is a failure.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Bench

from hvd.backends import all_backends
from hvd.backends.contract import Backend


def _required() -> set[str]:
    return {name for name in os.environ.get("HVD_REQUIRE_BACKENDS", "").split(",") if name}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    parameters = []
    for backend in all_backends().values():
        engines = [engine.name for engine in backend.engines()] or [""]
        parameters += [pytest.param((backend, engine), id=f"{backend.name}-{engine}" if engine else backend.name) for engine in engines]
    metafunc.parametrize("engine", parameters, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> tuple[Backend, str]:
    backend, name = request.param
    offers = {engine.name: engine.availability for engine in backend.engines()} or {"": backend.probe()}
    if not offers[name].available:
        reason = f"{backend.name} {name}: {offers[name].reason}; {offers[name].remedy}"
        if backend.name in _required():
            pytest.fail(f"HVD_REQUIRE_BACKENDS names a backend that does not run here: {reason}")
        pytest.skip(reason)
    return backend, name


@pytest.fixture
async def bench(engine: tuple[Backend, str], tmp_path: Path) -> AsyncIterator[Bench]:
    """Starts guests of one backend and engine, and ends them after the test."""
    bench = Bench(*engine, tmp_path)
    try:
        yield bench
    finally:
        await bench.close()


def test_required_backends_exist() -> None:
    """HVD_REQUIRE_BACKENDS must not be satisfied by a name that is wrong."""
    assert _required() <= set(all_backends())
