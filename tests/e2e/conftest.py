"""Fixtures of the end-to-end tests: `daemon` is shared by a module's tests, `own_daemon` is one test's own, to be killed and restarted.

Without the emulation backend everything here is skipped with its reason; a failure where HVD_REQUIRE_BACKENDS names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from real_daemon import Done, RealDaemon

BACKEND = "emulation"


def _require_backend(daemon: RealDaemon) -> None:
    backends = {found["name"]: found for found in daemon.ok("backends", "-o", "json").json["backends"]}
    found = backends[f"backends/{BACKEND}"]
    if found["available"]:
        return
    reason = f"{BACKEND}: {found['reason']}; {found['remedy']}"
    if BACKEND in os.environ.get("HVD_REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"HVD_REQUIRE_BACKENDS names a backend that does not run here: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[RealDaemon]:
    with RealDaemon() as daemon:
        _require_backend(daemon)
        yield daemon


@pytest.fixture
def daemon(shared_daemon: RealDaemon) -> Iterator[RealDaemon]:
    """The module's daemon. After the test its guests are deleted, and it must still be there."""
    yield shared_daemon
    assert shared_daemon.is_alive, shared_daemon.log()
    shared_daemon.clear()


@pytest.fixture
def own_daemon() -> Iterator[RealDaemon]:
    """A daemon of the test's own."""
    with RealDaemon() as daemon:
        _require_backend(daemon)
        yield daemon


@pytest.fixture
def hvctl(daemon: RealDaemon) -> Callable[..., Done]:
    """hvctl("list", "-o", "json", stdin=..., timeout=...) against `daemon`."""
    return daemon.hvctl
