"""The conformance suite's parameters: every backend and engine of this build, found as the daemon finds them.

A backend that cannot run here is skipped with its own reason; under HVD_REQUIRE_BACKENDS=a,b (what this machine must have) the skip of
one of those is a failure.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from container_harness import ContainerBench
from harness import Bench
from native_rig import Rig, Start, assemble

from hvd.backends import all_backends
from hvd.backends.contract import Backend, Capability


def _required() -> set[str]:
    return {name for name in os.environ.get("HVD_REQUIRE_BACKENDS", "").split(",") if name}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    # A suite for machines, and one for containers, whose guests are roots instead of kernels.
    of_containers = "container_bench" in metafunc.fixturenames
    parameters = []
    for backend in all_backends().values():
        if (Capability.CONTAINER in backend.capabilities) != of_containers:
            continue
        engines = [engine.name for engine in backend.engines()] or [""]
        parameters += [pytest.param((backend, engine), id=f"{backend.name}-{engine}" if engine else backend.name) for engine in engines]
    metafunc.parametrize("engine", parameters, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> tuple[Backend, str]:
    backend, name = request.param
    availability = backend.probe()
    for engine in backend.engines():
        if engine.name == name and availability.available:
            availability = engine.availability
    if not availability.available:
        reason = f"{backend.name} {name}: {availability.reason}; {availability.remedy}"
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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Makes guests of the native engine, of a program each, and closes them after the test."""
    rigs: list[Rig] = []

    def make(source: str, bits: int = 32, **more: int) -> Rig:
        rigs.append(Rig(assemble(source, tmp_path, bits), bits, **more))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
async def container_bench(engine: tuple[Backend, str]) -> AsyncIterator[ContainerBench]:
    """Starts containers, ends them after the test, and looks that nothing of them is left on the host."""
    # pytest's own folders are closed to the users that a container's users are on the host.
    with tempfile.TemporaryDirectory(prefix="hvd-containers-") as directory:
        os.chmod(directory, 0o711)
        bench = ContainerBench(*engine, Path(directory))
        try:
            yield bench
        finally:
            await bench.close()
        assert bench.left_over() == []


def test_required_backends_exist() -> None:
    """HVD_REQUIRE_BACKENDS must not be satisfied by a name that is wrong."""
    assert _required() <= set(all_backends())
