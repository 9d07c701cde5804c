"""For all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests serve grpc and fork in one process; grpc's handlers of fork(2) would start its threads anew in the child, which is about to
# become something else. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# How long an example takes says nothing on a machine that is shared. .ci/run takes Hypothesis's own profile "ci", whose examples
# are the same every time: what a submission is judged by must not depend on luck.
settings.register_profile("hvd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hvd")
