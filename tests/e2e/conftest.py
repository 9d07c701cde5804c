"""Fixtures of the end-to-end tests: `daemon` is shared by a module's tests, `own_daemon` is one test's own, to be killed and restarted.

Without the emulation backend everything here is skipped with its reason; a failure where HVD_REQUIRE_BACKENDS names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hvctl.sdk import Client
from real_daemon import Done, RealDaemon, require_backend


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[RealDaemon]:
    with RealDaemon() as daemon:
        require_backend(daemon)
        yield daemon


@pytest.fixture
def daemon(request: pytest.FixtureRequest, shared_daemon: RealDaemon) -> Iterator[RealDaemon]:
    """The module's daemon. After the test its guests are deleted, and it must still be there. Its parameter: also_under()."""
    if backend := getattr(request, "param", ""):
        require_backend(shared_daemon, backend)
    shared_daemon.backend = backend
    yield shared_daemon
    shared_daemon.backend = ""
    assert shared_daemon.is_alive, shared_daemon.log()
    shared_daemon.clear()


@pytest.fixture
def own_daemon() -> Iterator[RealDaemon]:
    """A daemon of the test's own."""
    with RealDaemon() as daemon:
        require_backend(daemon)
        yield daemon


@pytest.fixture
def hvctl(daemon: RealDaemon) -> Callable[..., Done]:
    """hvctl("list", "-o", "json", stdin=..., timeout=...) against `daemon`."""
    return daemon.hvctl


@pytest.fixture
def client(daemon: RealDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint, timeout=60) as client:
        yield client
