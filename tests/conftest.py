"""For all tests."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tests serve grpc and fork in one process; grpc's handlers of fork(2) would start its threads anew in the child, which is about to
# become something else. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# How long an example takes says nothing on a machine that is shared. .ci/run takes Hypothesis's own profile "ci", whose examples
# are the same every time: what a submission is judged by must not depend on luck.
settings.register_profile("hvd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hvd")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A module's tests share its daemon, so one worker runs them; the conformance suite shares nothing, so there it is the tests of
    one backend."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module, _, test = nodeid.partition("::")
            return module + test.partition("[")[2].partition("-")[0] if module.startswith("tests/backends/") else module

    return ByModule(config, log)
