"""For all tests."""

from __future__ import annotations

import os

# Tests serve grpc and fork in one process; grpc's handlers of fork(2) would start its threads anew in the child, which is about to
# become something else. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
