"""How a guest ended, as the exit code of `hvctl run`."""

from __future__ import annotations

import pytest
from hvapi.v1.guest_pb2 import Guest
from hvctl.verbs.outcome import exit_code


@pytest.mark.parametrize(
    ("state", "reason", "code", "expected"),
    [
        (Guest.STOPPED, "EXITED", 0, 0),
        (Guest.STOPPED, "EXITED", 7, 7),
        (Guest.STOPPED, "EXITED", -1, 255),
        (Guest.STOPPED, "EXITED", 1 << 20, 255),
        (Guest.STOPPED, "RESET", 0, 0),
        (Guest.STOPPED, "TRIPLE_FAULT", 0, 0),
        (Guest.STOPPED, "KILLED", 0, 137),
        (Guest.FAILED, "EXECUTION_ERROR", None, 125),
        (Guest.FAILED, "RUNNER_CRASHED", None, 125),
    ],
)
def test_exit_code(state: Guest.State.ValueType, reason: str, code: int | None, expected: int) -> None:
    assert exit_code(Guest(state=state, reason=reason, exit_code=code)) == expected
