"""How a machine ends."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class End:
    """How the machine ended: a row of hvd.runner.directory.ENDS."""

    reason: str
    message: str = ""
    exit_code: int | None = 0
    metadata: dict[str, str] = field(default_factory=dict)


def failure(reason: str, message: str, **metadata: str) -> End:
    """An end without an exit code."""
    return End(reason, message, None, metadata)
