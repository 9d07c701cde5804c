"""Conditions: facts about a guest that are not its state (Guest.conditions)."""

from __future__ import annotations

from hvapi.v1 import guest_pb2

from hvd.backends.contract import InstanceStatus
from hvd.guests.events import now

# Its console log cannot be written.
LOG_LOSING = "LOG_LOSING"
# The restart policy starts it again in a moment, or does not any more.
RESTART_PENDING = "RESTART_PENDING"
RESTART_GIVEN_UP = "RESTART_GIVEN_UP"

# Its kernel executes instructions that should trap and cannot.
SENSITIVE_INSTRUCTIONS = "SENSITIVE_INSTRUCTIONS"
# Its kernel has asked for something that its backend cannot do.
NEGLECTED = "NEGLECTED"
# A debugger is attached.
DEBUGGED = "DEBUGGED"

# What viewers of its console are told.
WARNINGS = (SENSITIVE_INSTRUCTIONS, NEGLECTED)
# Characters of what a guest's process says.
LONGEST_MESSAGE = 500


def put_sensitive(guest: guest_pb2.Guest, count: int) -> str | None:
    """So many instructions of its kernel cannot trap though they should. For an event, when that is news and there are any."""
    old = _message(guest, SENSITIVE_INSTRUCTIONS)
    if not count:
        clear(guest, SENSITIVE_INSTRUCTIONS)
        return None
    message = (
        f"the kernel has {count} sensitive instruction{'s' if count > 1 else ''} that cannot trap; "
        f"hvctl census {guest.name.removeprefix('guests/')}"
    )
    if message == old:
        return None
    put(guest, SENSITIVE_INSTRUCTIONS, "CANNOT_TRAP", message)
    return f"warning: {message}"


def put_neglected(guest: guest_pb2.Guest, message: str) -> str | None:
    """That is what its kernel has asked for in vain; empty: nothing. For an event, when it is news."""
    message = message[:LONGEST_MESSAGE]
    if message == _message(guest, NEGLECTED):
        return None
    clear(guest, NEGLECTED)
    if not message:
        return None
    put(guest, NEGLECTED, "CANNOT_BE_DONE", message)
    return f"warning: {message}"


def put_warnings(guest: guest_pb2.Guest, status: InstanceStatus) -> list[str]:
    """Both, by the status of a guest that lives."""
    return _news(put_sensitive(guest, status.sensitive), put_neglected(guest, status.neglected))


def observe_end(guest: guest_pb2.Guest, status: InstanceStatus) -> list[str]:
    """Both by its exit record, as far as that tells."""
    record = status.metadata or {}
    count, neglected = record.get("sensitive_instructions", ""), record.get("neglected", "")
    return _news(
        put_sensitive(guest, int(count[:9])) if count.isascii() and count.isdigit() else None,
        put_neglected(guest, neglected) if neglected else None,
    )


def _news(*messages: str | None) -> list[str]:
    return [message for message in messages if message is not None]


def observe(guest: guest_pb2.Guest, status: InstanceStatus) -> list[str]:
    """What the status of a guest that lives means for its conditions. What is news, for its events."""
    news = []
    if bool(status.log_error) != has(guest, LOG_LOSING):
        clear(guest, LOG_LOSING)
        if status.log_error:
            put(guest, LOG_LOSING, "WRITE_FAILED", f"the console log cannot be written: {status.log_error}")
        news.append("console log: " + (status.log_error or "written again"))
    if status.debugged != has(guest, DEBUGGED):
        clear(guest, DEBUGGED)
        if status.debugged:
            explanation = "a debugger is attached; while it has stopped the guest, the guest is PAUSED"
            put(guest, DEBUGGED, "DEBUGGER_ATTACHED", explanation)
        news.append(f"a debugger has {'come' if status.debugged else 'left'}")
    news += put_warnings(guest, status)
    return news


def warning(guest: guest_pb2.Guest) -> str:
    """What viewers of its console should know; empty: nothing."""
    return "; ".join(condition.message for condition in guest.conditions if condition.type in WARNINGS)


def _message(guest: guest_pb2.Guest, kind: str) -> str:
    return next((condition.message for condition in guest.conditions if condition.type == kind), "")


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
