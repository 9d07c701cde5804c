"""run."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

import click

from hvctl import failures
from hvctl.sdk.errors import HvctlError
from hvctl.sdk.names import guest_id
from hvctl.settings import Settings, say, verb
from hvctl.verbs.making import FORMATS, make, print_made, spec_options
from hvctl.verbs.outcome import exit_code, tell_end

# The whole of a young guest's console: as much as the API replays.
REPLAY_BYTES = 1 << 20


@verb(formats=FORMATS, timeout_help="Give up after so long (exit code 124); with --rm the guest is removed.")
@spec_options
@click.option("--rm", is_flag=True, help="Delete the guest when it ends.")
@click.option("--detach", "-d", is_flag=True, help="Start it, print its name and leave it alone.")
def run(settings: Settings, rm: bool, detach: bool, **spec: Any) -> int:
    """Makes a guest, starts it and attaches to its console; ^] detaches.

    Ends with the guest's exit code, or with 125 when hvctl or the daemon failed. Guest arguments that begin with -
    follow a --.
    """
    if rm and detach:
        raise click.UsageError("--rm needs hvctl to stay until the guest ends: leave --detach or --rm out")
    guest = make(settings, spec)
    name, short = guest.name, guest_id(guest.name)

    def remove() -> None:
        settings.client.delete_guest(name=name, force=True, allow_missing=True)

    try:
        # A keyboard is only taken to it when asked for; what is piped always is.
        if not detach:  # what is needed next, while the daemon is at it
            threading.Thread(target=importlib.import_module, args=("hvctl.terminal",), daemon=True).start()
        attach_stdin = not detach and (spec["stdin"] or sys.stdin is None or not sys.stdin.isatty())
        guest = settings.client.start_guest(name=name, attach_stdin=attach_stdin)
    except (HvctlError, KeyboardInterrupt):
        if rm:
            remove()
        else:
            say(
                f"{short} was made but is not started: `hvctl show {short}` says more, `hvctl delete {short}` removes it"
            )
        raise
    if detach:
        print_made(settings, guest)
        return failures.OK

    ended = None
    goes_on = f"{short} goes on: `hvctl console {short}` attaches, `hvctl kill {short}` ends it"
    try:  # an interrupt may come at any moment from here on
        from hvctl.terminal import Detached, follow, has_terminal

        ended = follow(settings, name, replay_bytes=REPLAY_BYTES, is_terminal=has_terminal(guest))
        tell_end(ended)
        if rm:
            remove()
        return exit_code(ended)
    except KeyboardInterrupt:
        if rm:
            remove()
            say(f"interrupted; {short} is deleted")
        elif ended is None:
            say(f"detached; {goes_on}")
        return failures.INTERRUPTED
    except Detached:
        say(f"detached; {goes_on}" + ("; it is not deleted at its end" if rm else ""))
        return failures.OK
    except HvctlError as error:
        if ended is not None:
            raise
        if error.reason == "TIMED_OUT":
            if rm:
                remove()
            say(f"{short} had not ended after {settings.timeout:g} s; {'it is deleted' if rm else goes_on}")
            return failures.TIMED_OUT
        say(goes_on)
        raise
