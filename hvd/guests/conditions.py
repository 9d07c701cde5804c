"""Conditions: facts about a guest that are not its state (Guest.conditions)."""

from __future__ import annotations

from hvapi.v1 import guest_pb2

from hvd.guests.events import now

# Its console log cannot be written.
LOG_LOSING = "LOG_LOSING"
# The restart policy starts it again in a moment, or does not any more.
RESTART_PENDING = "RESTART_PENDING"
RESTART_GIVEN_UP = "RESTART_GIVEN_UP"

# A debugger is attached.
DEBUGGED = "DEBUGGED"


def has(guest: guest_pb2.Guest, kind: str) -> bool:
    return any(condition.type == kind for condition in guest.conditions)


def put(guest: guest_pb2.Guest, kind: str, reason: str, message: str) -> None:
    """Set it, from now on. reason: stable, UPPER_SNAKE."""
    clear(guest, kind)
    guest.conditions.add(type=kind, reason=reason, message=message, last_transition_time=now())


def clear(guest: guest_pb2.Guest, *kinds: str) -> None:
    kept = [condition for condition in guest.conditions if condition.type not in kinds]
    if len(kept) != len(guest.conditions):
        del guest.conditions[:]
        guest.conditions.extend(kept)
