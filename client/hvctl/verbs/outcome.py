"""How a guest ended, as an exit code and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvctl import failures
from hvctl.output import printable
from hvctl.sdk.names import guest_id
from hvctl.settings import say

if TYPE_CHECKING:
    from hvapi.v1 import guest_pb2


def exit_code(guest: guest_pb2.Guest) -> int:
    """The guest's own code; 137 when somebody killed it, as of a process; 125 when hvd could not go on with it. A code that no
    process can end with becomes 255."""
    from hvapi.v1 import guest_pb2

    if guest.state != guest_pb2.Guest.STOPPED:
        return failures.RUN_FAILED
    if guest.reason == "KILLED":
        return failures.KILLED
    return guest.exit_code if 0 <= guest.exit_code <= 255 else 255


def tell_end(guest: guest_pb2.Guest) -> None:
    """On stderr, unless the guest ended by itself with code 0."""
    from hvapi.v1 import guest_pb2

    if guest.state == guest_pb2.Guest.STOPPED and guest.reason == "EXITED" and guest.exit_code == 0:
        return
    words = f"{guest_id(guest.name)} is {guest_pb2.Guest.State.Name(guest.state)}: {guest.reason or 'no reason given'}"
    if guest.HasField("exit_code"):
        words += f", exit code {guest.exit_code}"
    if guest.status_message:
        words += f" ({printable(guest.status_message)})"
    say(words)
