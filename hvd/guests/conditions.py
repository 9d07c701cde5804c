"""Conditions: facts about a guest that are not its state (Guest.conditions)."""

from __future__ import annotations

from hvapi.v1 import guest_pb2

from hvd.guests.events import now

# Its console log cannot be written.
LOG_LOSING = "LOG_LOSING"
# The restart policy starts it again in a moment, or does not any more.
RESTART_PENDING = "RESTART_PENDING"
RESTART_GIVEN_UP = "RESTART_GIVEN_UP"

# Its kernel executes instructions that should trap and cannot.
SENSITIVE_INSTRUCTIONS = "SENSITIVE_INSTRUCTIONS"
# A debugger is attached.
DEBUGGED = "DEBUGGED"


def put_sensitive(guest: guest_pb2.Guest, count: int) -> str | None:
    """So many instructions of its kernel cannot trap though they should. The message, when that is news and there are any."""
    old = warning(guest)
    if not count:
        clear(guest, SENSITIVE_INSTRUCTIONS)
        return None
    message = (
        f"the kernel executes {count} sensitive instruction{'s' if count > 1 else ''} that cannot trap; "
        f"hvctl census {guest.name.removeprefix('guests/')}"
    )
    if message == old:
        return None
    put(guest, SENSITIVE_INSTRUCTIONS, "CANNOT_TRAP", message)
    return message


def warning(guest: guest_pb2.Guest) -> str:
    """What viewers of its console should know; empty: nothing."""
    return next((condition.message for condition in guest.conditions if condition.type == SENSITIVE_INSTRUCTIONS), "")


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
